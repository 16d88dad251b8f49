"""`make chaos` in small: the zeros, and the harness itself, which sees every operation and catches faulty programs."""

import json
import os
from pathlib import Path
from random import Random

import pytest

from ftnb.snapshots import Snapshots
from tests.chaos import __main__ as chaos
from tests.chaos.count import Count, place
from tests.chaos.disk import Disk
from tests.chaos.faults import power_cuts, record, sick_disks
from tests.chaos.power import Operation, Tree, cut
from tests.chaos.toy import fresh, reference

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("chaos") / "chaos.json"
    parts = [part for part in chaos.PARTS if part != "peers"]
    chaos.main([*parts, "--tiny", "--out", str(out)])
    return json.loads(out.read_text())


def test_nothing_is_lost(figures):
    assert all(row["max_abs_diff"] == 0 for row in figures["resume"] + figures["replay"])
    for part in ("faults", "sigkills"):
        assert figures[part].pop("injected") >= {"faults": 50, "sigkills": 4}[part]
        assert figures[part].pop("intervals_lost_max") <= 1
        assert figures[part] == {"runs_lost": 0, "without_valid_snapshot": 0}
    assert figures["more"]["faults"]["stopped_early"] == 0
    assert figures["nan"] == {"injected": 20, "reached_weights": 0, "false_alarms": 0}
    assert figures["oom"]["gradient_error"] < 1e-6
    assert figures["mutations"] == {"tried": 300, "crashes": 0, "hangs": 0}


def test_the_committed_figures_have_the_agreed_form():
    figures = json.loads((Path(chaos.HERE) / "chaos.json").read_text())
    counted = {"injected", "runs_lost", "without_valid_snapshot", "intervals_lost_max"}
    assert set(figures["faults"]) == set(figures["sigkills"]) == counted
    assert figures["faults"]["injected"] >= 1000
    assert figures["sigkills"]["injected"] >= 50
    assert figures["mutations"]["tried"] >= 10_000
    for table in ("resume", "replay"):
        assert all(set(row) == {"case", "max_abs_diff"} for row in figures[table])


# The harness


def test_every_operation_of_a_training_is_seen():
    with place() as name:
        recorded = record(lambda: fresh(Path(name, "run")).run(), Path(name))  # compares at its end
    kinds = {operation.kind for operation in recorded.disk.operations}
    assert kinds == {"mkdir", "create", "write", "sync", "rename", "unlink", "rmdir"}
    assert 0 < recorded.committed < len(recorded.disk.operations)


def test_what_goes_past_the_watch_is_noticed(tmp_path):
    with Disk(tmp_path).watch() as disk:
        (tmp_path / "seen").write_text("a")
        os.close(os.open(tmp_path / "made", os.O_CREAT | os.O_WRONLY))
        descriptor = os.open(tmp_path / "made", os.O_WRONLY)
        os.write(descriptor, b"below Python's files")
        os.close(descriptor)
    assert disk.escaped() == ["made"]


def test_a_power_cut_keeps_what_was_synced_and_nothing_is_sure_of_the_rest(tmp_path):
    operations = [
        Operation("create", "a"), Operation("write", "a", data=b"old"), Operation("sync", "a"), Operation("sync", "."),
        Operation("write", "a", begin=3, data=b"new"), Operation("create", "b"), Operation("rename", "b", other="c"),
    ]  # fmt: skip
    seen = set()
    for seed in range(300):
        target = tmp_path / str(seed)
        cut(Tree(), operations, len(operations), Random(seed), target)
        seen.add(((target / "a").read_bytes(), *sorted(path.name for path in target.iterdir())))
    contents = {content for content, *_ in seen}
    assert contents >= {b"old", b"oldnew", b"oldn", b"old\0\0\0", b"oldn\0\0"}
    assert all(content.startswith(b"old") for content in contents)
    assert {tuple(names) for _, *names in seen} == {("a",), ("a", "b"), ("a", "c")}


class MakesRoomFirst(Snapshots):
    """Removes the older ones before the new one is there."""

    def save(self, training):
        for step in self.steps():
            for path in self.path(step).iterdir():
                path.unlink()
            self.path(step).rmdir()
        return super().save(training)


def test_a_program_that_makes_room_first_is_caught():
    count = Count()
    power_cuts(count, reference(), Random(0), every=9, kind=MakesRoomFirst)
    assert count.without_valid_snapshot > 0
    count = Count()
    sick_disks(count, reference(), every=150, kind=MakesRoomFirst)
    assert count.without_valid_snapshot > 0


@pytest.mark.parametrize("missing", ["sync_tree", "sync_folder"])
def test_a_program_that_does_not_sync_is_caught(monkeypatch, missing):
    monkeypatch.setattr(f"ftnb.runfolder.{missing}", lambda folder: None)
    count = Count()
    power_cuts(count, reference(), Random(0), every=9, keep=1)
    assert count.without_valid_snapshot > 0
    assert count.runs_lost > 0


def test_a_program_that_writes_in_place_is_caught(monkeypatch):
    def in_place(write, target):
        target.mkdir(exist_ok=True)
        write(target)

    monkeypatch.setattr("ftnb.snapshots.write_folder", in_place)
    count = Count()
    power_cuts(count, reference(), Random(0), every=9, keep=1)
    assert count.without_valid_snapshot > 0
    assert count.runs_lost > 0


def test_a_run_whose_recipe_is_not_synced_is_caught(monkeypatch):
    monkeypatch.setattr("ftnb.runfolder.write_text", lambda path, text: path.write_text(text))
    count = Count()
    power_cuts(count, reference(), Random(0), every=9)
    assert count.runs_lost > 0
