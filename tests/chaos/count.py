"""What came of faults, counted; and where trainings lie that are disturbed on purpose."""

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from ftnb.background import RunError
from ftnb.events import JournalError
from ftnb.plan import TrainingError
from ftnb.snapshots import SnapshotError

FAMILIES = (SnapshotError, JournalError, TrainingError, RunError, OSError)


@dataclass
class Count:
    """What came of the faults; the first four are those of `chaos.json`.

    Attributes:
        injected: faults tried.
        runs_lost: a snapshot was committed, and the training could not go on, or ended with other weights.
        without_valid_snapshot: after the first was committed, there was a moment without one that can be read.
        intervals_lost_max: of the work between two snapshots, how much had to be done again at most.
        stopped_early: a training that did not come to its end though only the disk was ill.
        by_kind: faults tried, by kind.
        failures: what went wrong, for whoever mends it.
    """

    injected: int = 0
    runs_lost: int = 0
    without_valid_snapshot: int = 0
    intervals_lost_max: int = 0
    stopped_early: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, kind: str, **what: int) -> None:
        """Count one fault; `lost` intervals are a maximum, the rest sums."""
        self.injected += 1
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
        for name, number in what.items():
            largest = name == "intervals_lost_max"
            setattr(self, name, max(getattr(self, name), number) if largest else getattr(self, name) + number)

    def figures(self) -> dict[str, int]:
        """The entries of `chaos.json`."""
        names = ("injected", "runs_lost", "without_valid_snapshot", "intervals_lost_max")
        return {name: getattr(self, name) for name in names}


def place() -> tempfile.TemporaryDirectory[str]:
    """A folder for trainings, in memory where there is such a file system."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None)
