# %% [markdown]
# # Snapshots
#
# > A training on the disk: whole or not there at all, checked before it is used, and exact to go on from.
#
# At the end you can kill a training at any moment and go on as if nothing had happened, say which guarantee that is and where it ends, and find the flaw in other people's checkpoints. Runs in about 20 s on a CPU.

# %%
#| default_exp snapshots

# %%
#| export
import contextlib
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ftnb.data import Batches
from ftnb.durable import make_folder
from ftnb.plan import TrainingError
from ftnb.runfolder import write_folder
from ftnb.state_checks import impossible, unlike
from ftnb.step import seed_generators
from ftnb.train import Training

# %%
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from unittest.mock import patch

import matplotlib.pyplot as plt

from ftnb.events import Changed, Stepped, read_journal, what_counts

# %% [markdown]
# ## What has to be in it
#
# A *checkpoint* usually means the weights. To go on from it exactly, one needs more: Adam's moments, the schedule's place, which examples of the epoch were seen, the dice of dropout and augmentation, the best model so far. Lesson 19 put all of that into `training.state_dict()`; lesson 16 made the dice a function of (seed, step, micro-batch), so that of them only the seed has to be kept.
#
# What is left is to get this on a disk and back. The format: tensors in safetensors files, one for each of model, optimizer and best model; everything else in `state.json`. No pickle, because unpickling a file from elsewhere can run any program that somebody put there. Here is the taking apart, and its inverse:

# %%
#| export
class SnapshotError(ValueError):
    """A snapshot that cannot be written, is damaged, or belongs to another training."""


class DamagedError(SnapshotError):
    """A snapshot that is not what was written; an older one may do."""


def take_apart(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Plain data for JSON; tensors are put into `tensors` by their path, and leave a note in their place."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):  # as pairs: an optimizer's keys are numbers, JSON's are texts
        return {"dict": [[key, take_apart(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [take_apart(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    return value


def put_together(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `take_apart`; tuples come back as lists."""
    if isinstance(plain, list):
        return [put_together(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    return tensors[plain["tensor"]] if "tensor" in plain else {k: put_together(v, tensors) for k, v in plain["dict"]}

# %%
found: dict[str, Tensor] = {}
plain = take_apart({"step": 3, "moments": {0: torch.ones(2)}}, "state", found)
json.dumps(plain), list(found)

# %%
assert put_together(json.loads(json.dumps(plain)), found)["moments"][0] is found["state/moments/0"]

# %% [markdown]
# ## What has to be known of the rest
#
# What no phase trains is not written: with LoRA on a large model that is nearly everything. Going on then needs the *same* frozen weights, and the same examples, or the result is quietly wrong. So the snapshot holds a fingerprint of both: of every tensor that stays as it was, and of the data. A table's numbers are all in it; of other data only 16 examples, as the model sees them, so a change between those stays unseen.

# %%
#| export
def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of tensors: their names, types, shapes and every bit."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(bits.numpy().data)
    return digest.hexdigest()


def data_fingerprint(batches: Batches, num_probes: int = 16) -> str:
    """A hash of what is trained on: every number of a `datasets` table, and some examples as batches of one.

    Large data is not read as a whole: of pictures and recordings, only the evenly spaced probes are looked at. The
    generator of random numbers stays as it was.
    """
    examples = batches.examples
    seen: dict[str, Tensor] = {"size": torch.tensor([len(examples), batches.batch_size])}
    if isinstance(examples, Dataset):
        numbers = [name for name, kind in examples.features.items() if not _has_text(kind)]
        seen |= {name: torch.frombuffer(_table_hash(examples, name), dtype=torch.uint8) for name in numbers}
    with torch.random.fork_rng(devices=[]):
        for i in sorted({i * len(examples) // num_probes for i in range(num_probes)}):
            seed_generators(torch.device("cpu"), i)  # random augmentation
            batch = batches.collate([examples[i]])
            seen |= {f"{i} {key} {j}": t for key, value in batch.items() for j, t in enumerate(_tensors_in(value))}
    return fingerprint(seen)


def _table_hash(examples: Dataset, column: str) -> bytearray:
    digest = hashlib.blake2b(digest_size=16)
    for rows in examples.select_columns([column]).with_format("arrow").iter(10_000):
        digest.update(str(rows[column].to_pylist()).encode())
    return bytearray(digest.digest())


def _has_text(kind: Any) -> bool:
    """Whether a column holds texts, paths or files: what its numbers come from, and not the same on every machine."""
    inner = getattr(kind, "feature", None)
    if inner is not None:
        return _has_text(inner)
    return not str(getattr(kind, "dtype", "")).startswith(("int", "float", "bool"))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item)


def trained_names(training: Training) -> set[str]:
    """The parameters that some phase trains, and all buffers."""
    trained = {parameter for phase in training.phases for parameter in phase.trainable}
    names = {name for name, parameter in training.model.named_parameters() if parameter in trained}
    return names | {name for name, _ in training.model.named_buffers()}

# %% [markdown]
# ## Writing it
#
# The order is everything. A folder under a waiting name is filled, every file is put on the disk (`fsync`), then the folder gets its name in one indivisible `rename` ([ftnb/runfolder.py](../ftnb/runfolder.py)). Only when that is through are older snapshots removed. `manifest.json` holds a hash of every file: a disk does not always give back what it was given.

# %%
#| export
FORMAT = 1
STATE, MANIFEST = "state.json", "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")


def write_state(state: dict[str, Any], folder: Path) -> None:
    """Write a state into an existing folder: one safetensors file for each entry that has tensors, JSON, a manifest."""
    tensors: dict[str, Tensor] = {}
    plain = {key: take_apart(value, key, tensors) for key, value in state.items()}
    for part in sorted({path.partition("/")[0] for path in tensors}):
        of_part = {path: t for path, t in tensors.items() if path.partition("/")[0] == part}
        save_file(_separate(of_part), folder / f"{part}.safetensors")
    (folder / STATE).write_text(json.dumps(plain), encoding="utf-8", newline="\n")
    files = {path.name: _hash(path) for path in sorted(folder.iterdir())}
    manifest = json.dumps({"format": FORMAT, "files": files}, indent=1)
    (folder / MANIFEST).write_text(manifest, encoding="utf-8", newline="\n")


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors wants them: on the CPU, contiguous, no two in the same memory."""
    seen: set[int] = set()
    result = {}
    for name, given in tensors.items():
        tensor = given.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return result


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _whole(digits: str) -> int:
    """A whole number of 64 bits at most; a larger one is no state's, and would surface in some later calculation."""
    if not -(2**63) <= (number := int(digits)) < 2**63:
        raise ValueError("a whole number of more than 64 bits")
    return number


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Whatever a snapshot's content lets go wrong inside the `with` block is damage of the snapshot.

    Raises:
        DamagedError: naming the folder and the cause.
    """
    try:
        yield
    except (SnapshotError, TrainingError):
        raise
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, SafetensorError
    ) as error:
        raise DamagedError(f"{folder} cannot be read: {type(error).__name__}: {error}"[:500]) from None


def read_state(folder: Path) -> dict[str, Any]:
    """Read what `write_state` wrote; every file is checked against its hash before it is looked at.

    Raises:
        DamagedError: if a file is missing or changed, or the format is a newer one.
    """
    with readable(folder):
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise DamagedError(f"{folder} has format {manifest['format']!r}, this ftnb reads {FORMAT}. Upgrade ftnb.")
        names = {str(name) for name in manifest["files"]}
        if {path.name for path in folder.iterdir()} != names | {MANIFEST} or STATE not in names:
            raise DamagedError(f"{folder} does not hold the files that its {MANIFEST} names.")
        for name in sorted(names):
            if _hash(folder / name) != manifest["files"][name]:
                raise DamagedError(f"{folder / name} is damaged: its content is not what was written.")
        plain = json.loads((folder / STATE).read_text(encoding="utf-8"), parse_int=_whole)
        tensors: dict[str, Tensor] = {}
        for name in sorted(names - {STATE}):
            tensors |= load_file(folder / name)
        return {key: put_together(value, tensors) for key, value in plain.items()}

# %% [markdown]
# ## The snapshots of a run
#
# A run keeps the newest two by default: one to go on from, one in case the first is damaged. How much disk they may take is a setting; one that does not fit is an error before anything is written.

# %%
#| export
@dataclass(frozen=True)
class Restored:
    """What a training goes on from: the step, what was passed over as damaged, and what is no longer the same."""

    step: int
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Snapshots:
    """The snapshots of one training in a folder.

    Attributes:
        folder: where they lie; made with the first one.
        keep: how many of the newest stay.
        max_bytes: how much room those that stay may take together; None is no limit but the disk's.
        always: steps whose snapshots stay in any case: those that a branch began with.
    """

    folder: Path
    keep: int = 2
    max_bytes: int | None = None
    always: frozenset[int] = frozenset()
    _known: dict[str, Any] = field(default_factory=dict, repr=False)  # fingerprints: they do not change

    def steps(self) -> list[int]:
        """The steps of the snapshots that are there, oldest first."""
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir()) if self.folder.is_dir() else ()
        return sorted(int(name[1]) for name in names if name)

    def path(self, step: int) -> Path:
        """Where the snapshot of a step is."""
        return self.folder / f"step-{step:08d}"

    def save(self, training: Training) -> Path:
        """Write the training as it was after its last completed step; then remove what is more than `keep`.

        Returns:
            The snapshot's folder. One of the same step is left as it is.

        Raises:
            SnapshotError: if there is not enough room.
            OSError: if it cannot be written; the older snapshots are untouched.
        """
        target = self.path(training.position.step)
        if not target.exists():
            state = self._state(training)
            self._need_room(state)
            make_folder(self.folder)
            write_folder(lambda folder: write_state(state, folder), target)
        self._prune()
        return target

    def load(self, training: Training, step: int | None = None) -> Restored:
        """Bring a training to where a snapshot was taken: the newest that is whole, or the one of a step.

        Raises:
            SnapshotError: if there is none that is whole, or data or frozen weights are not those of the snapshot.
            TrainingError: if the model or the settings are others.
        """
        skipped: list[str] = []
        for at in reversed(self.steps() if step is None else [step]):
            try:
                state = read_state(self.path(at))
                with readable(self.path(at)):
                    self._same(training, state["same"])
                    notes = self._apply(training, state)
            except DamagedError as error:
                skipped.append(str(error))
                continue
            return Restored(at, tuple(skipped), tuple(notes))
        raise SnapshotError(" ".join([f"there is no snapshot to go on from in {self.folder}.", *skipped]))

    def _state(self, training: Training) -> dict[str, Any]:
        state, names = training.state_dict(copied=False), trained_names(training)
        best_is_here = state["best"]["step"] == state["position"]["step"]
        state["model"] = {name: tensor for name, tensor in state["model"].items() if name in names}
        state["best"] = {**state["best"], "weights": {} if best_is_here else state["best"]["weights"]}
        same, versions = self._fingerprints(training), made_with(training)
        return {**state, "best_is_here": best_is_here, "same": same, "made_with": versions}

    def _fingerprints(self, training: Training) -> dict[str, str]:
        if self._known.get("training") is not training:
            names = trained_names(training)
            frozen = {name: p for name, p in training.model.named_parameters() if name not in names}
            data = data_fingerprint(training.plain.train)
            self._known = {"training": training, "weights": fingerprint(frozen), "data": data}
        return {what: self._known[what] for what in ("weights", "data")}

    def _same(self, training: Training, theirs: dict[str, str]) -> None:
        """Raise if what a snapshot does not hold is not what it was."""
        mine = self._fingerprints(training)
        if mine["weights"] != theirs["weights"]:
            raise SnapshotError("the frozen weights are not those of the snapshot. Was the pretrained model replaced?")
        if mine["data"] != theirs["data"]:
            raise SnapshotError("the training data is not that of the snapshot. Put back the files as they were.")

    def _apply(self, training: Training, state: dict[str, Any]) -> list[str]:
        """Load a state that was read; returns notes on what differs without forbidding it."""
        names, own = trained_names(training), training.state_dict(copied=False)["model"]
        best = {**state["best"], "weights": state["model"]} if state["best_is_here"] else state["best"]
        training.load_state_dict({**state, "best": best, "model": own | state["model"]})
        wrong = unlike(state["model"], own, names)
        if problems := ([wrong] if wrong is not None else []) + list(impossible(training, names)):
            raise ValueError(f"no training came to this: {', '.join(problems)}")
        then, now = state["made_with"], made_with(training)
        return [f"{what}: {then.get(what)} then, {now[what]} now" for what in now if then.get(what) != now[what]]

    def _need_room(self, state: dict[str, Any]) -> None:
        tensors: dict[str, Tensor] = {}
        take_apart(state, "", tensors)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self.max_bytes is not None and size > self.max_bytes:
            raise SnapshotError(f"a snapshot takes {size / 1e6:.1f} MB and {self.max_bytes / 1e6:.1f} MB are allowed.")
        place = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        if (free := shutil.disk_usage(place).free) < size * 1.05:
            raise SnapshotError(f"a snapshot takes {size / 1e6:.1f} MB and {place} has {free / 1e6:.1f} MB left.")

    def _prune(self) -> None:
        """Remove the oldest as long as there are too many or they take too much room; the newest stays."""
        passing = [step for step in self.steps() if step not in self.always]
        sizes = {step: sum(path.stat().st_size for path in self.path(step).iterdir()) for step in passing}
        while len(sizes) > max(1, self.keep) or (len(sizes) > 1 and sum(sizes.values()) > (self.max_bytes or math.inf)):
            del sizes[step := min(sizes)]
            doomed = self.folder / f".{self.path(step).name}.old"  # renamed first: half of one is never under its name
            shutil.rmtree(doomed, ignore_errors=True)
            self.path(step).rename(doomed)
        for left in self.folder.glob(".step-*"):  # also what an earlier crash left behind
            shutil.rmtree(left, ignore_errors=True)


def made_with(training: Training) -> dict[str, Any]:
    """What "bitwise" depends on beside the state."""
    names = ("torch", "transformers")
    where = {"device": training.device.type, "precision": training.precision, "threads": torch.get_num_threads()}
    return {**{name: version(name) for name in names}, **where}

# %% [markdown]
# ## A toy that two processes share
#
# Killing is only convincing when it is a process that dies. So the toy of lesson 18 (points, a small network with dropout, 400 examples) goes into a file, and a script trains it, with a snapshot every 20 steps. Each life is a process of its own; it goes on from the newest snapshot, if there is one. The script's first argument is a folder, the others say at which step each life kills itself, with the signal that nobody can catch.

# %%
TOY = """
import torch, torch.nn.functional as F
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from ftnb.data import Batches
from ftnb.metrics import Metrics
from ftnb.step import Learner
from ftnb.train import Training

def points(n, seed):
    X = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return [{"x": x, "labels": y} for x, y in zip(X, (X[:, 0] + X[:, 1] > 0).long())]

def stack(examples):
    return {name: torch.stack([e[name] for e in examples]) for name in examples[0]}

def loss(model, batch):
    logits = model(batch["x"])
    return F.cross_entropy(logits, batch["labels"]), logits

def toy_training(seed=0, **settings):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 2))
    accuracy = MetricCollection({"accuracy": MulticlassAccuracy(2, average="micro")})
    metrics = Metrics(accuracy, lambda logits, batch: (logits, batch["labels"]), main="accuracy")
    train, valid = Batches(points(400, 0), stack, 8, shuffle=True, seed=0), Batches(points(200, 1), stack, 64)
    learner = Learner(model, train, valid, loss, metrics)
    return Training(learner, **{"lr": 1e-2, "num_epochs": 4, "device": "cpu", **settings})
"""

SCRIPT = """
import multiprocessing, os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from ftnb.events import Changed, Journal, Stepped
from ftnb.snapshots import Snapshots
from toy import toy_training

def live(folder, dies_at):
    torch.set_num_threads(1)
    training, snapshots, journal = toy_training(), Snapshots(folder / "snapshots"), Journal(folder / "events.jsonl")
    if snapshots.steps():
        step = snapshots.load(training).step
        journal.append(Changed(step=step, what="restored", new=step))
    for event in training:
        journal.append(event)
        if isinstance(event, Stepped) and event.step % 20 == 0:
            snapshots.save(training)
        if isinstance(event, Stepped) and event.step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    save_file(training.model.state_dict(), folder / "weights.safetensors")

if __name__ == "__main__":
    # A forked process has all that is imported already, and nothing of another life; other systems start it anew.
    processes = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    for dies_at in sys.argv[2:]:
        life = processes.Process(target=live, args=(Path(sys.argv[1]), int(dies_at)))
        life.start()
        life.join()
        print(life.exitcode)
"""

# %%
torch.set_num_threads(1)
place = Path(tempfile.mkdtemp())
(place / "toy.py").write_text(TOY)
(place / "script.py").write_text(SCRIPT)
sys.path.insert(0, str(place))
toy_training = import_module("toy").toy_training

training = toy_training()
for _ in range(30):
    training.step()
snapshots = Snapshots(place / "first", keep=3)
path = snapshots.save(training)
[(file.name, file.stat().st_size) for file in sorted(path.iterdir())]

# %% [markdown]
# A fresh training, with other weights in it, goes on from there:

# %%
other = toy_training(seed=7)
restored = snapshots.load(other)
restored.step, torch.equal(other.model[0].weight, training.model[0].weight), other.step().step

# %%
assert restored.step == 30 and not restored.skipped and not restored.notes

# %% [markdown]
# What does not fit is refused, before a step is taken: other settings, other data (here in the first example, one of the 16), other frozen weights.

# %%
refused = []
wrong = toy_training()
wrong.learner.train.examples[0]["labels"] = 1 - wrong.learner.train.examples[0]["labels"]
for attempt in (toy_training(accumulation=2), wrong):
    try:
        snapshots.load(attempt)
    except (SnapshotError, TrainingError) as error:
        refused.append(str(error))
refused

# %%
assert "accumulation" in refused[0] and "training data" in refused[1]

# %% [markdown]
# And what a disk gives back damaged is noticed and passed over; so is content that no training could have come to, since a hash proves that a file is what was written, not that it makes sense. One bit of the newest snapshot is flipped here:

# %%
for _ in range(5):
    training.step()
newest = snapshots.save(training) / "model.safetensors"
damaged = bytearray(newest.read_bytes())
damaged[500] ^= 1
newest.write_bytes(bytes(damaged))
restored = snapshots.load(toy_training())
restored.step, restored.skipped[0].rpartition("/")[2]

# %%
assert restored.step == 30 and "damaged" in restored.skipped[0]

# %% [markdown]
# ## The experiment: killed three times
#
# **Claim.** A training that is killed, at steps that have nothing to do with its snapshots, and started again each time, ends with the weights of one that was left alone, bit for bit. One differing bit would refute it. (Another number of threads, another device or another version of torch may add up in another order; `Restored.notes` then says so.)

# %%
def lives(folder: Path, *die_at: int) -> list[int]:
    """The exit codes of processes that trained one after the other."""
    folder.mkdir(exist_ok=True)
    words = [sys.executable, str(place / "script.py"), str(folder), *map(str, die_at)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return [int(code) for code in subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout.split()]

# %% [markdown]
# The training that is left alone runs here, in the notebook's own process.

# %%
endings = lives(place / "killed", 33, 95, 158, -1)
left_alone = toy_training()
for _ in left_alone:
    pass
killed, alone = load_file(place / "killed" / "weights.safetensors"), left_alone.model.state_dict()
difference = max((killed[name] - alone[name]).abs().max().item() for name in alone)
endings, difference

# %%
assert endings[-1] == 0 and all(code != 0 for code in endings[:3]) and difference == 0.0

# %%
events = read_journal(place / "killed" / "events.jsonl")
parts, redone = [[]], 0
for event in events:
    if isinstance(event, Changed) and event.what == "restored":
        redone += parts[-1][-1].step - event.step
        parts.append([])
    elif isinstance(event, Stepped):
        parts[-1].append(event)
fig, ax = plt.subplots(figsize=(6.5, 3), dpi=80)
for i, steps in enumerate(parts):
    ax.plot([e.step for e in steps], [e.loss for e in steps], color=f"C{i}", linewidth=1, alpha=0.8, label=f"life {i + 1}: steps {steps[0].step} to {steps[-1].step}")
    ax.axvline(steps[-1].step, color=f"C{i}", linestyle=":" if i < 3 else "-", linewidth=1)
ax.set(xlabel="step", ylabel="training loss", title=f"Killed at the dotted lines; {redone} steps done twice")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, fontsize=8)
fig.tight_layout()
plt.show()

# %% [markdown]
# The lives overlap: what came after the last snapshot is done twice, and here at most 20 steps can be lost that way. In the journal both are written down; `what_counts` of lesson 13 gives the curve of one training:

# %%
counted = [event.step for event in what_counts(events) if isinstance(event, Stepped)]
redone, counted == list(range(1, 201))

# %%
assert redone < 3 * 20 and counted == list(range(1, 201))

# %% [markdown]
# ## The second experiment: every moment of a crash
#
# Three kills hit three moments. To test them all, the disk is photographed: each time the program puts something on the disk, renames or removes something, the whole folder is copied, as a crash would leave it. Two habits of other programs are photographed beside ours. The first writes over its one checkpoint. The second keeps the last *n*, and makes room *before* it writes; accelerate's `total_limit` does it in this order.
#
# **Claim.** From every photograph of ours a training can go on. Of the other two, some photographs hold nothing.

# %%
def photographs(save: Callable[[Path], object], folder: Path) -> list[Path]:
    pictures: list[Path] = []

    def seen(act: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*arguments: object, **options: object) -> object:
            pictures.append(folder.with_name(f"{folder.name}-{len(pictures)}"))
            shutil.copytree(folder, pictures[-1])
            return act(*arguments, **options)

        return wrapper

    remove = shutil.rmtree
    with patch("os.fsync", seen(os.fsync)), patch("os.rename", seen(os.rename)), patch("shutil.rmtree", seen(remove)):
        save(folder)
    return pictures

def in_place(folder: Path) -> None:  # two syncs: in the middle of the file, and at its end
    content = (folder / "step-00000010" / "model.safetensors").read_bytes()
    with open(folder / "step-00000010" / "model.safetensors", "wb") as file:
        for half in (content[: len(content) // 2], content[len(content) // 2 :]):
            os.fsync(file.fileno())
            file.write(half)
            file.flush()
        os.fsync(file.fileno())

def room_first(folder: Path, keep: int = 1) -> None:
    shutil.rmtree(folder / "step-00000010")
    Snapshots(folder, keep).save(training)

def usable(folder: Path) -> bool:
    try:
        return Snapshots(folder).load(toy_training()).step > 0
    except SnapshotError:
        return False

def share_usable(save: Callable[[Path], object]) -> tuple[int, int]:
    folder = Path(tempfile.mkdtemp()) / "photo"
    early = toy_training()
    for _ in range(10):
        early.step()
    Snapshots(folder).save(early)
    pictures = photographs(save, folder)
    return sum(map(usable, pictures)), len(pictures)

# %%
ways = {"one, written over": in_place, "room first (keep 1)": room_first, "ours (keep 1)": lambda folder: Snapshots(folder, 1).save(training)}
table = {name: share_usable(save) for name, save in ways.items()}
table

# %%
assert table["ours (keep 1)"][0] == table["ours (keep 1)"][1] >= 8
assert all(good < total for good, total in (table["one, written over"], table["room first (keep 1)"]))

# %% [markdown]
# A photograph shows what a killed *process* leaves. A power cut takes more: of what was not synced, any part may be missing, and a new name in a folder is certain only when the folder itself was synced. `make chaos` notes every operation of a training and builds what each cut could leave, by POSIX's rules alone; that found three names that were not certain (a new run's recipe, its journal, the folder of its snapshots), and they are synced now. It also injects full disks, torn files, flipped bits and read-only folders, and kills whole runs for real; the figures are in `tests/chaos/chaos.json`.
#
# ## What it costs
#
# A snapshot of an AdamW training is three times as large as what trains (weights and two moments), four times if the best weights so far are others; and `fsync` waits for the disk:

# %%
begin = time.perf_counter()
training.step()
step_seconds = time.perf_counter() - begin
begin = time.perf_counter()
Snapshots(place / "cost").save(training)
f"{(time.perf_counter() - begin) / step_seconds:.1f} steps of this toy"

# %% [markdown]
# So a run does not take one at every step. By default it goes by the clock ([lesson 52](52_background.ipynb)); `snapshot_every=100` in a recipe fixes the steps.
#
# ## The promise, and where it ends
#
# | what | in a notebook, on a CPU | on a GPU (not tested yet) |
# |---|---|---|
# | going on after a pause, a stop, an error, a kill: the same bits | yes, same versions and threads | expected with deterministic kernels only |
# | in the middle of an epoch, of accumulation, of a phase | yes | as above |
# | after a live change of the rate | yes, if a snapshot was taken since; else the change is lost with its steps | as above |
# | a damaged newest snapshot | falls back, says so | the same |
# | other data, weights or settings | refused before training | the same |
#
# ## The story: a resume that was not one
#
# A resumed training mostly looks well: the loss goes on where it was. That hides what was lost. Measured by us, with a kill in the middle of an epoch: transformers' Trainer resumed to the same weights, but was off by 4e-3 as soon as the examples were augmented at random; the recipe that accelerate documents by 1.4e-2, Lightning by 1.6e-2 (the order of the examples or the dice were not restored). With the newest checkpoint damaged, the Trainer raised an error and had no older one to try. Here is the smallest version, the usual two files, weights and moments, without the place in the data:

# %%
def resumed(everything: bool) -> tuple[Tensor, list[float]]:
    training = toy_training()
    for _ in range(30):
        training.step()
    state = training.state_dict()
    if not everything:
        state["position"] = {**state["position"], "batch": 0}
    again = toy_training()
    again.load_state_dict(state)
    losses = [event.loss for event in again if isinstance(event, Stepped)]
    return torch.cat([p.detach().flatten() for p in again.model.parameters()]), losses

(right, right_losses), (usual, usual_losses) = resumed(everything=True), resumed(everything=False)
f"weights differ by up to {(right - usual).abs().max():.2f}, the last losses are {right_losses[-1]:.3f} and {usual_losses[-1]:.3f}"

# %%
assert (right - usual).abs().max() > 1e-3

# %% [markdown]
# ## Exercises
#
# **1 (easy).** Write `steps_done_twice`: how many steps a training did twice because it was killed, from its journal.

# %% tags=["exercise"]
def steps_done_twice(events: list) -> int:
    ...  # your code here

# %% tags=["solution"]
def steps_done_twice(events: list) -> int:
    steps = [event.step for event in events if isinstance(event, Stepped)]
    return len(steps) - len(set(steps))

# %%
assert steps_done_twice(events) == redone

# %% [markdown]
# **2 (medium).** Keep the newest two snapshots *and* one of every fiftieth step, for branching later. Write a subclass of `Snapshots` with another `_prune`.

# %% tags=["exercise"]
class WithMilestones(Snapshots):
    def _prune(self) -> None:
        ...  # your code here

# %% tags=["solution"]
class WithMilestones(Snapshots):
    def _prune(self) -> None:
        passing = [step for step in self.steps() if step % 50 != 0]
        for step in passing[: -self.keep]:
            shutil.rmtree(self.path(step))

# %%
again, milestones = toy_training(), WithMilestones(place / "milestones")
while (event := again.step()) is not None:
    if event.step % 20 == 0 or event.step % 50 == 0:
        milestones.save(again)
assert milestones.steps() == [50, 100, 150, 160, 180, 200]

# %% [markdown]
# ## Summary
# - To go on exactly takes weights, moments, schedule, place in the data, dice, best model. `training.state_dict()` has it all.
# - On a disk: fill a folder under another name, sync, rename, and only then remove the old one. Hash what was written, check before use.
# - Frozen weights are not copied but fingerprinted, and so is the data, large data by samples: going on with others is refused.
# - A kill costs what came after the last snapshot, and no bit more.
#
# **What next:** lesson 52 takes snapshots while a training runs in the background, and `run.resume()` of lesson 53 goes on from them, also in another process. **Sources:** `fsync(2)`, `rename(2)`; Pillai et al. (2014), "All file systems are not created equal: on the complexity of crafting crash-consistent applications"; safetensors' format; huggingface/accelerate's `ProjectConfiguration(total_limit)`.
