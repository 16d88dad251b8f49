"""How far the estimate of lesson 24 is from what a process really grows by, over random configurations.

Each configuration is trained in a process of its own (forked, so that imports are paid once), after a warm-up by a tiny
model of the same family, which brings in the libraries' code. The growth is the high-water mark of the resident memory
over what it was before the model was made. Configurations are drawn from a seed; those that would grow by less than
40 MB, where a few megabytes of noise decide, or compute too long, are drawn anew, by the estimate's own count.
"""

import ctypes
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

import ftnb.adapters
import ftnb.more_strategies  # noqa: F401  # before forking
from ftnb.data import Batches
from ftnb.estimate import Estimate, estimate
from ftnb.step import Batch, Learner
from ftnb.strategies import NamedStrategy, strategy_from
from ftnb.tasks.image_classification import image_cross_entropy
from ftnb.tasks.text_classification import cross_entropy
from ftnb.tasks.text_generation import answer_loss, answer_tokens
from ftnb.train import Training

LEAST, MOST, MOST_FLOPS = 40e6, 1e9, 8e9  # bytes alive at the peak, operations of a micro-batch
NUM_EPOCHS, NUM_STEPS = 2, 3
STRATEGIES: dict[str, Any] = {
    "full": "full",
    "head": "head",
    "top-k": {"name": "top-k", "k": 1},
    "lora": "lora",
    "bitfit": "bitfit",
    "gradual": {"name": "gradual", "groups": 3},
}


@dataclass(frozen=True)
class Configuration:
    """One training: a family of models with its sizes, a batch, a strategy, how it computes."""

    family: str
    width: int
    depth: int
    batch_size: int
    strategy: str
    accumulation: int
    precision: str
    length: int  # tokens, pixels of a side, or samples
    vocabulary: int = 1000
    dropout: float = 0.0
    seed: int = 0

    def tiny(self) -> "Configuration":
        """The same in small, to warm up with."""
        length = {"vit": 32, "resnet": 32, "wav2vec2": 3200}.get(self.family, 8)
        strategy = "full" if self.strategy == "gradual" else self.strategy
        sizes = {"width": 8 if self.family == "resnet" else 64, "depth": 1, "batch_size": 2, "vocabulary": 100}
        return replace(self, length=length, strategy=strategy, accumulation=1, **sizes)


def draw(rng: random.Random) -> Configuration:
    """A random configuration."""
    family = rng.choice(["bert", "vit", "resnet", "wav2vec2", "lm"])
    widths = (32, 48, 64) if family == "resnet" else (128, 192, 256, 384, 512)
    lengths = {"bert": (32, 64, 128, 256), "lm": (32, 64, 128, 256), "wav2vec2": (8000, 16000, 32000)}
    strategies = [*STRATEGIES, "full"]
    strategy = rng.choice([name for name in strategies if (family, name) != ("lm", "bitfit")])  # it has no biases
    return Configuration(
        family,
        rng.choice(widths),
        rng.randint(2, 6),
        rng.choice([4, 8, 16, 32]),
        strategy,
        rng.choice([1, 1, 2]),
        rng.choice(["fp32", "fp32", "bf16"]),
        rng.choice(lengths.get(family, (64, 96, 128, 160))),
        rng.choice([1000, 8000, 30000]),
        rng.choice([0.0, 0.1]),
        rng.randrange(10**6),
    )


def model_of(c: Configuration) -> nn.Module:
    """The model, with random weights."""
    common = {
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.width // 32,
        "intermediate_size": 4 * c.width,
    }
    drop = {"hidden_dropout_prob": c.dropout, "attention_probs_dropout_prob": c.dropout}
    if c.family == "bert":
        return BertForSequenceClassification(BertConfig(vocab_size=c.vocabulary, num_labels=2, **common, **drop))
    if c.family == "lm":
        return LlamaForCausalLM(LlamaConfig(vocab_size=c.vocabulary, max_position_embeddings=512, **common))
    if c.family == "vit":
        return ViTForImageClassification(
            ViTConfig(image_size=c.length, patch_size=16 if c.length > 96 else 8, num_labels=10, **common, **drop)
        )
    if c.family == "resnet":
        sizes = [c.width, 2 * c.width, 4 * c.width, 8 * c.width]
        kinds = {"layer_type": "basic", "depths": [1 + c.depth // 3] * 4, "hidden_sizes": sizes}
        return ResNetForImageClassification(ResNetConfig(embedding_size=c.width, num_labels=10, **kinds))
    convolutions = {"conv_dim": (c.width // 2,) * 7, "num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 4}
    return Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(
            vocab_size=32, num_labels=10, mask_time_prob=0.0, classifier_proj_size=c.width, **common, **convolutions
        )
    )


class NoMetrics:
    """What the loop asks of metrics; each evaluation is the best so far."""

    main, higher_is_better = "count", True

    def __init__(self) -> None:
        self.count = 0.0

    def to(self, device: object) -> None:
        """Nothing to move."""

    def reset(self) -> None:
        """Nothing to forget."""

    def update(self, outputs: object, batch: object) -> None:
        """Nothing to count."""

    def compute(self) -> dict[str, float]:
        """One more than last time."""
        self.count += 1
        return {"count": self.count}


def collate_tokens(examples: list[np.ndarray], family: str) -> Batch:
    """Pad sequences; a language model answers with all but a third of them."""
    longest = max(map(len, examples))
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, example in enumerate(examples):
        ids[i, : len(example)], mask[i, : len(example)] = torch.from_numpy(example), 1
    batch = {"input_ids": ids, "attention_mask": mask}
    if family == "bert":
        return {**batch, "labels": ids[:, 0] % 2}
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : longest // 3] = -100
    return {**batch, "labels": labels, "num_answer_tokens": (labels[:, 1:] != -100).sum()}


def collate_noise(examples: list[int], shape: tuple[int, ...], key: str) -> Batch:
    """Noise in place of pictures or recordings."""
    generator = torch.Generator().manual_seed(examples[0])
    noise: Tensor = torch.randn(len(examples), *shape, generator=generator)
    return {key: noise, "labels": torch.tensor([example % 10 for example in examples])}


def learner_of(c: Configuration, device: str = "cpu") -> Learner:
    """Model and random data for a training; on the device "meta" the model has no weights."""
    torch.manual_seed(c.seed)
    rng = np.random.default_rng(c.seed)
    with torch.device(device):
        model = model_of(c)
    count, num_valid = c.batch_size * NUM_STEPS * c.accumulation, 2 * c.batch_size
    kinds: dict[str, Any] = {"shuffle": True, "seed": c.seed}
    if c.family in ("bert", "lm"):
        lengths = np.maximum(4, (c.length * rng.beta(2, 1.5, size=count + num_valid)).astype(int))
        lengths[0] = c.length
        examples: list[Any] = [rng.integers(5, c.vocabulary, size=n) for n in lengths]
        collate: Callable[[list[Any]], Batch] = partial(collate_tokens, family=c.family)
        kinds["lengths"] = lengths[:count].tolist()
        valid = Batches(examples[count:], collate, 2 * c.batch_size, lengths=lengths[count:].tolist())
    else:
        shape = (c.length,) if c.family == "wav2vec2" else (3, c.length, c.length)
        key = "input_values" if c.family == "wav2vec2" else "pixel_values"
        examples, collate = list(range(count)), partial(collate_noise, shape=shape, key=key)
        valid = Batches(list(range(num_valid)), collate, 2 * c.batch_size)
    heads = ("classifier", "lm_head", "projector")
    own: dict[str, Any] = {"weight": answer_tokens} if c.family == "lm" else {}
    losses = {"lm": answer_loss, "vit": image_cross_entropy, "resnet": image_cross_entropy}
    return Learner(
        model,
        Batches(examples[:count], collate, c.batch_size, **kinds),
        valid,
        losses.get(c.family, cross_entropy),
        NoMetrics(),  # type: ignore[arg-type]
        new_parameters=frozenset(name for name, _ in model.named_parameters() if name.startswith(heads)),
        **own,
    )


def strategy_of(c: Configuration) -> NamedStrategy:
    """The strategy."""
    return strategy_from(STRATEGIES[c.strategy])


def settings_of(c: Configuration, num_epochs: int = NUM_EPOCHS) -> dict[str, Any]:
    """The numbers of the training."""
    same = {"lr": 1e-4, "device": "cpu", "precision": c.precision, "accumulation": c.accumulation}
    return {**same, "num_epochs": num_epochs}


def train(c: Configuration, num_epochs: int = NUM_EPOCHS) -> None:
    """Make the model and train it."""
    for _ in Training(learner_of(c), strategy_of(c), **settings_of(c, num_epochs)):
        pass


def resident(what: str) -> int:
    """A line of /proc/self/status, in bytes: VmRSS is what is resident, VmHWM the most that was."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {what}")


def growth(c: Configuration) -> int:
    """By how many bytes this process grows while it trains; to be asked once in a process's life."""
    train(c.tiny(), 1)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the old high-water mark
    train(c)
    return resident("VmHWM") - before


def estimated(c: Configuration) -> tuple[Estimate, float]:
    """The estimate, and how many seconds it took."""
    learner, strategy = learner_of(c, "meta"), strategy_of(c)
    begin = time.perf_counter()
    return estimate(learner, strategy, **settings_of(c)), time.perf_counter() - begin


def serve(function: Callable[[Any], Any], pipe: Connection) -> NoReturn:
    """Answer questions until the other end is closed; an answer is (error or "", result)."""
    try:
        while True:
            question = pipe.recv()
            try:
                pipe.send(("", function(question)))
            except Exception:  # noqa: BLE001  # told to the asker
                pipe.send((traceback.format_exc(), None))
    except EOFError:
        os._exit(0)


class Worker:
    """A forked process that answers questions, for use in a `with` block."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.pipe, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self.pipe.close()
            serve(function, theirs)
        theirs.close()

    def __call__(self, question: Any) -> Any:
        """Ask."""
        self.pipe.send(question)
        error, answer = self.pipe.recv()
        if error:
            raise RuntimeError(f"{question}: {error}")
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        os.waitpid(self.pid, 0)


def fits(found: Estimate, limits: SimpleNamespace) -> bool:
    """Whether a configuration is large enough to be measured and small enough to be run."""
    worst = found.worst
    return bool(limits.least <= worst.peak <= limits.most and worst.flops[0] <= limits.most_flops)


def rows(
    configs: int, seed: int, say: Callable[[str], object], limits: SimpleNamespace
) -> Iterator[tuple[Configuration, Estimate, int, float]]:
    """Configurations with their estimates, the growths that were measured, and the estimates' seconds."""
    rng, count, begin = random.Random(seed), 0, time.perf_counter()
    with Worker(estimated) as ask:
        while count < configs:
            c = draw(rng)
            found, seconds = ask(c)
            if not fits(found, limits):
                continue
            with Worker(growth) as measure:
                grown = measure(c)
            count += 1
            off = found.point / grown - 1
            over = " exceeded!" if grown > found.bound else ""
            say(f"{count} {time.perf_counter() - begin:.0f} s {c}: {grown / 1e6:.0f} MB, {off:+.0%}{over}")
            yield c, found, grown, seconds


def estimate_table(
    configs: int = 120,
    seed: int = 2024,
    *,
    say: Callable[[str], object] = print,
    least: float = LEAST,
    most: float = MOST,
    most_flops: float = MOST_FLOPS,
) -> dict[str, Any]:
    """The table "estimate" of `bench.json`.

    Args:
        configs: how many configurations.
        seed: what they are drawn from.
        say: told of every configuration.
        least: bytes alive at the peak, below which one is drawn anew.
        most: bytes above which one is drawn anew.
        most_flops: operations of a micro-batch above which one is drawn anew.

    Returns:
        "cpu_median_error" of the point estimates with its quartiles as "_range", "safe_bound_exceeded" as a share of
        the "configs", by how much the bound is above what was measured ("bound_over_measured", a median ratio), the
        slowest estimate's "seconds", and "by_family" and "by_strategy" the median errors.
    """
    arguments = {"configs": configs, "seed": seed, "least": least, "most": most, "most_flops": most_flops}
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.estimate", json.dumps(arguments)]
    root, result = Path(__file__).parents[2], ""  # a process that trained before cannot fork
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, env=one_thread()) as process:
        assert process.stdout is not None
        for line in process.stdout:
            say(result.rstrip()) if result else None
            result = line
    if process.returncode:
        raise RuntimeError(f"the measuring process ended with {process.returncode}: {result}")
    table: dict[str, Any] = json.loads(result)
    return table


def one_thread() -> dict[str, str]:
    """The environment of the measuring process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def table_of(configs: int, seed: int, least: float, most: float, most_flops: float) -> dict[str, Any]:
    """`estimate_table`, in this process, which must not have trained."""
    torch.set_num_threads(1)

    def say(line: str) -> None:
        print(line, flush=True)

    transformers.utils.logging.set_verbosity_error()
    limits = SimpleNamespace(least=least, most=most, most_flops=most_flops)
    found = list(rows(configs, seed, say, limits))
    errors = [abs(e.point / grown - 1) for _, e, grown, _ in found]
    seconds = [s for *_, s in found]

    def median_by(what: str) -> dict[str, float]:
        names = sorted({getattr(c, what) for c, *_ in found})
        of = {n: [x for x, (c, *_) in zip(errors, found, strict=True) if getattr(c, what) == n] for n in names}
        return {name: statistics.median(values) for name, values in of.items()}

    return {
        "cpu_median_error": statistics.median(errors),
        "cpu_median_error_range": [float(np.quantile(errors, q)) for q in (0.25, 0.75)],
        "cpu_error_90": float(np.quantile(errors, 0.9)),
        "safe_bound_exceeded": sum(grown > e.bound for _, e, grown, _ in found) / len(found),
        "bound_over_measured": statistics.median(e.bound / grown for _, e, grown, _ in found),
        "seconds": max(seconds),
        "seconds_median": statistics.median(seconds),
        "configs": len(found),
        "seed": seed,
        "by_family": median_by("family"),
        "by_strategy": median_by("strategy"),
        "by_precision": median_by("precision"),
    }


if __name__ == "__main__":
    print(json.dumps(table_of(**json.loads(sys.argv[1]))), flush=True)
