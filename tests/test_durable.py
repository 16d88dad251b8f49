"""What is said to be on the disk was synced, names in folders too."""

import os

import pytest

from ftnb import durable
from ftnb.events import Journal
from ftnb.runfolder import RECIPE, claim

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks Linux for a descriptor's path")


def synced(monkeypatch) -> list[str]:
    """The paths that are synced from now on."""
    paths: list[str] = []
    monkeypatch.setattr(durable.os, "fsync", lambda fd: paths.append(os.readlink(f"/proc/self/fd/{fd}")))
    return paths


def test_a_new_runs_recipe_survives_a_power_cut(tmp_path, monkeypatch):
    paths, folder = synced(monkeypatch), tmp_path / "runs" / "one"
    claim(folder, "lr = 1e-4\n")
    assert paths == [str(path) for path in (folder.parent, tmp_path, folder / RECIPE, folder)]


def test_a_new_journals_name_survives_a_power_cut(tmp_path, monkeypatch):
    paths = synced(monkeypatch)
    Journal(tmp_path / "events.jsonl").close()
    assert paths[:2] == [str(tmp_path / "events.jsonl"), str(tmp_path)]


def test_folders_in_a_new_folder_are_synced_too(tmp_path, monkeypatch):
    paths = synced(monkeypatch)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("x")
    durable.sync_tree(tmp_path)
    assert set(paths) == {str(tmp_path / "inner"), str(tmp_path / "inner" / "file"), str(tmp_path)}
