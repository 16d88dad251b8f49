"""Settings that all tests share: no network, one thread (two at most), pictures off screen; what some tests need."""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = str(min(2, int(os.environ.get("OMP_NUM_THREADS") or 1)))
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import matplotlib
import pytest

if TYPE_CHECKING:
    from ftnb.recipe import Recipe

# Not the variable MPLBACKEND: kernels that tests start would inherit it and show no pictures.
matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parent.parent
IN_CI = bool(os.environ.get("CI"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def _not_here(reason: str) -> NoReturn:
    """Skip with a reason; in CI, where everything must be there, fail."""
    if IN_CI:
        pytest.fail(f"{reason} In CI (variable CI) this must not be missing.", pytrace=False)
    pytest.skip(reason)


def find_browser() -> str | None:
    """The path of an installed Chromium, if there is one."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def find_test_data() -> Path | None:
    """The folder that FTNB_TEST_DATA names, or the one beside a checkout, if it exists."""
    named = os.environ.get("FTNB_TEST_DATA")
    folder = Path(named).expanduser().resolve() if named else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("browser"):
        if importlib.util.find_spec("playwright") is None:
            _not_here("Browser tests need playwright: pip install playwright.")
        if find_browser() is None:
            _not_here("Browser tests need a Chromium on the PATH (Debian: apt-get install chromium).")
    if item.get_closest_marker("realdata") and find_test_data() is None:
        _not_here("Real-data tests need a folder with the data: set FTNB_TEST_DATA to it.")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("This test needs a CUDA device.")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real data and weights; only for tests marked `realdata`."""
    folder = find_test_data()
    if folder is None:
        _not_here("Real-data tests need a folder with the data: set FTNB_TEST_DATA to it.")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, `bert`, and a table, `reviews.csv`, for tests of whole runs."""
    from tests.tiny import tiny_bert, write_csv

    folder = tmp_path_factory.mktemp("place")
    tiny_bert(folder / "bert")
    write_csv(folder / "reviews.csv")
    return folder


@pytest.fixture
def recipe(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Recipe":
    """A recipe for these two; runs go to a folder of the test."""
    from ftnb.recipe import Recipe

    monkeypatch.setenv("FTNB_RUNS", str(tmp_path / "runs"))
    return Recipe(data=str(place / "reviews.csv"), model=str(place / "bert"), lr=1e-3, num_epochs=2, device="cpu")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser; only for tests marked `browser`."""
    path = find_browser()
    if path is None:
        _not_here("Browser tests need a Chromium on the PATH (Debian: apt-get install chromium).")
    return path
