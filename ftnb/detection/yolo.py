"""YOLO's text files as rows of pictures with their boxes as written: one file per picture, "class cx cy w h" a line."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ftnb.detection.files import IMAGE_FOLDERS, Annotated, Found, Tree, split_of
from ftnb.sources import SPLIT_NAMES
from ftnb.tables import DataError, listing
from ftnb.vision.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Config:
    """What a data.yaml says: the class of each number, and for each split what was stated as its pictures."""

    source: str
    names: Mapping[int, str]
    stated: Mapping[str, Any] = field(default_factory=dict)
    roots: tuple[Path, ...] = ()


def label_sets(tree: Tree) -> dict[str, list[Path]]:
    """Label files by the name of the folder that holds them all ("labels", "labels_det" …)."""
    found: dict[str, list[Path]] = {}
    for path in tree.files(".txt"):
        parts = path.relative_to(tree.root).parts[:-1]
        name = next((part for part in reversed(parts) if part.lower().startswith("labels")), None)
        if name and path.name != "classes.txt":
            found.setdefault(name, []).append(path)
    return found


def read_yolo_folder(tree: Tree, config_file: Path | None = None) -> dict[str, Found]:
    """Pictures in `images`, their text files in `labels` beside it; class names and splits in a data.yaml.

    A picture without a text file, or with an empty one, has no boxes. The splits are those of the yaml file; where it
    states none, those that the folders' names speak of.

    Args:
        tree: the folder.
        config_file: the yaml file, where there are several.

    Raises:
        DataError: if it is not clear which files to read, or one cannot be read.
    """
    sets = label_sets(tree)
    if not sets:
        raise DataError(f"{tree.root} holds no folder 'labels' with text files in it.")
    name = _choose_set(tree, sets)
    config_file = config_file or _choose_config(tree, name)
    config = _read_config(config_file) if config_file else _read_classes(tree)
    notices = [f"{tree.root.name}: YOLO labels from '{name}', class names from {config.source}."]
    pictures = _stated_pictures(config, notices) or _pictures_by_folder(tree)
    if not pictures:
        raise DataError(f"{tree.root}: '{name}' holds label files, but there is no folder 'images' with pictures.")
    found = {split: _read_split(paths, name, config, split) for split, paths in pictures.items()}
    if others := sorted(set(sets) - {name}):
        notices.append(f"label folders that are not read: {listing(others)}.")
    used = {label_file(path, name) for paths in pictures.values() for path in paths}
    if orphans := sorted(path.name for path in sets[name] if path not in used):
        notices.append(f"{len(orphans)} label files have no picture in a split, for example {orphans[0]}.")
    next(iter(found.values())).notices[:0] = notices
    return found


def label_file(image: Path, name: str) -> Path:
    """Where a picture's label file lies: the last folder named `images` on its path is exchanged for `name`."""
    parts = list(image.parts)
    at = max((i for i, part in enumerate(parts[:-1]) if part.lower() in IMAGE_FOLDERS), default=None)
    if at is None:
        return image.parent / name / f"{image.stem}.txt"
    parts[at] = name
    return Path(*parts).with_suffix(".txt")


def _choose_set(tree: Tree, sets: Mapping[str, list[Path]]) -> str:
    boxes = [name for name, paths in sets.items() if not _holds_polygons(paths)] or list(sets)
    if len(boxes) > 1:
        raise DataError(f"{tree.root}: {listing(sorted(boxes))} all hold YOLO labels. Move all but one away.")
    return boxes[0]


def _holds_polygons(paths: list[Path]) -> bool:
    lines = [line for path in paths[:20] for line in path.read_text("utf-8", "replace").splitlines()]
    widths = Counter(len(line.split()) for line in lines if line.strip())
    return bool(widths) and widths[5] < sum(widths.values()) / 2


def _choose_config(tree: Tree, name: str) -> Path | None:
    files = [path for path in tree.files(".yaml", ".yml") if b"names" in path.read_bytes()]
    suffix = name.lower().removeprefix("labels").strip("_-")
    best = [path for path in files if suffix and suffix in path.stem.lower()]
    best = best or [path for path in files if path.stem.lower() in ("data", "dataset")] or files
    if len(best) > 1:
        raise DataError(f"{tree.root}: {listing([p.name for p in best])} all name classes. Pass the right one's path.")
    return best[0] if best else None


def _read_config(path: Path) -> Config:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: not YAML ({' '.join(str(error).split())}).") from None
    names = data.get("names") if isinstance(data, Mapping) else None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, Mapping) or not names or not all(str(number).isdigit() for number in names):
        wanted = "'names', a list or a mapping from class number to name"
        raise DataError(f"{path.name}: expected {wanted}; got {names!r:.60}.")
    stated = {SPLIT_NAMES[key]: data[key] for key in data if key in SPLIT_NAMES and data[key]}
    base = Path(str(data.get("path") or ".")).expanduser()
    return Config(
        path.name, {int(i): str(n).strip() for i, n in names.items()}, stated, (path.parent / base, path.parent, base)
    )


def _read_classes(tree: Tree) -> Config:
    for path in tree.files("classes.txt", ".names"):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return Config(path.name, dict(enumerate(line for line in lines if line)))
    raise DataError(
        f"{tree.root}: YOLO labels are numbers, and no file says what they mean. Write a data.yaml with a line such as "
        "'names: [cat, dog]' beside the folders."
    )


def _stated_pictures(config: Config, notices: list[str]) -> dict[str, list[Path]]:
    found = {}
    for split, stated in config.stated.items():
        entries = stated if isinstance(stated, list) else [stated]
        paths = [path for entry in entries for path in _pictures_at(str(entry), config.roots)]
        if paths:
            found[split] = paths
        elif split == "train":
            looked = listing([str(root / str(entries[0])) for root in config.roots[:2]])
            raise DataError(f"{config.source} states {entries[0]!r} for train, where there are no pictures ({looked}).")
        else:
            notices.append(f"{config.source} states {entries[0]!r} for {split}, where there are no pictures.")
    return found


def _pictures_at(entry: str, roots: tuple[Path, ...]) -> list[Path]:
    """The pictures of a folder, or those that a text file lists; "../" at the front is also tried without."""
    for root in roots:
        for place in (root / entry, root / entry.removeprefix("../")):
            if place.is_dir():
                return sorted(p.absolute() for p in place.rglob("*") if _is_picture(p))
            if place.suffix == ".txt" and place.is_file():
                names = [line.strip() for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
                return [(place.parent / name).absolute() for name in names]
    return []


def _is_picture(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith(".")


def _pictures_by_folder(tree: Tree) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in tree.files(*IMAGE_SUFFIXES):
        parts = path.relative_to(tree.root).parts[:-1]
        if any(part.lower() in IMAGE_FOLDERS for part in parts):
            found.setdefault(next((s for part in parts if (s := split_of(part))), "train"), []).append(path.absolute())
    return {split: sorted(paths) for split, paths in found.items()}


def _read_split(pictures: list[Path], name: str, config: Config, split: str) -> Found:
    rows, polygons, without = [], 0, 0
    for number, picture in enumerate(pictures, start=1):
        path = label_file(picture, name)
        row = Annotated(str(picture), [], [], number, path.name)
        if path.is_file():
            row.boxes, row.labels, of_file = _read_labels(path, config)
            polygons += of_file
        else:
            without += 1
        rows.append(row)
    notices = [f"{split}: {polygons} polygons are taken as the boxes around them."] if polygons else []
    if without:
        notices.append(f"{split}: {without} of {len(rows)} pictures have no label file; they count as without objects.")
    return Found(rows, f"{name}/", "cxcywhn", tuple(config.names.values()), notices)


def _read_labels(path: Path, config: Config) -> tuple[list[Any], list[str], int]:
    boxes: list[Any] = []
    labels, polygons = [], 0
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        words, where = line.split(), f"{path.name}, line {number}"
        if not words:
            continue
        try:
            label, values = int(float(words[0])), [float(word) for word in words[1:]]
        except ValueError:
            raise DataError(f"{where}: expected numbers, 'class cx cy w h', got {line!r:.60}.") from None
        if label not in config.names:
            known = f"0 to {max(config.names)}" if len(config.names) > 1 else "only 0"
            raise DataError(f"{where}: the class {words[0]} is unknown; {config.source} names {known}.")
        if len(values) > 4 and len(values) % 2 == 0:
            xs, ys = values[::2], values[1::2]
            low, high = (min(xs), min(ys)), (max(xs), max(ys))
            values = [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, high[0] - low[0], high[1] - low[1]]
            polygons += 1
        elif len(values) != 4:
            raise DataError(f"{where}: expected 'class cx cy w h', five numbers; got {len(words)}: {line!r:.60}.")
        boxes.append(values)
        labels.append(config.names[label])
    return boxes, labels, polygons
