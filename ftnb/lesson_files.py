"""The lessons' notebooks as files: where they are, and a learner's copy that is brought up to date with care."""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

MANIFEST = ".copied.json"  # what each file was when it was copied


@dataclass
class Copied:
    """What a round of copying did, by file name relative to the learner's folder."""

    new: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # changed here, and newer where it came from


def lessons_folder() -> Path:
    """Where the lessons' notebooks are: inside the installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: if there are none.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "lessons", package.parent / "nbs"):
        if any(folder.glob("[0-9]*.ipynb")):
            return folder
    raise FileNotFoundError(f"there are no lessons beside {package}. In a checkout, run `make notebooks` first.")


def copy_lessons(source: Path, target: Path) -> Copied:
    """Bring a learner's copy up to date without touching what the learner changed.

    Args:
        source: folder with the lessons' notebooks and `images/`.
        target: the learner's folder; made if missing.

    Raises:
        FileNotFoundError: if `source` holds no notebooks.
    """
    notebooks = sorted(source.glob("*.ipynb"))
    if not notebooks:
        raise FileNotFoundError(f"{source} holds no notebooks: run `make notebooks` first.")
    images = [path for path in sorted((source / "images").rglob("*")) if path.is_file()]
    target.mkdir(parents=True, exist_ok=True)
    manifest, result = target / MANIFEST, Copied()
    known: dict[str, str] = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
    for path in [*notebooks, *images]:
        name = path.relative_to(source).as_posix()
        wanted, now = _digest(path), _digest(target / name)
        if now is not None and now not in (wanted, known.get(name)):  # the learner's
            if known.get(name) != wanted:
                result.kept.append(name)
            continue
        if now != wanted:
            (result.new if now is None else result.updated).append(name)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
        known[name] = str(wanted)
    manifest.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return result


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
