"""Labelled pictures from folders, tables and memory; every order that cannot be right is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from ftnb.tables import DataError
from ftnb.vision.images import read_image
from ftnb.vision.sources import load_image_splits, read_images


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder per class: 20 cats and 20 dogs."""
    root = tmp_path / "pets"
    for k, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(20):
            picture(100 * k + i).save(root / name / f"{i:02}.png")
    return root


def test_a_folder_for_each_class(folder):
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / ".hidden").mkdir()
    splits = load_image_splits(folder)
    assert [len(split) for _, split in splits.items()] == [36, 4]
    assert sorted(splits.valid["label"]) == ["cat", "cat", "dog", "dog"]
    assert set(splits.train[0]["row"].split("/")) & {"cat", "dog"}
    assert read_image(splits.train[0]["image"]).size == (16, 12)
    assert "pets: 1 files that are no pictures are left out." in splits.notices


def test_split_folders_and_twins_between_them(folder, tmp_path):
    root = tmp_path / "split"
    shutil.copytree(folder, root / "train")
    for name in ("cat", "dog"):
        (root / "Validation" / name).mkdir(parents=True)
        picture(500 + len(name)).save(root / "Validation" / name / "new.png")
        picture(900 + (name == "dog")).save(root / "Validation" / name / "other.png")
        (root / "test" / name).mkdir(parents=True)
        shutil.copy(folder / name / "03.png", root / "test" / name / "copy.png")
    splits = load_image_splits(root)
    assert [len(split) for _, split in splits.items()] == [40, 4, 2]
    (twins,) = [notice for notice in splits.notices if "also in train" in notice]
    assert twins.startswith("test: 2 of 2 pictures are also in train (test = train: 'cat/copy.png = cat/03.png'")


def test_equal_pictures_are_never_cut_apart(tmp_path):
    rows = [{"image": picture(i // 4), "label": str(i // 4 % 2)} for i in range(80)]
    splits = load_image_splits(rows, valid_fraction=0.3)
    assert not [notice for notice in splits.notices if "valid: " in notice and "also in train" in notice]
    assert 0 < len(splits.valid) < 40


def test_a_table_names_pictures_relative_to_itself(folder):
    lines = [f"{name}/{i:02}.png,{name}" for name in ("cat", "dog") for i in range(20)]
    path = folder / "labels.csv"
    path.write_text("file,animal\n" + "\n".join(lines), encoding="utf-8")
    splits = load_image_splits(path, columns={"image": "file", "label": "animal"})
    assert len(splits.train) == 36
    assert splits.columns == {"image": "file", "label": "animal"}
    assert sorted(set(splits.train["label"])) == ["cat", "dog"]
    assert len(load_image_splits(folder).train) == 36  # a stray table beside class folders disturbs nothing
    path.rename(folder / "train.csv")
    with pytest.raises(DataError, match=r"column 'image' not found.*'file', 'animal'"):
        load_image_splits(folder)


def test_datasets_with_an_image_column(folder):
    paths = [str(folder / name / f"{i:02}.png") for name in ("cat", "dog") for i in range(20)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["zebra", "ant"])})
    dataset = Dataset.from_dict({"image": paths, "label": [i // 20 for i in range(40)]}, features=features)
    splits = load_image_splits(DatasetDict({"train": dataset, "validation": dataset}))
    assert splits.label_names == ("zebra", "ant")
    assert np.array_equal(np.asarray(read_image(splits.train[0]["image"])), np.asarray(picture(0)))


def test_the_built_in_digits():
    splits = load_image_splits("builtin:digits")
    assert len(splits.train) == 100
    assert sorted(set(splits.train["label"])) == list("0123456789")
    assert not [notice for notice in splits.notices if "also in train" in notice]


def break_it(root: Path, how: str) -> Path:
    first = root / "cat" / "00.png"
    if how == "empty class":
        (root / "bird").mkdir()
    elif how == "no pictures":
        for path in root.rglob("*.png"):
            path.rename(path.with_suffix(".txt"))
    elif how == "no folders":
        for path in root.glob("*/*.png"):
            path.rename(root / f"{path.parent.name}{path.name}")
        for name in ("cat", "dog"):
            (root / name).rmdir()
    elif how == "mixed":
        (root / "train").mkdir()
    elif how == "no train":
        (root / "cat").rename(root / "test")
        (root / "dog").rename(root / "valid")
    elif how == "damaged":
        first.write_bytes(first.read_bytes()[:60])
    elif how == "fake":
        first.write_text("I am no picture")
    elif how == "one class":
        shutil.rmtree(root / "dog")
    elif how == "nothing":
        shutil.rmtree(root)
    return root


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("empty class", "no picture in the class folder 'bird'. Fill it, or remove it"),
        ("no pictures", "none of the 2 folders holds a picture"),
        ("no folders", "holds 40 pictures and no folders, so nothing says what is on them"),
        ("mixed", r"folders for splits \('train'\) and also 'cat', 'dog'"),
        ("no train", "has no folder 'train'; it has 'test', 'valid'"),
        ("damaged", r"train, row cat/00.png: 00.png is damaged|valid, row cat/00.png: 00.png is damaged"),
        ("fake", r"row cat/00.png: 00.png is no picture"),
        ("nothing", "is no file and no folder"),
    ],
)
def test_folders_that_cannot_be_right(folder, how, expected):
    with pytest.raises(DataError, match=expected):
        load_image_splits(break_it(folder, how))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"image": f"no{i}.png", "label": "ab"[i % 2]} for i in range(20)], r"row \d+: there is no picture"),
        ([{"image": None, "label": "a"}] * 9, r"train \(table\), row 1: expected a picture .* got None"),
        ([{"picture": "no.png", "label": "a"}] * 9, r"column 'image' not found.*\{'image': 'the column|Pass columns"),
        ("builtin:cats", "'builtin:cats' is unknown; the built-in pictures are 'builtin:digits'"),
    ],
)
def test_tables_that_cannot_be_right(rows, expected):
    with pytest.raises(DataError, match=expected):
        load_image_splits(rows)


def test_reading_alone_decodes_nothing(folder):
    (folder / "cat" / "00.png").write_text("broken")
    assert len(read_images(folder)["train"].frame) == 40
