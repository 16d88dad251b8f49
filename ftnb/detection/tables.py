"""Pictures with boxes as tables have them: in memory, in JSONL or Parquet files, and in the Hub's usual form."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from ftnb.detection.files import Annotated, Found
from ftnb.sources import read_any
from ftnb.tables import DataError, Table, has_header, listing


def read_tables(data: Any, columns: Mapping[str, str | int]) -> dict[str, Found]:
    """Read rows with the columns "image", "boxes" and "labels", or "image" and "objects", unchecked.

    Args:
        data: whatever `ftnb.sources.read_any` takes.
        columns: role → column name.

    Raises:
        DataError: if there is no such data, column or class.
    """
    for role in columns:
        if role not in ("image", "boxes", "labels"):
            raise DataError(f"columns names the role {role!r}; this task knows 'image', 'boxes', 'labels'.")
    tables = read_any(data, header=has_header(columns))
    stated = _stated_classes(data)
    return {name: _from_table(table, name, columns, stated) for name, table in tables.items()}


def _stated_classes(data: Any) -> tuple[str, ...]:
    """The class names that a `datasets.Dataset` carries for whole-number labels, wherever in its columns they stand."""
    part = next(iter(data.values())) if isinstance(data, DatasetDict) else data
    waiting = list(part.features.values()) if isinstance(part, Dataset) else []
    while waiting:
        feature = waiting.pop()
        if hasattr(feature, "names"):
            return tuple(feature.names)
        inner = getattr(feature, "feature", feature)
        waiting += list(inner.values()) if isinstance(inner, Mapping) else [inner] if inner is not feature else []
    return ()


def _from_table(table: Table, split: str, columns: Mapping[str, str | int], stated: tuple[str, ...]) -> Found:
    frame, rows = table.frame, []
    nested = "objects" in frame and "boxes" not in columns and "boxes" not in frame
    wanted = {role: columns.get(role, role) for role in (("image",) if nested else ("image", "boxes", "labels"))}
    for role, name in wanted.items():
        if name not in frame:
            raise DataError(
                f"column {name!r} not found in {table.source}; it has {listing(list(frame.columns))}. Pass "
                f"columns={{{role!r}: the column that holds the {role}}}."
            )
    for (row, cells), image in zip(frame.iterrows(), frame[wanted["image"]], strict=True):
        place = f"{split} ({table.source}), row {row}"
        boxes, labels = _objects(cells["objects"], place) if nested else (cells[wanted[r]] for r in ("boxes", "labels"))
        boxes, labels = _as_list(boxes, "boxes", place), _as_list(labels, "labels", place)
        if len(boxes) != len(labels):
            raise DataError(f"{place}: {len(boxes)} boxes, but {len(labels)} labels; there has to be one for each box.")
        named = [_label(label, stated, place) for label in labels]
        rows.append(Annotated(_located(image, table), boxes, named, int(row), place))
    known = {label for row in rows for label in row.labels}
    whole = all(label.lstrip("-").isdigit() for label in known)
    order = stated or tuple(sorted(known, key=int) if whole else sorted(known))
    return Found(rows, table.source, "xywh" if nested else "xyxy", order, list(table.notices))


def _located(image: Any, table: Table) -> Any:
    """A path made absolute: relative ones are meant from the table's own folder."""
    if not isinstance(image, str | os.PathLike):
        return image
    return str(((table.folder or Path()) / Path(image).expanduser()).absolute())


def _objects(cell: Any, place: str) -> tuple[Any, Any]:
    """Boxes and labels in the Hub's usual form: a mapping of lists, or a list of mappings."""
    if isinstance(cell, Mapping):
        keys = {key: cell.get(key) for key in ("bbox", "boxes", "category", "categories", "label", "labels")}
    else:
        objects = _as_list(cell, "objects", place)
        keys = {
            key: [o.get(key) for o in objects]
            for key in ("bbox", "category", "label")
            if all(key in o for o in objects)
        }
    boxes = next((keys[key] for key in ("bbox", "boxes") if keys.get(key) is not None), None)
    labels = next((keys[k] for k in ("category", "categories", "label", "labels") if keys.get(k) is not None), None)
    if boxes is None or labels is None:
        raise DataError(f"{place}: 'objects' needs 'bbox' and 'category'; got {cell!s:.80}.")
    return boxes, labels


def _as_list(value: Any, what: str, place: str) -> list[Any]:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return []
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise DataError(f"{place}: expected a list of {what}, got {type(value).__name__} {value!r:.60}.")
    return list(value.tolist() if hasattr(value, "tolist") else value)


def _label(label: Any, stated: tuple[str, ...], place: str) -> str:
    if isinstance(label, int | np.integer) and not isinstance(label, bool) and stated:
        if not 0 <= label < len(stated):
            raise DataError(f"{place}: the class {label} is unknown; the data names 0 to {len(stated) - 1}.")
        return stated[label]
    if isinstance(label, str | int | np.integer) and not isinstance(label, bool) and str(label).strip():
        return str(label).strip()
    raise DataError(f"{place}: expected a class name for each box, got {type(label).__name__} {label!r:.40}.")
