# Exported from nbs/51_snapshots.py: edit the lesson, then run `make export`.
"""A training on the disk: whole or not there at all, checked before it is used, and exact to go on from."""

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

__all__ = [
    "SnapshotError",
    "DamagedError",
    "take_apart",
    "put_together",
    "fingerprint",
    "data_fingerprint",
    "trained_names",
    "FORMAT",
    "STATE",
    "MANIFEST",
    "write_state",
    "readable",
    "read_state",
    "Restored",
    "Snapshots",
    "made_with",
]


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
