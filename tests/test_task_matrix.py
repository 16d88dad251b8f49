"""Every task by every strategy to every end, through the same recipe: nothing is special about a task."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from ftnb import LoRA, Recipe, Run, Training
from ftnb.builtin.instructions import instructions
from ftnb.builtin.scenes import digit_scenes
from ftnb.events import Changed, Evaluated
from ftnb.saved import load_task
from ftnb.tasks import TASKS, task_class
from tests.tiny import BAD, GOOD, reviews, tiny_bert, tiny_llama, write_csv
from tests.tiny_audio import song_folder, songs, tiny_wav2vec2, tone_folder, tones
from tests.tiny_images import stripe_folder, stripes, tiny_resnet

STRATEGIES: dict[str, Any] = {
    "full": "full",
    "head": "head",
    "layer-decay": {"name": "layer-decay", "decay": 0.8},
    "lora": {"name": "lora", "rank": 2},
}


def text_classification(folder: Path) -> dict[str, Any]:
    return {
        "data": write_csv(folder / "reviews.csv", 60),
        "model": tiny_bert(folder / "bert"),
        "ask": "the food was good",
    }


def token_classification(folder: Path) -> dict[str, Any]:
    """The polar words of reviews are its entities."""
    lines = []
    for row in reviews(60):
        tags = [f"B-{row['label']}" if word in GOOD + BAD else "O" for word in row["text"].split()]
        lines += [f"{word}\t{tag}" for word, tag in zip(row["text"].split(), tags, strict=True)] + [""]
    data = folder / "entities.conll"
    data.write_text("\n".join(lines), encoding="utf-8")
    return {"data": str(data), "model": tiny_bert(folder / "bert"), "ask": "the food was good"}


def image_classification(folder: Path) -> dict[str, Any]:
    return {"data": stripe_folder(folder / "data"), "model": tiny_resnet(folder / "model"), "ask": stripes(True, 0)}


def scenes() -> dict[str, Any]:
    splits = {split: digit_scenes(split, num, size=40) for split, num in (("train", 18), ("valid", 4))}
    return {"data": splits, "ask": splits["valid"][0]["image"]}


def object_detection(folder: Path) -> dict[str, Any]:
    rows = scenes()
    for of in rows["data"].values():
        for row in of:
            row.pop("mask")
            row["labels"] = ["digit" for _ in row["labels"]]
    return {**rows, "model": "builtin:resnet-glyphs", "image_size": 32}


def image_segmentation(folder: Path) -> dict[str, Any]:
    rows = scenes()
    for of in rows["data"].values():
        for row in of:
            row["mask"] = row["mask"].point(lambda value: min(value, 1))  # ground or digit
            del row["boxes"], row["labels"]
    return {**rows, "model": "builtin:resnet-glyphs", "image_size": 32}


def text_generation(folder: Path) -> dict[str, Any]:
    rows = [json.dumps(row) for row in instructions("train", 60)]
    (folder / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    model = tiny_llama(folder / "llama", tied=False)  # tied, it would have no head to train alone
    return {"data": str(folder / "train.jsonl"), "model": model, "ask": "What does a cow do?"}


def audio_classification(folder: Path) -> dict[str, Any]:
    ask = tones(1, seed=9)[0]["audio"]["bytes"]
    return {"data": tone_folder(folder / "data"), "model": tiny_wav2vec2(folder / "model"), "ask": ask}


def speech_recognition(folder: Path) -> dict[str, Any]:
    ask = songs(1, seed=9)[0]["audio"]["bytes"]
    return {"data": song_folder(folder / "data"), "model": tiny_wav2vec2(folder / "model"), "ask": ask}


TINY = {
    "audio-classification": audio_classification,
    "automatic-speech-recognition": speech_recognition,
    "text-classification": text_classification,
    "token-classification": token_classification,
    "image-classification": image_classification,
    "object-detection": object_detection,
    "image-segmentation": image_segmentation,
    "text-generation": text_generation,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """For each task tiny data, a tiny model, and something to ask about."""
    return {task: make(tmp_path_factory.mktemp(task)) for task, make in TINY.items()}


def wait_until(run: Run, reached: Callable[[Run], bool]) -> None:
    until = time.monotonic() + 60
    while not reached(run) and run.state not in ("done", "failed") and time.monotonic() < until:
        time.sleep(0.002)


WAYS = [(strategy, "done") for strategy in STRATEGIES]
WAYS += [(strategy, ending) for strategy in ("full", "lora") for ending in ("paused", "stopped")]


@pytest.mark.parametrize(("strategy", "ending"), WAYS)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_by_every_strategy_to_every_end(tiny, tmp_path, task, strategy, ending):
    own = tiny[task]
    recipe = Recipe(
        task=task, data=own["data"], model=own["model"], strategy=STRATEGIES[strategy], lr=1e-3, num_epochs=3,
        batch_size=8, device="cpu", **({"image_size": own["image_size"]} if "image_size" in own else {}),
    )  # fmt: skip
    run = Run(recipe, tmp_path / "run").start()
    wait_until(run, lambda run: run.history.step >= 1)
    if ending == "paused":
        run.pause()
        wait_until(run, lambda run: run.state == "paused")
        run.set_lr(5e-4)
        run.resume()
    elif ending == "stopped":
        run.stop()
    state = run.wait(120)
    assert state == ("stopped" if ending == "stopped" else "done")
    events = run.events
    assert any(isinstance(event, Evaluated) for event in events)
    if ending == "paused":
        assert {"pause", "resume", "lr"} <= {event.what for event in events if isinstance(event, Changed)}
    (answer,) = run.predict([own["ask"]])
    (again,) = load_task(run.folder / "model").predict([own["ask"]])
    assert str(again) == str(answer)
    if isinstance(own["data"], str):  # data in memory has no name that a file could keep
        assert Recipe.load(run.folder) == recipe
    assert run.task.show_batch(2) is not None
    assert run.task.show_errors(2) is not None
    if strategy == "full":  # the pictures are those of the task and of the ending
        assert run.report().png()
        if hasattr(run.task, "show_prediction"):
            assert run.task.show_prediction(own["ask"]).png()


def test_every_task_has_its_tiny_mode_and_its_class(tiny):
    assert set(tiny) == set(TASKS)
    for name, entry in TASKS.items():
        of = task_class(name)
        assert (of.name, of.options) == (name, entry.options)
        for method in ("prepare", "from_saved", "learner", "evaluate", "predict", "show_batch", "show_errors", "save"):
            assert callable(getattr(of, method))


@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_saves_in_the_middle_of_lora_is_a_plain_model(tiny, tmp_path, task):
    own = tiny[task]
    options = {"image_size": own["image_size"]} if "image_size" in own else {}
    of = task_class(task).prepare(own["data"], own["model"], **options)
    training = Training(of.learner(batch_size=8), LoRA(rank=2), lr=1e-3, num_epochs=1, device="cpu")
    training.step()
    of.save(tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "lora" in name]  # noqa: SIM118  # no dictionary
    assert any("lora" in name for name, _ in of.model.named_parameters())  # the training goes on
    (answer,), (again,) = of.predict([own["ask"]]), load_task(tmp_path / "model").predict([own["ask"]])
    assert str(again) == str(answer)
