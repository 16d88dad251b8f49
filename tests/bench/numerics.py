"""Is one step's gradient that of the whole batch, however the batch is cut? Ours beside transformers' Trainer.

The same examples make one optimizer step: at once, in 2, 4 or 8 micro-batches, with a ragged last one, in an order that
pads much and in buckets of equal lengths. The figure is the largest difference of any gradient from that of the whole
batch, as a share of the largest gradient. Models are tiny and without dropout; each task's own loss, collate function
and weights are used, through `Training`. In float64, what a model or a loss would cast to float32 stays in float64.
"""

import contextlib
import copy
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from ftnb.data import Batches
from ftnb.step import Batch
from ftnb.tasks import task_class
from ftnb.train import Training
from tests.test_speech_recognition import tiny_whisper
from tests.test_task_matrix import TINY
from tests.tiny_images import stripe_folder

Gradients = dict[str, Tensor]
Cut = list[list[int]]  # the examples of each micro-batch

LIMITS = {torch.float32: 1e-6, torch.float64: 1e-12}
NOT_INPUTS = ("word_ids", "sentence", "num_words", "num_answer_tokens", "num_samples", "num_tokens")  # not the model's


def vit(folder: Path) -> dict[str, Any]:
    """Stripes and a tiny ViT: no BatchNorm, whose statistics are the micro-batch's own."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(5)
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **sizes)).save_pretrained(folder / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "vit")
    return {"data": stripe_folder(folder / "data"), "model": str(folder / "vit")}


def whisper(folder: Path) -> dict[str, Any]:
    """Songs and a tiny Whisper, whose loss is a mean over letters."""
    own = TINY["automatic-speech-recognition"](folder)
    return {**own, "model": tiny_whisper(folder / "whisper")}


CASES: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {  # name → task, and what makes its data and model
    **{name: (name, make) for name, make in TINY.items() if name != "image-classification"},
    "image-classification": ("image-classification", vit),
    "automatic-speech-recognition, token by token": ("automatic-speech-recognition", whisper),
}
NOT_OF_TRAINER = ("object-detection", "image-segmentation")  # models that Trainer cannot take a loss from
INEXACT = ("object-detection",)  # FCOS divides by the matched places of a batch, which only the model knows


class InFloat64(TorchFunctionMode):
    """Whatever asks for float32 gets float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def swap(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = Tensor.double if func is Tensor.float else func
        return func(*map(swap, args), **{name: swap(value) for name, value in (kwargs or {}).items()})


def as_type(batch: Any, dtype: torch.dtype) -> Any:
    """Every float tensor inside a batch in another type."""
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {name: as_type(value, dtype) for name, value in batch.items()}
    return [as_type(value, dtype) for value in batch] if isinstance(batch, list) else batch


class Given(Batches):
    """Batches in a given order."""

    def __init__(self, examples: Any, collate: Callable[[list[Any]], Batch], cut: Cut) -> None:
        super().__init__(examples, collate, len(cut[0]))
        self.cut = cut

    def __len__(self) -> int:
        return len(self.cut)

    def order(self, epoch: int = 0) -> Cut:
        return self.cut


class Case:
    """A task with tiny data and a tiny model without dropout, and one step's gradient of it for any cut."""

    def __init__(self, name: str, folder: Path, dtype: torch.dtype) -> None:
        self.name, self.dtype = name, dtype
        self.task_name, make = CASES[name]
        own = make(folder)
        if not own["model"].startswith("builtin:"):
            _without_dropout(Path(own["model"]))
        options = {"image_size": own["image_size"]} if "image_size" in own else {}
        task = task_class(self.task_name).prepare(own["data"], own["model"], **options)
        self.learner = task.learner(batch_size=4)
        self.model = self.learner.model.to(dtype)
        self.start = copy.deepcopy(self.model.state_dict())
        self.examples = [example for example, _ in zip(self.learner.train.examples, range(32), strict=False)]
        self.precise = InFloat64() if dtype is torch.float64 else contextlib.nullcontext()

    def collate(self, examples: list[Any]) -> Batch:
        """The task's batch, in the type that is examined."""
        return as_type(self.learner.train.collate(examples), self.dtype)

    def ours(self, batches: Batches) -> Gradients:
        """The gradient of one step that takes all of `batches`."""
        self.model.load_state_dict(self.start)
        learner = copy.copy(self.learner)
        learner.train = batches
        settings: dict[str, Any] = {"num_epochs": 1, "device": "cpu", "precision": "fp32", "batch_norm": "fixed"}
        training, found = Training(learner, accumulation=len(batches), **settings), {}
        update = training.arithmetic.update

        def record(optimizer: torch.optim.Optimizer) -> Tensor:
            found.update(gradients(self.model))
            return update(optimizer)

        training.arithmetic.update = record  # type: ignore[method-assign]
        with self.precise:
            training.step()
        return found

    def trainers(self, cut: Cut) -> Gradients:
        """The same by transformers' Trainer: the cut's examples in their order, as many at once as the first holds."""
        self.model.load_state_dict(self.start)
        found: Gradients = {}

        class Record(TrainerCallback):  # type: ignore[misc]
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **of: Any) -> None:
                found.update(gradients(of["model"]))

        def collate(examples: list[Any]) -> Batch:
            return {name: value for name, value in self.collate(examples).items() if name not in NOT_INPUTS}

        with tempfile.TemporaryDirectory() as folder, self.precise:
            arguments = TrainingArguments(
                folder, per_device_train_batch_size=len(cut[0]), gradient_accumulation_steps=len(cut), max_steps=1,
                train_sampling_strategy="sequential", max_grad_norm=0.0, remove_unused_columns=False, use_cpu=True,
                report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=0,
            )  # fmt: skip
            rows = [self.examples[i] for batch in cut for i in batch]
            trainer = Trainer(self.model, arguments, train_dataset=rows, data_collator=collate, callbacks=[Record()])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        self.model.zero_grad()
        return found

    def cuts(self) -> dict[str, Cut]:
        """The ways to cut a batch into micro-batches: 32 examples (16 where there are fewer), then three fewer."""
        most, lengths = 32 if len(self.examples) >= 32 else 16, self.learner.train.lengths
        found = {}
        for size, name in ((most, "even"), (most - 3, "ragged")):
            for number in (2, 4, 8):
                found[f"{number} {name}"] = pieces(range(size), most // number)
            if lengths is not None:
                in_order = sorted(range(size), key=lambda i: lengths[i])
                found[f"8 {name}, bucketed"] = pieces(in_order, most // 8)
        return found

    def rows(self, trainer: bool = True) -> Iterator[dict[str, Any]]:
        """Rows of the table, one for each way to cut a batch; `trainer`: with Trainer's."""
        both = trainer and self.task_name not in NOT_OF_TRAINER
        whole: dict[int, tuple[Gradients, Gradients | None]] = {}
        for name, cut in self.cuts().items():
            size = sum(map(len, cut))
            if size not in whole:
                at_once = [list(range(size))]
                whole[size] = self.given(at_once), self.trainers(at_once) if both else None
            ours, theirs = whole[size]
            row = {"task": self.name, "dtype": str(self.dtype).removeprefix("torch."), "micro_batches": name}
            row["largest"] = largest(ours)
            row["ours"] = difference(self.given(cut), ours)
            yield {**row, "trainer": None if theirs is None else difference(self.trainers(cut), theirs)}
        of_the_task = difference(self.ours(self._of_the_task(size)), ours)
        yield {**row, "micro_batches": "as the task cuts them", "ours": of_the_task, "trainer": None}

    def given(self, cut: Cut) -> Gradients:
        """The gradient of one step that takes the examples in these micro-batches."""
        return self.ours(Given(self.examples, self.collate, cut))

    def _of_the_task(self, size: int) -> Batches:
        """The first examples in batches of 4 as the task makes them, in the order of its first epoch."""
        lengths = self.learner.train.lengths
        kinds: dict[str, Any] = {"lengths": None if lengths is None else lengths[:size], "shuffle": True}
        return Batches(self.examples[:size], self.collate, 4, **kinds)


def _without_dropout(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    off = {name: 0.0 for name in config if ("drop" in name or "pdrop" in name) and isinstance(config[name], float)}
    path.write_text(json.dumps({**config, **off}), encoding="utf-8")


def pieces(rows: Sequence[int], size: int) -> Cut:
    """Rows in pieces of a size; the last may be smaller."""
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]


def gradients(model: nn.Module) -> Gradients:
    """Copies of all gradients."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest(of: Gradients) -> float:
    """The largest gradient."""
    return max(g.abs().max().item() for g in of.values())


def difference(these: Gradients, those: Gradients) -> float:
    """The largest difference of any gradient, as a share of the largest of `those`."""
    assert these.keys() == those.keys()
    assert 0 < largest(those) < math.inf
    return largest({name: these[name] - those[name] for name in those}) / largest(those)


def numerics_table(
    names: Sequence[str] = tuple(CASES), dtypes: Sequence[torch.dtype] = tuple(LIMITS), trainer: bool = True
) -> list[dict[str, Any]]:
    """Rows of the table "numerics" of `bench.json`.

    Args:
        names: of `CASES`.
        dtypes: of the weights and of all arithmetic.
        trainer: with Trainer's figures beside ours.

    Returns:
        Rows with "task", "dtype", "micro_batches" (their number, and how they were cut), the "largest" gradient, and
        how far off gradients are by "ours" and by "trainer" (None where Trainer cannot train such a model).
    """
    table = []
    for name in names:
        for dtype in dtypes:
            with tempfile.TemporaryDirectory() as folder:
                table += list(Case(name, Path(folder), dtype).rows(trainer))
    return table
