"""A run's folder on disk: where it lies, what it is called, and how a model gets into it without ever being half there.

`recipe.toml` holds what was asked for, `events.jsonl` what happened, `model/` the best model so far (it loads with
`from_pretrained`), `model-last/` the model as it was at the end, and `snapshots/` what a training needs to go on. A
lock of the operating system says whether a process trains there; it ends with the process, however that ends.
"""

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from ftnb.durable import make_folder, sync_folder, sync_tree, write_text
from ftnb.events import Changed, JournalError, read_journal

RECIPE, JOURNAL, BEST, LAST, SNAPSHOTS, ORIGIN, LOCK = (
    "recipe.toml", "events.jsonl", "model", "model-last", "snapshots", "branch.json", ".lock",
)  # fmt: skip
MODEL_FOLDERS = {"best": BEST, "last": LAST}


def runs_root() -> Path:
    """Where runs lie when nobody says otherwise: the folder `FTNB_RUNS` names, or `runs` in the working directory."""
    return Path(os.environ.get("FTNB_RUNS") or "runs").expanduser().absolute()


def new_id() -> str:
    """A name for a new run that sorts by time, to the millisecond: '20261123-165312-417-4f'."""
    seconds, milliseconds = divmod(time.time_ns() // 10**6, 1000)
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(seconds))}-{milliseconds:03d}-{secrets.token_hex(1)}"


def find_run(name: str | os.PathLike[str] = "") -> Path | None:
    """The folder of a run, by its path or its name below `runs_root()`; without a name the newest one; None if none."""
    root = runs_root()
    newest = sorted((path.parent for path in root.glob(f"*/{JOURNAL}")), key=lambda path: path.name)[-1:]
    places = [Path(name).expanduser().absolute(), root / name] if os.fspath(name) else newest
    return next((place for place in places if (place / JOURNAL).exists()), None)


def refuse_taken(folder: Path) -> None:
    """Raise if a new run cannot have this folder.

    Raises:
        FileExistsError: if it holds a run already; its journal would be continued and its model replaced.
        NotADirectoryError: if there is a file of that name.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a run needs a folder. Choose another name.")
    if (folder / JOURNAL).exists():
        raise FileExistsError(f"{folder} holds a run already. Choose another folder, or read it with Run.open(folder).")


def claim(folder: Path, recipe: str) -> None:
    """Make the folder of a new run and put its recipe there; it may exist if it holds no run."""
    refuse_taken(folder)
    make_folder(folder)
    write_text(folder / RECIPE, recipe)


def hold_folder(folder: Path) -> FileLock:
    """Keep a run's folder for this process until the lock is released; the process's end releases it, too.

    Raises:
        FileExistsError: if another process trains there.
    """
    lock = FileLock(folder / LOCK, thread_local=False)  # taken in one thread, released in another
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(f"another process is training in {folder}. Wait for it, or end it.") from None
    return lock


def is_held(folder: Path) -> bool:
    """Whether some process trains in a run's folder now."""
    try:
        hold_folder(folder).release()
    except FileExistsError:
        return True
    return False


def write_origin(folder: Path, run: str, step: int) -> None:
    """Note in a branch's folder which run it comes from, and the step at which it left it."""
    write_text(folder / ORIGIN, json.dumps({"run": run, "step": step}))


def branched_at(folder: Path) -> int | None:
    """The step at which a run left another one; None if it began by itself.

    Where `branch.json` is missing or damaged, the journal's own note counts.

    Raises:
        JournalError: if `branch.json` is damaged and the journal has no note that can be read.
    """
    path, step = folder / ORIGIN, None
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        step = json.loads(path.read_text(encoding="utf-8"))["step"]
    if type(step) is int and step >= 0:
        return step
    events = read_journal(folder / JOURNAL, damaged=[]) if (folder / JOURNAL).exists() else []
    notes = [e.new for e in events if isinstance(e, Changed) and e.what == "branched"]
    if notes and isinstance(notes[-1], int | float) and notes[-1] >= 0:
        return int(notes[-1])
    if path.exists():
        raise JournalError(
            f"{path} should say where this run left another one, and is damaged; its journal does not say it either. "
            "If the run began by itself, delete that file."
        )
    return None


def write_model(write: Callable[[Path], object], target: Path) -> None:
    """Write a model folder so that at every moment, after a crash too, the old one or the new one is there in full.

    It is written beside the target, put on the disk, and only then swapped in. A folder cannot be renamed over
    another, so the swap is two renames; a crash between them leaves the new one under its waiting name, where
    `model_folder` finds it.

    Args:
        write: fills the (existing, empty) folder it is given.
        target: the folder to replace.
    """
    ready, old = _beside(target, "ready"), _beside(target, "old")
    _swap(ready, target, old)  # one that was broken off earlier
    write_folder(write, ready)
    _swap(ready, target, old)


def write_folder(write: Callable[[Path], object], target: Path) -> None:
    """Write a new folder so that, after a crash too, it is there in full or not at all.

    Args:
        write: fills the (existing, empty) folder it is given.
        target: the folder's name; there must be none of that name yet.
    """
    part = _beside(target, "part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write(part)
    sync_tree(part)
    _rename(part, target)
    sync_folder(target.parent)


def model_folder(target: Path) -> Path | None:
    """The folder that holds the model, None if none was written yet; looks also where a broken-off swap left it."""
    return next((folder for folder in (target, _beside(target, "ready")) if folder.exists()), None)


def _swap(ready: Path, target: Path, old: Path) -> None:
    """Put a complete new folder in the place of the old one."""
    if ready.exists():
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            _rename(target, old)
        _rename(ready, target)
        sync_folder(target.parent)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}")


def _rename(source: Path, target: Path) -> None:
    """Rename a folder; Windows refuses for a moment while a virus scanner or an indexer looks at it."""
    for attempt in range(10):
        try:
            source.rename(target)
            return
        except PermissionError:
            if attempt == 9:
                raise
            time.sleep(0.1)
