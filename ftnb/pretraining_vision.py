# Exported from nbs/91_pretraining_vision.py: edit the lesson, then run `make export`.
"""How the built-in ResNet and ViT were made: printed glyphs first, handwritten digits later."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from ftnb.builtin.digits import LABELS as DIGITS
from ftnb.builtin.digits import Split, digit_images
from ftnb.builtin.glyphs import LABELS as GLYPHS
from ftnb.builtin.glyphs import SIZE, Distortion, glyph_batch
from ftnb.pretraining import weights_hash

__all__ = [
    "Architecture",
    "new_model",
    "image_processor",
    "as_inputs",
    "digit_batch",
    "pooled_features",
    "fit_ridge",
    "probe_accuracy",
    "zero_shot_accuracy",
    "VisionPretraining",
    "HELD_OUT_SEED",
    "glyph_accuracy",
    "pretrain",
    "FINETUNING_LR",
    "finetuned_accuracy",
    "shuffled_batches",
    "SETTINGS",
    "LABELS_PER_CLASS",
    "save_checkpoint",
    "scores",
    "main",
]


Architecture = Literal["resnet", "vit"]


def new_model(architecture: Architecture, seed: int) -> PreTrainedModel:
    """A small ResNet or ViT with random weights and a head for the classes of glyphs.

    Args:
        architecture: "resnet" (three stages of two basic blocks, 32, 64 and 128 channels) or "vit" (patches of 4 × 4
            pixels, four layers, 96 features).
        seed: of the weights.

    Raises:
        ValueError: if the architecture is neither.
    """
    if architecture not in get_args(Architecture):
        raise ValueError(f"architecture {architecture!r} is unknown; choose 'resnet' or 'vit'.")
    torch.manual_seed(seed)
    names = dict(enumerate(GLYPHS))
    labels: dict[str, Any] = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    if architecture == "resnet":
        # No fourth stage: on 32 × 32 pixels it would see a single pixel, and of a 3 × 3 filter on that only the middle
        # is ever trained.
        resnet = ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64, 128], depths=[2, 2, 2], layer_type="basic", **labels
        )
        return ResNetForImageClassification(resnet)
    vit = ViTConfig(
        image_size=SIZE,
        patch_size=4,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=288,
        initializer_range=0.1,  # about 1 / sqrt(96), see lesson 90
        **labels,
    )
    return ViTForImageClassification(vit)


def image_processor() -> ViTImageProcessor:
    """Images of any size and mode to RGB of 32 × 32 pixels with values from -1 to 1."""
    size = {"height": SIZE, "width": SIZE}
    return ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True)


def as_inputs(grey: Tensor, coloured: float, generator: torch.Generator) -> Tensor:
    """Grey images as a model's input; in some, black and white become two random colours.

    Args:
        grey: uint8, shape (N, H, W).
        coloured: share of the images that get colours; the others stay grey.
        generator: the source of chance.

    Returns:
        Float tensor (N, 3, H, W) with values from -1 to 1.
    """
    ends = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1).repeat(1, len(grey), 3, 1, 1)  # black, white
    colours = torch.rand(ends.shape, generator=generator)
    chosen = torch.rand((len(grey), 1, 1, 1), generator=generator) < coloured
    black, white = torch.where(chosen, colours, ends)
    images = black + (white - black) * (grey.unsqueeze(1) / 255)
    return 2 * images - 1


def digit_batch(split: Split, num_per_class: int | str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Handwritten digits as pixel values (N, 3, 32, 32) and labels (N,), through `image_processor`."""
    examples = digit_images(split, num_per_class, seed)
    pixel_values = image_processor()([example["image"] for example in examples], return_tensors="pt")["pixel_values"]
    return pixel_values, torch.tensor([DIGITS.index(example["label"]) for example in examples])


@torch.no_grad()
def pooled_features(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """What the classifier of a ResNet or ViT sees, shape (N, hidden), in eval mode; the mode is put back."""
    was_training = model.training
    model.eval()
    outputs = model.base_model(pixel_values)
    model.train(was_training)
    pooled = outputs.get("pooler_output")
    return pooled.flatten(1) if pooled is not None else outputs.last_hidden_state[:, 0]


def fit_ridge(features: Tensor, labels: Tensor, ridge: float = 0.1) -> Callable[[Tensor], Tensor]:
    """A linear classifier by ridge regression on one-hot targets, solved exactly: no learning rate and no chance.

    Args:
        features: shape (N, hidden).
        labels: digits, shape (N,).
        ridge: weight of the penalty on squared weights, in units of the features' mean sum of squares.

    Returns:
        A function from features (M, hidden) to a score of each digit, (M, 10).
    """
    targets = nn.functional.one_hot(labels, len(DIGITS)).double()
    mean = features.double().mean(0)
    X = features.double() - mean
    covariance = X.T @ X
    penalty = ridge * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=X.dtype)
    w = torch.linalg.solve(covariance + penalty, X.T @ (targets - targets.mean(0)))
    return lambda new_features: (new_features.double() - mean) @ w + targets.mean(0)


def probe_accuracy(
    model: PreTrainedModel, seed: int, num_per_class: int = 10, split: Split = "valid", ridge: float = 0.1
) -> float:
    """How well a *linear* classifier on frozen features reads digits, after a few labelled ones (see `fit_ridge`).

    Args:
        model: a ResNet or ViT, not changed.
        seed: of the labelled digits.
        num_per_class: labelled digits of each class.
        split: where to measure the accuracy, on all images.
        ridge: see `fit_ridge`.
    """
    X, y = digit_batch("train", num_per_class, seed)
    classify = fit_ridge(pooled_features(model, X), y, ridge)
    X, y = digit_batch(split, "all")
    return (classify(pooled_features(model, X)).argmax(1) == y).double().mean().item()


@torch.no_grad()
def zero_shot_accuracy(model: PreTrainedModel, split: Split) -> float:
    """How many handwritten digits the pretrained classifier reads right, having seen printed glyphs only.

    Of its classes of glyphs, only the digits may be answered.
    """
    X, y = digit_batch(split, "all")
    was_training = model.training
    logits = model.eval()(X).logits
    model.train(was_training)
    columns = [GLYPHS.index(digit) for digit in DIGITS]
    return (logits[:, columns].argmax(1) == y).float().mean().item()


@dataclass(frozen=True)
class VisionPretraining:
    """Everything that defines a pretraining run on glyphs.

    Attributes:
        architecture: "resnet" or "vit".
        num_steps: steps; each sees new glyphs.
        batch_size: glyphs per step.
        lr: peak learning rate of AdamW; rises over the first 5 % of the steps, then falls in a straight line.
        weight_decay: of AdamW.
        coloured: share of glyphs in two random colours, the others are grey.
        easy_start: share of the steps over which distortion and colours grow from none to what they are at the end.
        seed: of the weights and the glyphs.
        probe_every: steps between two measurements.
        probe_seed: of the labelled digits of these measurements.

    Raises:
        ValueError: if a setting is impossible; the message names it.
    """

    architecture: Architecture = "resnet"
    num_steps: int = 4000
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    coloured: float = 0.5
    easy_start: float = 0.3
    seed: int = 1
    probe_every: int = 200
    probe_seed: int = 1

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise ValueError(f"architecture {self.architecture!r} is unknown; choose 'resnet' or 'vit'.")
        for name in ("num_steps", "batch_size", "probe_every", "seed"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}.")
        for name in ("coloured", "easy_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, from 0 to 1; got {getattr(self, name)}.")


HELD_OUT_SEED = 0  # of the glyphs to measure on; those of training have seeds of 1,000,000 and more


def glyph_accuracy(model: PreTrainedModel, num_images: int = 500) -> float:
    """Share of held-out grey glyphs that are named right."""
    images, labels = glyph_batch(num_images, HELD_OUT_SEED)
    was_training = model.training
    with torch.no_grad():
        logits = model.eval()(as_inputs(images, 0.0, torch.Generator())).logits
    model.train(was_training)
    return (logits.argmax(1) == labels).float().mean().item()


def pretrain(model: PreTrainedModel, settings: VisionPretraining) -> Iterator[dict[str, float]]:
    """Pretrain `model` in place; yield a row of the log every `probe_every` steps and at the end.

    A row holds step, seconds, loss (mean since the last row, in nats), the accuracy on held-out glyphs, and that on
    the validation digits of a linear probe ("probe") and without any labelled digit ("zero_shot").
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.05 * settings.num_steps), 1 - step / settings.num_steps)
    )
    generator = torch.Generator().manual_seed(settings.seed)
    start, losses = time.perf_counter(), []
    model.train()
    for step in range(1, settings.num_steps + 1):
        strength = min(1.0, step / max(1.0, settings.easy_start * settings.num_steps))
        distortion = Distortion().scaled(strength)
        images, labels = glyph_batch(settings.batch_size, settings.seed * 1_000_000 + step, distortion)
        loss = model(as_inputs(images, strength * settings.coloured, generator), labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if step % settings.probe_every == 0 or step == settings.num_steps:
            yield {
                "step": step,
                "seconds": round(time.perf_counter() - start, 1),
                "loss": round(statistics.mean(losses), 3),
                "glyphs": round(glyph_accuracy(model), 3),
                "probe": round(probe_accuracy(model, settings.probe_seed), 3),
                "zero_shot": round(zero_shot_accuracy(model, "valid"), 3),
            }
            losses = []


# Chosen on the validation part with seeds 1 to 3, for each network and each start: pretrained, from scratch.
FINETUNING_LR: dict[str, dict[bool, float]] = {
    "resnet": {True: 3e-4, False: 3e-3},
    "vit": {True: 1e-3, False: 5e-4},
}


def finetuned_accuracy(
    folder: str | Path,
    seed: int,
    *,
    pretrained: bool = True,
    num_per_class: int = 10,
    split: Split = "test",
    lr: float | None = None,
    num_steps: int = 100,
) -> float:
    """Fine-tune a checkpoint (or the same network from random weights) on labelled digits, and test it.

    The whole model trains in batches of 32 with AdamW, the rate falling in a straight line.

    Args:
        folder: a checkpoint of `save_checkpoint`.
        seed: of the labelled digits, the new weights and the order of the batches.
        pretrained: whether to start from the checkpoint's weights.
        num_per_class: labelled digits of each class.
        split: where to measure the accuracy, on all images.
        lr: the peak learning rate; by default the one of `FINETUNING_LR`.
        num_steps: steps, the same number however many digits there are.
    """
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder, num_labels=len(DIGITS))
    if pretrained:
        model = AutoModelForImageClassification.from_pretrained(folder, config=config, ignore_mismatched_sizes=True)
    else:
        model = AutoModelForImageClassification.from_config(config)
    X, y = digit_batch("train", num_per_class, seed)
    lr = FINETUNING_LR[config.model_type][pretrained] if lr is None else lr
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    model.train()
    for part in shuffled_batches(len(X), 32, num_steps):
        model(X[part], labels=y[part]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    X, y = digit_batch(split, "all")
    with torch.no_grad():
        return (model.eval()(X).logits.argmax(1) == y).float().mean().item()


def shuffled_batches(num_examples: int, batch_size: int, num_batches: int) -> Iterator[Tensor]:
    """Indices of batches; every example comes once before any comes again."""
    order = torch.cat([torch.randperm(num_examples) for _ in range(-(-batch_size * num_batches // num_examples))])
    yield from order.split(batch_size)[:num_batches]


SETTINGS: dict[Architecture, VisionPretraining] = {
    "resnet": VisionPretraining("resnet"),
    "vit": VisionPretraining("vit", num_steps=2500, easy_start=0.5),
}
LABELS_PER_CLASS = (3, 10, 30)


def save_checkpoint(model: PreTrainedModel, folder: str | Path) -> str:
    """Save model, classes and image processor for `from_pretrained`; return the weights' SHA-256."""
    model.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return weights_hash(folder)


def scores(folder: str | Path, seeds: Iterable[int]) -> dict[str, Any]:
    """All measures on the test part, for 3, 10 and 30 labelled digits of each class: every seed, mean, two errors.

    Returns:
        "seeds"; "zero-shot", one accuracy; and for each of "fine-tuned", "from scratch", "probe" and "probe, random
        weights" a dictionary from the number of labels to "mean", "plus_minus" (two standard errors) and "values".
    """
    seeds = list(seeds)
    model = AutoModelForImageClassification.from_pretrained(folder)
    measures: dict[str, Callable[[int, int], float]] = {
        "fine-tuned": lambda seed, number: finetuned_accuracy(folder, seed, num_per_class=number),
        "from scratch": lambda seed, number: finetuned_accuracy(folder, seed, pretrained=False, num_per_class=number),
        "probe": lambda seed, number: probe_accuracy(model, seed, number, "test"),
        "probe, random weights": lambda seed, number: probe_accuracy(
            new_model(model.config.model_type, seed), seed, number, "test"
        ),
    }
    table: dict[str, Any] = {"seeds": seeds, "zero-shot": round(zero_shot_accuracy(model, "test"), 4)}
    for kind, measure in measures.items():
        table[kind] = {}
        for number in LABELS_PER_CLASS:
            values = [round(measure(seed, number), 4) for seed in seeds]
            error = 2 * statistics.stdev(values) / len(values) ** 0.5
            mean = round(statistics.mean(values), 3)
            table[kind][str(number)] = {"mean": mean, "plus_minus": round(error, 3), "values": values}
    return table


def main(arguments: list[str] | None = None, report: Callable[[str], None] = print) -> None:
    """Pretrain on glyphs, save a checkpoint with its log, and score it on fresh seeds."""
    parser = argparse.ArgumentParser(prog="python -m ftnb.pretraining_vision", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=get_args(Architecture), default="resnet")
    parser.add_argument("--steps", type=int, help="how many steps instead of the architecture's usual number")
    parser.add_argument("--seed", type=int, default=VisionPretraining.seed)
    parser.add_argument("--score-seeds", type=int, default=5, help="how many fresh seeds to score on (0: none)")
    options = parser.parse_args(arguments)
    if options.score_seeds == 1 or options.score_seeds < 0:
        parser.error("--score-seeds must be 0 or at least 2: one seed has no standard error.")
    settings = SETTINGS[options.model]
    steps = settings.num_steps if options.steps is None else options.steps
    settings = replace(settings, num_steps=steps, seed=options.seed)
    model = new_model(settings.architecture, settings.seed)
    rows = []
    for row in pretrain(model, settings):
        rows.append(row)
        report(json.dumps(row))
    digest = save_checkpoint(model, options.folder)
    log = {"settings": asdict(settings), "sha256": digest, "rows": rows}
    (options.folder / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    if options.score_seeds:
        result = scores(options.folder, range(1000, 1000 + options.score_seeds))
        (options.folder / "scores.json").write_text(json.dumps(result, indent=1) + "\n")
        report(json.dumps(result, indent=1))
    report(f"saved to {options.folder}, sha256 {digest}")


if __name__ == "__main__" and __spec__ is not None:  # with `python -m`; in a notebook there is no __spec__
    main()
