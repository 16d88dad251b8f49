"""What our loop costs beside a bare one that does the same arithmetic, transformers' Trainer and Lightning.

A BERT of BERT-tiny's shape on random sentences of one length, in float32 on one thread: forward, backward, clipping,
fused AdamW, a linear schedule. All get the same examples through the same collate function, and dropout is on. Ours has
everything on that a run has: the thread, the events, the journal on the disk, the chart's history, the guard against
numbers that are none, the snapshots' clock. The others have their defaults and no progress bar, no saving, no logging.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

from ftnb.background import BackgroundTraining, SnapshotTimer, take
from ftnb.data import Batches
from ftnb.events import Finished
from ftnb.metrics import classification_metrics
from ftnb.step import Batch, Learner
from ftnb.train import Training
from tests.bench.race import Contender, race, ratio

TINY = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
NUM_TOKENS, LR, WARMUP = 32, 1e-4, 0.1
Examples = list[dict[str, Any]]
Step = Callable[[], None]


def model_of(sizes: dict[str, Any]) -> BertForSequenceClassification:
    """A BERT with random weights, always the same ones."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**sizes, num_labels=2))


def sentences(number: int, num_tokens: int, vocabulary: int) -> Examples:
    """Random sentences of one length."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (number, num_tokens), generator=g)
    mask = torch.ones(num_tokens, dtype=torch.long)
    return [{"input_ids": row, "attention_mask": mask, "labels": torch.tensor(i % 2)} for i, row in enumerate(ids)]


def collate(examples: Examples) -> Batch:
    """Stack examples."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def loss_of(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
    """The model's own loss."""
    outputs = model(**batch)
    return outputs.loss, outputs


def ours(model: nn.Module, examples: Examples, batch_size: int, num_steps: int, folder: Path) -> Contender:
    """Our training as a run does it, with its record on the disk."""
    train = Batches(examples, collate, batch_size, shuffle=True)
    learner = Learner(model, train, Batches(examples[:8], collate, 8), loss_of, classification_metrics(2))
    settings: dict[str, Any] = {"lr": LR, "warmup": WARMUP, "device": "cpu", "precision": "fp32"}

    def run(step: Step) -> None:
        training = Training(learner, num_epochs=-(-num_steps // len(train)), eval_every=num_steps, **settings)
        background = BackgroundTraining(training, folder, lambda _: None)
        background.record.open(folder / "events.jsonl", training.clock)
        timer = SnapshotTimer(None)
        before = 0
        while True:  # as `ftnb.background.train` goes, with a look at the step
            for event in training.advance():
                if isinstance(event, Finished):
                    return
                take(background, event)
            timer.due(training.position.step)
            if training.position.step > before:
                before = training.position.step
                step()

    return run


def bare(model: nn.Module, examples: Examples, batch_size: int, num_steps: int) -> Contender:
    """The plainest loop that does the same."""

    def run(step: Step) -> None:
        decays = [{"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.01}]
        rest = [{"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(decays + rest, lr=LR, fused=True)
        scheduler = get_linear_schedule_with_warmup(optimizer, int(WARMUP * num_steps), num_steps)
        model.train()
        while True:
            for batch in DataLoader(examples, batch_size, shuffle=True, collate_fn=collate):
                loss = model(**batch).loss
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                step()

    return run


def trainer(model: nn.Module, examples: Examples, batch_size: int, num_steps: int, folder: Path) -> Contender:
    """transformers' Trainer."""

    def run(step: Step) -> None:
        class Count(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *_: Any, **__: Any) -> None:
                step()

        arguments = TrainingArguments(
            str(folder), per_device_train_batch_size=batch_size, learning_rate=LR, max_steps=num_steps,
            weight_decay=0.01, warmup_steps=WARMUP, use_cpu=True, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=examples, data_collator=collate, callbacks=[Count()]).train()

    return run


def lightning(model: nn.Module, examples: Examples, batch_size: int, num_steps: int, folder: Path) -> Contender | None:
    """Lightning, if it is installed (it is no dependency of ours)."""
    try:
        import lightning.pytorch as pl
    except ImportError:
        return None

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Batch, _: int) -> Tensor:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            decays = [{"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.01}]
            rest = [{"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
            optimizer = torch.optim.AdamW(decays + rest, lr=LR, fused=True)
            scheduler = get_linear_schedule_with_warmup(optimizer, int(WARMUP * num_steps), num_steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def run(step: Step) -> None:
        class Count(pl.Callback):  # type: ignore[misc]
            def on_train_batch_end(self, *_: Any, **__: Any) -> None:
                step()

        fit = pl.Trainer(
            accelerator="cpu", max_steps=num_steps, gradient_clip_val=1.0, logger=False, default_root_dir=folder,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Count()],
        )  # fmt: skip
        fit.fit(Module(), DataLoader(examples, batch_size, shuffle=True, collate_fn=collate))

    return run


def one_size(
    batch_size: int, pairs: int, steps: int, sizes: dict[str, Any], num_tokens: int, folder: Path
) -> dict[str, Any]:
    """All contenders at one batch size: ratios to the bare loop, by wall and by process time, and milliseconds."""
    num_steps = (pairs + 1) * steps + 1
    examples = sentences(40 * batch_size, num_tokens, model_of(sizes).config.vocab_size)
    given = examples, batch_size, num_steps
    made: dict[str, Contender | None] = {
        "bare": bare(model_of(sizes), *given),
        "ours": ours(model_of(sizes), *given, folder),
        "trainer": trainer(model_of(sizes), *given, folder),
        "lightning": lightning(model_of(sizes), *given, folder),
    }
    turns = race({name: contender for name, contender in made.items() if contender is not None}, pairs, steps)
    base, row = turns["bare"], {"batch_size": batch_size, "bare_ms": 1000 * statistics.median(turns["bare"].cpu)}
    for name in ("ours", "trainer", "lightning"):
        for clock in ("cpu", "wall"):
            ending = "" if clock == "cpu" else "_by_wall"
            if name in turns:
                row[name + ending], row[f"{name}{ending}_range"] = ratio(
                    getattr(turns[name], clock), getattr(base, clock)
                )
            else:
                row[name + ending] = None
    more = [1000 * (a - b) for a, b in zip(turns["ours"].cpu, base.cpu, strict=True)]
    return {**row, "ms": statistics.median(more), "ms_range": [min(more), max(more)]}


def overhead(
    pairs: int = 7,
    steps: int = 40,
    *,
    batch_sizes: tuple[int, ...] = (16, 32),
    sizes: dict[str, Any] | None = None,
    num_tokens: int = NUM_TOKENS,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """The part "overhead" of `bench.json`.

    Args:
        pairs: turns of each contender.
        steps: in a turn.
        batch_sizes: to measure; the headline is the smallest, where overhead weighs most.
        sizes: of the model.
        num_tokens: in each sentence.
        say: told of every row.

    Returns:
        By the process's time: "ratio", "trainer", "lightning" to the bare loop, and what we add in "ms" a step; each
        with its "_range" over the turns; and "rows", one for each batch size, by the wall too.
    """
    rows = []
    for size in batch_sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(one_size(size, pairs, steps, sizes or TINY, num_tokens, Path(folder)))
        say(", ".join(f"{name} {value:.3f}" for name, value in rows[-1].items() if isinstance(value, float)))
    first = rows[0]
    names = {"ratio": "ours", "ms": "ms", "trainer": "trainer", "lightning": "lightning"}
    figures: dict[str, Any] = {}
    for name, of in names.items():
        figures |= {name: first[of], f"{name}_range": first.get(f"{of}_range")}
    return {**figures, "pairs": pairs, "steps": steps, "tokens": num_tokens, "rows": rows}
