"""What tests need and this machine lacks: skipped with a reason here, failed in CI."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tools.lessons import ROOT


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A second copy of conftest.py, on a machine with neither a browser nor data."""
    spec = importlib.util.spec_from_file_location("conftest_copy", ROOT / "tests" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("FTNB_TEST_DATA", str(tmp_path / "nothing"))
    return module


def item(marker: str) -> SimpleNamespace:
    return SimpleNamespace(get_closest_marker=lambda name: name == marker)


NEEDS = [("browser", "Browser tests need a Chromium on the PATH"), ("realdata", "set FTNB_TEST_DATA")]


@pytest.mark.parametrize(("marker", "reason"), NEEDS)
def test_missing_needs_are_skipped_with_a_reason(settings: ModuleType, marker: str, reason: str) -> None:
    settings.IN_CI = False
    with pytest.raises(pytest.skip.Exception, match=reason):
        settings.pytest_runtest_setup(item(marker))


@pytest.mark.parametrize(("marker", "reason"), NEEDS)
def test_missing_needs_fail_in_ci(settings: ModuleType, marker: str, reason: str) -> None:
    settings.IN_CI = True
    with pytest.raises(pytest.fail.Exception, match=f"{reason}.*In CI"):
        settings.pytest_runtest_setup(item(marker))


def test_a_test_without_needs_runs(settings: ModuleType) -> None:
    settings.pytest_runtest_setup(item("none"))


def test_the_environment_is_offline_and_leaves_the_machine_room() -> None:
    import matplotlib

    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert int(os.environ["OMP_NUM_THREADS"]) <= 2
    assert matplotlib.get_backend().lower() == "agg"
    assert os.environ.get("MPLBACKEND", "").lower() != "agg"
