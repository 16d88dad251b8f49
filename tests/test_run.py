"""Runs: from a recipe to a folder, commands at awkward moments, interrupts, the end of a process, and reading back."""

import gc
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

from ftnb.events import Changed, Finished, Saved, Started, Stepped, Warned
from ftnb.recipe import Recipe, RecipeError
from ftnb.run import Run, RunError, current_run, finetune, get_run, runs
from ftnb.runfolder import BEST, JOURNAL, LAST, RECIPE, SNAPSHOTS, model_folder, write_model
from ftnb.tables import DataError
from tests.tiny import reviews
from tests.toys import until, weights

ROOT = Path(__file__).parent.parent


def long(recipe: Recipe) -> Recipe:
    return recipe.replace(num_epochs=1000)


def test_finetune_leaves_everything_in_its_folder(recipe):
    run = finetune(recipe, num_epochs=3, progress=False)
    assert run.state == "done"
    visible = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
    assert {RECIPE, JOURNAL, BEST, LAST, SNAPSHOTS} == visible
    assert Recipe.load(run.folder) == recipe.replace(num_epochs=3) == run.recipe
    events = run.events
    assert isinstance(events[-1], Finished)
    assert [e.step for e in events if isinstance(e, Stepped)] == list(range(1, 3 * 5 + 1))
    assert {e.path for e in events if isinstance(e, Saved) and e.what != "snapshot"} == {BEST, LAST}
    times = [e.time for e in events]
    assert times == sorted(times), "one clock for all events"
    best = AutoModelForSequenceClassification.from_pretrained(run.folder / BEST)
    assert torch.equal(weights(best), weights(run.model))
    texts = ["the film was good", "a very dull plot"]
    told = run.predict(texts)
    classify = pipeline("text-classification", model=str(run.folder / BEST))
    assert [p.label for p in told] == [answer["label"] for answer in classify(texts)]
    assert run.report()._repr_png_()[:4] == b"\x89PNG"


def test_it_is_found_again_and_read_back(recipe):
    run = Run(recipe, key="cell").start()
    assert current_run("cell") is run
    assert current_run() is run
    assert get_run(run.id) is run
    assert Run.open(run.folder) is run, "alive or held: the same object"
    run.wait()
    told, folder, key = run.predict(["the film was good"]), run.folder, run.id
    del run
    from ftnb.registry import RUNS

    RUNS.keyed.clear()
    until(lambda: key not in RUNS.known)
    again = Run.open(folder)
    assert (again.state, again.recipe) == ("done", recipe)
    assert again.predict(["the film was good"])[0].label == told[0].label
    assert again.predict(["the film was good"])[0].score == pytest.approx(told[0].score, abs=1e-6)
    assert again.report()._repr_png_()
    assert again.wait() == "done"
    assert again in runs()
    with pytest.raises(RunError, match="A new one"):
        again.start()
    with pytest.raises(RunError, match="no run 'x'"):
        get_run("x")


def test_mistakes_come_before_any_training_and_leave_nothing_behind(recipe, tmp_path):
    for change, family in (
        ({"data": "missing.csv"}, DataError),
        ({"columns": {"text": "sentence"}}, DataError),
        ({"model": str(tmp_path)}, ValueError),
        ({"device": "cuda:9"}, ValueError),
        ({"strategy": {"name": "top-k", "k": 99}}, ValueError),
    ):
        run = Run(recipe.replace(**change))
        with pytest.raises(family):
            run.start()
        assert run.state == "idle"
        assert not run.folder.exists()
    with pytest.raises(RecipeError, match="learning_rate"):
        finetune(recipe, learning_rate=1)


def test_a_mistake_found_in_the_thread_ends_in_failed(recipe):
    run = Run(recipe.replace(data="missing.csv")).start(prepare_in_thread=True)
    with pytest.raises(RunError, match=r"missing\.csv"):
        run.wait()
    assert run.state == "failed"
    assert "DataError" in run.error
    assert "Traceback" in run.traceback
    assert not run.folder.exists()
    run.stop()
    with pytest.raises(RunError):
        run.set_lr(1e-3)


def test_a_folder_that_holds_a_run_is_not_taken(recipe, tmp_path):
    run = finetune(recipe, folder=tmp_path / "mine", progress=False)
    assert run.folder == tmp_path / "mine"
    with pytest.raises(FileExistsError, match=r"Run\.open"):
        finetune(recipe, folder=tmp_path / "mine", progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        finetune(recipe, folder=tmp_path / "file", progress=False)
    with pytest.raises(RunError, match="holds no run"):
        Run.open(tmp_path)


def test_a_run_starts_once_and_commands_need_a_live_one(recipe):
    run = Run(recipe)
    for ask in (run.pause, run.resume, run.stop, run.evaluate, lambda: run.set_lr(1e-3), run.wait):
        with pytest.raises(RunError, match="idle|never started"):
            ask()
    assert run.model is None
    run.start()
    with pytest.raises(RunError, match="started before"):
        run.start()
    run.wait()
    run.stop()
    for ask in (run.pause, run.resume, run.evaluate, lambda: run.set_lr(1e-3)):
        with pytest.raises(RunError, match="done"):
            ask()


def test_commands_given_while_preparing_wait(recipe):
    run = Run(long(recipe)).start(prepare_in_thread=True)
    run.set_lr(2e-3, by="panel")
    run.set_lr(2e-3, group="no such group")
    run.pause(by="panel")
    until(lambda: run.state == "paused")
    run.resume()
    run.stop()
    assert run.wait() == "stopped"
    changed = {(e.what, e.by) for e in run.events if isinstance(e, Changed)}
    assert {("lr", "panel"), ("pause", "panel"), ("stop", "user")} <= changed
    assert any(isinstance(e, Warned) and e.code == "refused" for e in run.events)


def test_stop_while_preparing(recipe):
    run = Run(long(recipe)).start(prepare_in_thread=True)
    run.stop()
    assert run.wait() == "stopped"
    assert run.state == "stopped"


def test_a_stopped_run_keeps_best_and_last_and_predicts(recipe):
    run = Run(long(recipe)).start()
    with pytest.raises(RunError, match="ask the model in a pause or at the end"):
        run.predict(["good"])
    until(lambda: run.history.best is not None)
    assert run.wait(timeout=0.01) == "running"
    run.stop()
    assert run.wait() == "stopped"
    assert {BEST, LAST} <= {path.name for path in run.folder.iterdir()}
    assert run.predict(["the film was good"])


def test_a_paused_run_answers_and_ends_as_if_nobody_had_asked(recipe):
    plain = finetune(recipe, progress=False)
    run, asked = Run(recipe), []
    run.subscribe(lambda event: run.pause() if isinstance(event, Stepped) and event.step in (3, 7) else None)
    run.start()
    for _ in range(2):
        until(lambda: run.state == "paused")
        asked += run.predict(["the film was good"])
        with run.at_rest() as task:
            assert task.evaluate("valid")["loss"] > 0
            threading.Thread(target=run.resume).start()
            time.sleep(0.05)
            assert run.state == "paused"  # who lets it go on waits
        until(lambda: run.state != "paused")
    run.wait()
    assert asked[0].score != asked[1].score  # the model as it was then
    assert torch.equal(weights(plain.model), weights(run.model))
    assert not [event for event in run.events if isinstance(event, Warned) and event.code == "rng_disturbed"]


def test_a_paused_run_ends_with_the_same_weights(recipe):
    plain = finetune(recipe, progress=False)
    run = Run(recipe)
    run.subscribe(lambda event: run.pause() if isinstance(event, Stepped) and event.step in (3, 7) else None)
    run.start()
    for _ in range(2):
        until(lambda: run.state == "paused")
        run.resume()
        until(lambda: run.state != "paused")
    run.wait()
    assert torch.equal(weights(plain.model), weights(run.model))


def test_a_dropped_run_gives_its_memory_back(recipe):
    """After its end, after a stop, after an error in a listener or in the training, nothing here holds the model."""
    done, stopped, failed = Run(recipe), Run(recipe), Run(recipe)
    done.subscribe(lambda event: 1 / 0)
    stopped.subscribe(lambda e: stopped_ref().stop() if isinstance(e, Stepped) and e.step == 2 else None)
    stopped_ref = weakref.ref(stopped)
    models = []
    for run in (done, stopped, failed):
        run.start()
        models.append(weakref.ref(run.task.model))
        if run is failed:
            run._background.training.learner.loss = None
        run.ended.wait(60)
    assert [run.state for run in (done, stopped, failed)] == ["done", "stopped", "failed"]
    assert done.predict(["the film was good"]), "the model is whole"
    del done, stopped, failed, run
    until(lambda: gc.collect() is not None and not any(model() is not None for model in models))
    assert current_run() is None


def test_two_runs_at_once(recipe):
    both = [Run(recipe.replace(seed=seed)).start() for seed in (1, 2)]
    assert [run.wait() for run in both] == ["done", "done"]
    assert both[0].folder != both[1].folder
    assert not torch.equal(weights(both[0].model), weights(both[1].model))


def test_a_failure_while_training_is_raised_by_who_waits(recipe):
    run = Run(recipe)
    run.subscribe(lambda event: setattr(run.task.learner_model, "broken", 1) if isinstance(event, Started) else None)
    run.start()
    run.wait()
    assert any(isinstance(e, Warned) and e.code == "listener_failed" for e in run.events), "a listener is not a failure"
    run = Run(long(recipe))
    run.subscribe(lambda event: vandalise(run) if isinstance(event, Stepped) and event.step == 7 else None)
    run.start()
    with pytest.raises(RunError, match="failed"):
        run.wait()
    assert run.error
    assert Run.open(run.folder).state == "failed"
    assert model_folder(run.folder / LAST)


def vandalise(run: Run) -> None:
    run.task.model.classifier = torch.nn.Linear(3, 3)


def test_data_in_memory(recipe):
    run = finetune(recipe, data=reviews(80), progress=False)
    assert run.state == "done"
    assert "data_in_memory" in [e.code for e in run.events if isinstance(e, Warned)]
    with pytest.raises(RecipeError, match="list in memory"):
        Run(Recipe.load(run.folder)).start()


def test_a_model_folder_is_old_or_new_and_never_half(tmp_path):
    target = tmp_path / "model"

    def version(number, files=3):
        def write(folder):
            for i in range(files):
                (folder / f"{i}.txt").write_text(str(number))

        return write

    def breaks(folder):
        (folder / "0.txt").write_text("half")
        raise OSError("no space left on device")

    def content():
        folder = model_folder(target)
        return None if folder is None else [path.read_text() for path in sorted(folder.iterdir())]

    with pytest.raises(OSError, match="no space"):
        write_model(breaks, target)
    assert content() is None
    write_model(version(1), target)
    with pytest.raises(OSError, match="no space"):
        write_model(breaks, target)
    assert content() == ["1"] * 3
    target.rename(tmp_path / ".model.old")  # a crash between the two renames of a swap
    shutil.copytree(tmp_path / ".model.old", tmp_path / ".model.ready")
    assert content() == ["1"] * 3
    write_model(version(2, files=2), target)
    assert content() == ["2"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# ---------------------------------------------------------------------------------------- processes that end badly
SCRIPT = """
    import _thread, os, signal, sys, threading, time
    from pathlib import Path
    import ftnb.background
    from ftnb.events import Evaluated, Stepped
    from ftnb.recipe import Recipe
    from ftnb.run import Run, finetune

    place, killed = (Path(word) for word in sys.argv[1:])
    settings = {"data": str(place / "reviews.csv"), "model": str(place / "bert"), "device": "cpu"}
    recipe = Recipe(lr=1e-3, num_epochs=100000, **settings)

    def at(run, step, action):
        run.subscribe(lambda e: action() if isinstance(e, Stepped) and e.step == step else None)

    def train(folder):
        run = Run(recipe.replace(eval_every=1, lr=1e-2), folder)
        def save_always(event):  # as many swaps as possible
            if isinstance(event, Evaluated):
                ftnb.background.save(run._background, "best")
        run.subscribe(save_always)
        run.start()
        run.wait()

    # First children that are killed: torch can only be forked before it has trained.
    for number, delay in enumerate((0.0, 0.004, 0.011, 0.05) if hasattr(os, "fork") else ()):
        child = os.fork()
        if child == 0:
            train(killed / str(number))
            os._exit(0)
        journal = killed / str(number) / "events.jsonl"
        while not journal.exists() or journal.read_bytes().count(b'"kind": "step"') < 4:
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    run = Run(recipe).start()
    at(run, 8, _thread.interrupt_main)
    print(run.wait(), flush=True)

    run, free = Run(recipe), threading.Event()
    at(run, 2, lambda: (_thread.interrupt_main(), free.wait()))
    def once_more():
        while run.state != "stopping":
            time.sleep(0.01)
        _thread.interrupt_main()
    threading.Thread(target=once_more).start()
    run.start()
    try:
        run.wait()
    except KeyboardInterrupt:
        print("left", run.state, flush=True)
    free.set()
    print(run.wait(), flush=True)

    run = finetune(recipe, wait=False)
    while run.history.best is None:
        time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def ended(place, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A process (and children of it) whose runs are killed, interrupted, left alone, and cut off by its end."""
    folder = tmp_path_factory.mktemp("ended")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FTNB_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(place), str(folder / "killed")]
    return folder, subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_interrupts_and_the_end_of_a_script_keep_the_model(ended):
    folder, process = ended
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["stopped", "left", "stopping", "stopped"]
    said = ("the model is kept", "goes on in the background", "The process ends")
    assert [words for words in said if words not in process.stderr] == []
    folders = sorted((folder / "runs").iterdir())
    assert len(folders) == 3
    for place, by in zip(folders, ("interrupt", "interrupt", "exit"), strict=True):
        run = Run.open(place)
        assert run.state == "stopped"
        assert {BEST, LAST} <= {path.name for path in place.iterdir()}
        assert ("stop", by) in {(e.what, e.by) for e in run.events if isinstance(e, Changed)}
    assert run.predict(["the film was good"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_killed_process_leaves_whole_models_and_a_readable_journal(ended):
    folder, process = ended
    assert process.returncode == 0, process.stderr
    folders = sorted((folder / "killed").iterdir())
    assert len(folders) == 4
    for place in folders:
        run = Run.open(place)
        assert run.state == "failed"
        assert run.error == "the process that trained it was ended."
        assert [e.step for e in run.events if isinstance(e, Stepped)][:4] == [1, 2, 3, 4]
        assert run.predict(["the film was good"]), "the best model so far loads"


def test_the_journal_is_json_line_by_line(recipe):
    run = finetune(recipe, num_epochs=1, progress=False)
    lines = (run.folder / JOURNAL).read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {"schema": 1}
    assert all("kind" in json.loads(line) for line in lines[1:])


def test_the_progress_bar_is_moved_by_the_waiting_thread(recipe, capsys):
    finetune(recipe)
    err = capsys.readouterr().err
    assert "10/10" in err
    assert "accuracy=" in err
