"""Faults while a training runs: the power goes, the disk is full, files are damaged, the folder is read-only."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from torch import Tensor

from ftnb.events import Stepped
from ftnb.runfolder import JOURNAL, SNAPSHOTS
from ftnb.snapshots import Snapshots
from tests.chaos.count import FAMILIES, Count, place
from tests.chaos.disk import Disk
from tests.chaos.power import Operation, Tree, cut
from tests.chaos.toy import EVERY, Toy, fresh, quietly, reference, same, whole_steps


@dataclass
class Recorded:
    """A training that ran through under watch, with the folder it began with."""

    disk: Disk
    committed: int  # the operation with which the journal says that the first snapshot is there

    def cut(self, at: int, random: Random, target: Path, first: Path | None) -> int:
        """Lay out what a cut leaves; returns how many steps were completed."""
        tree = Tree() if first is None else Tree.read(first)
        cut(tree, self.disk.operations, at, random, target)
        return self.disk.times[min(at, len(self.disk.times) - 1)]


def record(act: Callable[[], Any], root: Path, clock: Callable[[], int] = lambda: 0) -> Recorded:
    """Do something in a watched folder.

    Raises:
        AssertionError: if something went past the watch.
    """
    disk = Disk(root, clock=clock)
    with disk.watch():
        act()
    assert disk.escaped() == [], disk.escaped()
    said = (i for i, o in enumerate(disk.operations) if o.path.endswith(JOURNAL) and b'"what": "snapshot"' in o.data)
    return Recorded(disk, next(said, len(disk.operations)))


def power_cuts(count: Count, wanted: Tensor, random: Random, every: int = 1, **options: Any) -> None:
    """Cut the power at every so-manieth operation of a training, and again while it recovers.

    Args:
        count: takes down what came of it.
        wanted: the weights of the uninterrupted training.
        random: what a cut leaves of what was not certain.
        every: 1 tries each operation.
        **options: of the training: how many snapshots it keeps, what kind.
    """
    with place() as name:
        root = Path(name)
        toy: list[Toy] = []
        (root / "first").mkdir()
        recorded = record(
            lambda: toy.append(fresh(root / "first" / "run", **options)) or toy[0].run(),
            root / "first",
            lambda: toy[0].step() if toy else 0,
        )
        for at in range(random.randrange(every), len(recorded.disk.operations), every):
            target = root / f"cut-{at}"
            done = recorded.cut(at, random, target, None)
            again = None
            if at > recorded.committed and at % 5 == 0:
                again = root / f"copy-{at}"
                shutil.copytree(target, again)
            recover(count, "power cut", target / "run", done, at > recorded.committed, wanted, f"cut at {at}")
            if again is not None:
                cut_while_recovering(count, again, done, wanted, random, f"cut at {at}, then")
                shutil.rmtree(again)
            shutil.rmtree(target)


def recover(count: Count, kind: str, folder: Path, done: int, committed: bool, wanted: Tensor, what: str) -> None:
    """Go on in a folder and count what came of it; before the first snapshot, a training begins anew."""
    whole = whole_steps(folder) if folder.is_dir() else []
    if not committed and not whole:  # the first interval is lost, and nothing else
        count.add(kind, intervals_lost_max=-(-done // EVERY))
        return
    without = int(not whole)
    toy, restored, problem = None, 0, ""
    try:
        toy = Toy(folder)
        restored = toy.go_on()
        toy.run()
        problem = "" if same(toy.last, wanted) else f"other weights, {toy.background.state} {toy.background.error}"
    except FAMILIES as error:
        problem = f"{type(error).__name__}: {error}"
    lost = int(bool(problem) and committed)
    if problem or without:
        count.failures.append(f"{kind}, {what}, after {done} steps: {problem or 'no valid snapshot'}")
    intervals = 0 if problem else -(-(done - restored) // EVERY)
    count.add(kind, runs_lost=lost, without_valid_snapshot=without, intervals_lost_max=intervals)


def cut_while_recovering(count: Count, root: Path, done: int, wanted: Tensor, random: Random, what: str) -> None:
    """Go on in a folder under watch, cut the power there, too, and go on once more."""
    before = Path(f"{root}-before")
    shutil.copytree(root, before)
    toy = Toy(root / "run")
    restored: list[int] = []

    def act() -> None:
        restored.append(toy.go_on())
        toy.run()

    try:
        recorded = record(act, root, toy.step)
        at = random.randrange(len(recorded.disk.operations))
        target = Path(f"{root}-again")
        now = recorded.cut(at, random, target, before)
        recover(count, "two power cuts", target / "run", max(now, restored[0]), True, wanted, f"{what} at {at}")
        shutil.rmtree(target)
    except FAMILIES as error:
        count.failures.append(f"{what} going on under watch failed: {error}")
        count.add("two power cuts", runs_lost=1)
    shutil.rmtree(before)


ERRORS = {
    "full disk": errno.ENOSPC,
    "read-only folder": errno.EROFS,
    "broken disk": errno.EIO,
    "no rights": errno.EACCES,
}


def sick_disk(count: Count, illness: str, at: int, lasting: bool, wanted: Tensor, **options: Any) -> None:
    """Let operation `at` of a training fail, and all later ones if it lasts; the training must come to its end.

    Afterwards the disk is well again, and a new training goes on from what is there.
    """

    def fault(number: int, operation: Operation) -> OSError | None:
        ill = operation.kind != "unlink" or illness != "full disk"  # a full disk lets files be removed
        ill = ill and (number == at or (lasting and number > at)) and operation.path != "run"
        return OSError(ERRORS[illness], os.strerror(ERRORS[illness]), operation.path) if ill else None

    with place() as name:
        toy: Toy | None = None
        disk = Disk(Path(name), fault)
        try:
            with disk.watch(), mock.patch("ftnb.runfolder.time.sleep"):  # a rename is tried ten times
                toy = fresh(Path(name, "run"), **options)
                quietly(toy.run)
        except OSError:  # the folder of a new run cannot be made: said before any training
            count.add(illness)
            return
        ended = same(toy.last, wanted) or not toy.step()  # without a journal nothing begins, and that is said
        if not ended or (toy.background.state == "failed" and not toy.background.error):
            count.failures.append(f"{illness}, lasting={lasting}, at {at}: ended after {toy.step()} steps")
        count.add(illness, stopped_early=int(not ended))
        whole = whole_steps(toy.folder)
        if whole:
            other = Count()
            recover(other, illness, toy.folder, max(whole), True, wanted, f"lasting={lasting}, at {at}")
            count.runs_lost += other.runs_lost
            count.without_valid_snapshot += other.without_valid_snapshot
            count.failures += other.failures
        elif any(o.kind == "rename" and SNAPSHOTS in o.path for o in disk.operations):
            count.without_valid_snapshot += 1
            count.failures.append(f"{illness}, lasting={lasting}, at {at}: no snapshot is whole")


def sick_disks(count: Count, wanted: Tensor, every: int = 1, **options: Any) -> None:
    """Each kind of error at every so-manieth operation, once and lasting."""
    with place() as name:
        (Path(name) / "run").mkdir()
        num_operations = len(record(lambda: fresh(Path(name, "run"), **options).run(), Path(name)).disk.operations)
    for number, kind in enumerate(ERRORS):
        for lasting in (False, True):
            for at in range((2 * number + lasting) % every, num_operations, every):
                sick_disk(count, kind, at, lasting, wanted, **options)


def damages(random: Random) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Ways to damage a file."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(data)

    yield "flipped bit", flip
    yield "cut", lambda path: os.truncate(path, random.randrange(path.stat().st_size))
    yield "empty", lambda path: os.truncate(path, 0)
    yield "zeros", lambda path: path.write_bytes(bytes(path.stat().st_size))
    yield "missing", lambda path: path.unlink()


def damaged_files(count: Count, wanted: Tensor, random: Random, rounds: int = 1) -> None:
    """Damage each file of the newest snapshot of a training that was broken off; the one before must do."""
    with place() as name:
        toy = fresh(Path(name, "run"))
        end = 2 * EVERY + 1
        toy.background.record.subscribe(
            lambda e: toy.background.stop() if isinstance(e, Stepped) and e.step == end else None
        )
        toy.run()
        newest = Snapshots(toy.folder / SNAPSHOTS).steps()[-1]
        files = sorted(path.name for path in Snapshots(toy.folder / SNAPSHOTS).path(newest).iterdir())
        for number in range(rounds):
            for file in files:
                for kind, damage in damages(random):
                    copy = Path(name, "copy")
                    shutil.copytree(toy.folder, copy)
                    damage(Snapshots(copy / SNAPSHOTS).path(newest) / file)
                    recover(count, "damaged file", copy, newest, True, wanted, f"{kind} of {file}, round {number}")
                    shutil.rmtree(copy)


def faults_table(seed: int = 0, tiny: bool = False) -> Count:
    """All of the above."""
    count, wanted, random = Count(), reference(), Random(seed)
    for _ in range(1 if tiny else 2):
        power_cuts(count, wanted, random, every=40 if tiny else 1)
    power_cuts(count, wanted, random, every=80 if tiny else 2, keep=1)
    sick_disks(count, wanted, every=60 if tiny else 5)
    damaged_files(count, wanted, random, rounds=1 if tiny else 5)
    return count
