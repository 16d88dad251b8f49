"""Class names with their values or colours, from the files that go with masks: YAML, JSON, CSV, plain text."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ftnb.segmentation.masks import Color
from ftnb.tables import DataError, listing

_CLASS_FILES = re.compile(
    r"(_?classes|class_names|labels?|label_?map|label_(names|colors)|(.*_)?names|id2label|data)\.(ya?ml|txt|csv|json)"
)


def find_class_file(folders: Sequence[Path]) -> Path | None:
    """The one file of class names in these folders, if there is one.

    Raises:
        DataError: if there are several.
    """
    held = {
        p for folder in folders if folder.is_dir() for p in folder.iterdir() if _CLASS_FILES.fullmatch(p.name.lower())
    }
    found = sorted(p for p in held if not p.name.lower().startswith("data.") or _names_in_yaml(p))
    if len(found) > 1:
        raise DataError(
            f"there are {len(found)} files of class names: {listing([p.name for p in found])}. Say which, for example "
            f"classes={found[0].name!r}."
        )
    return found[0] if found else None


def read_class_file(path: str | os.PathLike[str]) -> dict[str, int | Color]:
    """Class names with their values or colours, from a YAML, JSON, text or CSV file.

    A text file has one name a line, whose number from 0 is the value; or lines such as "7 road", "128,64,128 road" or
    "road:128,64,128::".

    Raises:
        DataError: if the file cannot be read as any of these.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"there is no file of class names {str(path)!r}.")
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        names = _names_in_yaml(path)
        if not names:
            raise DataError(
                f"{path.name} has no 'classes' or 'names' with values, such as classes: {{0: road, 1: car}}."
            )
        return names
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if path.suffix.lower() == ".csv" and lines and not lines[0][0].isdigit():
        lines = lines[1:]  # the headings
    pairs = [_class_line(line, number) for number, line in enumerate(lines)]
    if not pairs or len(dict(pairs)) < len(pairs) or len({isinstance(value, tuple) for _, value in pairs}) > 1:
        raise DataError(
            f"{path.name}: expected one class a line, all of one form and none twice; found {listing(lines)}."
        )
    return dict(pairs)


def read_ignored(path: str | os.PathLike[str]) -> tuple[int | Color, ...] | None:
    """What a YAML or JSON file of class names says under "ignore": values or colours; None if it says nothing."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        return None
    content = _load_yaml(path)
    values = content.get("ignore") if isinstance(content, Mapping) else None
    if values is None:
        return None
    if not isinstance(values, list):
        raise DataError(f"{path.name}: 'ignore' is a list of values, such as ignore: [3, 255]; found {values!r}.")
    return tuple((v[0], v[1], v[2]) if isinstance(v, list) and len(v) == 3 else v for v in values)


def _class_line(line: str, number: int) -> tuple[str, int | Color]:
    color = re.match(r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;:]+(\D.*)$", line) or re.match(
        r"(.+?):(\d+),(\d+),(\d+)(?::|$)", line
    )
    if color:
        texts = list(color.groups())
        name = next(text for text in texts if not text.isdigit())
        texts.remove(name)
        return name.strip(), (int(texts[0]), int(texts[1]), int(texts[2]))
    value = re.match(r"(\d+)[\s:,;=]+(\S.*)$", line)
    return (value[2].strip(), int(value[1])) if value else (line, number)


def _names_in_yaml(path: Path) -> dict[str, int | Color]:
    content = _load_yaml(path)
    if not isinstance(content, Mapping):
        return {}
    held = next((content[key] for key in ("classes", "names", "id2label") if key in content), content)
    pairs = list(enumerate(held)) if isinstance(held, list) else list(held.items()) if isinstance(held, Mapping) else []
    names: dict[str, int | Color] = {}
    for key, value in pairs:
        if str(key).isdigit() and isinstance(value, str | int):
            names[str(value)] = int(key)
        elif isinstance(value, int):
            names[str(key)] = value
        elif isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(n, int) for n in value):
            names[str(key)] = (value[0], value[1], value[2])
        else:
            return {}
    return names


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} cannot be read ({str(error).splitlines()[0]}).") from None
