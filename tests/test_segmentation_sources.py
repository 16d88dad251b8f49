"""Photos with masks: every layout that people have, every fault that would spoil a training before it starts."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw

from ftnb.segmentation.classes import read_class_file
from ftnb.segmentation.coco import polygon_mask, rle_mask, scene_mask
from ftnb.segmentation.masks import ClassTable, load_mask, stored_mask
from ftnb.segmentation.sources import load_segmentation_splits, read_segmentation
from ftnb.tables import DataError

SIZE = (12, 8)  # width, height
CLASSES = {"ground": 0, "road": 1, "car": 2}
ROAD, CAR = (128, 64, 128), (0, 0, 142)


def photo(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def values(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Ground above, road below, a car on it, one ignored row between; the place depends on the seed."""
    mask = np.zeros(size[::-1], dtype=np.uint8)
    mask[4:] = 1
    mask[3] = 255
    mask[5:7, seed % 6 : seed % 6 + 3] = 2
    return mask


def save(image: Image.Image | np.ndarray, path: Path, **kinds: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **kinds)
    return path


def make(root: Path, names: str = "abcd", images: str = "images", masks: str = "masks", end: str = "") -> Path:
    for i, name in enumerate(names):
        save(photo(ord(name)), root / images / f"{name}.jpg")
        save(values(i), root / masks / f"{name}{end}.png")
    return root


def decoded(found: Any, split: str = "train") -> list[np.ndarray]:
    return [load_mask(row["mask"], found.table) for row in found.splits[split]]


def names_of(rows: list[dict[str, Any]]) -> list[str]:
    return [Path(row["row"]).stem for row in rows]


# -- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "masks", "end"),
    [
        ("images", "masks", ""),
        ("JPEGImages", "SegmentationClass", ""),
        ("images", "annotations/trimaps", ""),
        ("imgs", "labels", "_mask"),
        ("leftImg8bit", "gtFine", "_gtFine_labelIds"),
    ],
)
def test_photos_and_masks_are_matched_by_name(tmp_path, images, masks, end):
    make(tmp_path, images=images, masks=masks, end=end)
    (tmp_path / images / "._a.jpg").write_bytes(b"what an archive brings")
    save(values(), tmp_path / "SegmentationObject" / "a.png")
    save(values(), tmp_path / masks / "stray.png")
    found = read_segmentation(tmp_path, classes=CLASSES)
    assert names_of(found.splits["train"]) == list("abcd")
    for i, mask in enumerate(decoded(found)):
        np.testing.assert_array_equal(mask, values(i))
    assert found.table.names == ("ground", "road", "car")
    assert found.ignore_index == 255
    assert found.splits["train"][0]["pixels"] == [36, 42, 6, 12]
    assert any("1 masks have no photo" in notice for notice in found.notices)
    assert any("12.5% of the pixels do not count (255)" in notice for notice in found.notices)


def test_city_folders_and_two_ends_of_names(tmp_path):
    for i, city in enumerate(("aachen", "ulm")):
        for split in ("train", "val"):
            save(photo(i), tmp_path / "leftImg8bit" / split / city / f"{city}_0_leftImg8bit.png")
            save(values(i), tmp_path / "gtFine" / split / city / f"{city}_0_gtFine_labelIds.png")
            save(photo(i), tmp_path / "gtFine" / split / city / f"{city}_0_gtFine_color.png")
    found = read_segmentation(tmp_path, classes=CLASSES)
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 2, "valid": 2}
    np.testing.assert_array_equal(decoded(found, "valid")[1], values(1))


def test_masks_beside_their_photos_with_a_list_of_classes(tmp_path):
    for split in ("train", "valid"):
        make(tmp_path, "ab", images=split, masks=split, end="_mask")
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, ground\n1, road\n2, car\n")
    found = read_segmentation(tmp_path, classes=tmp_path / "train" / "_classes.csv")
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 2, "valid": 2}
    assert found.table.names == ("ground", "road", "car")


def test_splits_above_below_and_in_lists(tmp_path):
    above, below, lists = tmp_path / "above", tmp_path / "below", tmp_path / "lists"
    for split, names in (("train", "ab"), ("val", "c"), ("test", "d")):
        make(above, names, f"{split}/images", f"{split}/masks")
        make(below, names, f"images/{split}2017", f"masks/{split}2017")
    make(lists, "abcdef", "JPEGImages", "SegmentationClass")
    (lists / "SegmentationClass" / "f.png").unlink()  # in no list, so nothing is missing
    folder = lists / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    for name, held in (("train", "a\nb\n"), ("val", "c"), ("test", "d 1 2\n\n"), ("trainval", "a\nb\nc")):
        (folder / f"{name}.txt").write_text(held)
    for root in (above, below, lists):
        found = read_segmentation(root, classes=CLASSES)
        held = {split: "".join(names_of(rows)) for split, rows in found.splits.items()}
        assert held == {"train": "ab", "valid": "c", "test": "d"}, root.name
    assert any("2 photos are in no list" in notice for notice in found.notices)
    for name in ("train", "val"):
        (folder / f"{name}.txt").unlink()
    assert names_of(read_segmentation(lists, classes=CLASSES).splits["train"]) == list("abc")


def test_named_folders_mappings_and_tables(tmp_path):
    make(tmp_path, "abcd", "pictures of a", "and what they show")
    pair = {"images": tmp_path / "pictures of a", "masks": str(tmp_path / "and what they show")}
    make(tmp_path / "other", "xy")
    found = read_segmentation({"train": pair, "val": tmp_path / "other"}, classes=CLASSES)
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 4, "valid": 2}
    (tmp_path / "train.csv").write_text(
        "photo,mask\n" + "".join(f"pictures of a/{n}.jpg,and what they show/{n}.png\n" for n in "abc")
    )
    for data in (tmp_path / "train.csv", tmp_path):
        table = read_segmentation(data, classes=CLASSES, columns={"image": "photo"})
        assert [row["row"] for row in table.splits["train"]] == [2, 3, 4]
        np.testing.assert_array_equal(decoded(table)[2], values(2))


def test_rows_in_memory_and_datasets():
    rows = [{"image": photo(i), "mask": Image.fromarray(values(i))} for i in range(4)]
    arrays = [{"image": np.asarray(row["image"]), "mask": values(i).astype(np.int64)} for i, row in enumerate(rows)]
    features = Features({"image": ImageFeature(), "mask": ImageFeature()})
    dataset = Dataset.from_list(rows, features=features)
    for data in (rows, arrays, dataset, DatasetDict({"train": dataset}), {"train": rows}):
        found = read_segmentation(data, classes=CLASSES)
        for i, mask in enumerate(decoded(found)):
            np.testing.assert_array_equal(mask, values(i))
        assert [row["row"] for row in found.splits["train"]] == [1, 2, 3, 4]
    yes_or_no = [{"image": photo(i), "mask": values(i) == 1} for i in range(2)]
    assert decoded(read_segmentation(yes_or_no, classes={"rest": 0, "road": 1}))[0].max() == 1


def test_builtin_scenes():
    found = read_segmentation("builtin:digit-scenes")
    assert list(found.splits) == ["train", "valid", "test"]
    assert found.table.names == ("ground", *"0123456789")
    assert found.notices == []
    with pytest.raises(DataError, match="'builtin:digit-scenes'"):
        read_segmentation("builtin:scenes")


# -- values -----------------------------------------------------------------------------------------------------------


def test_values_are_mapped_as_asked():
    trimap = np.where(values() == 255, 3, values() + 1).astype(np.uint8)  # 1 ground, 2 road, 3 border and car
    found = read_segmentation([{"image": photo(), "mask": trimap}], classes={"road": 2, "ground": 1}, ignore=(3, 255))
    assert found.table.names == ("road", "ground")
    np.testing.assert_array_equal(decoded(found)[0], np.select([trimap == 2, trimap == 1], [0, 1], 255))


def test_of_a_palette_the_index_counts_and_colours_need_a_table():
    index = Image.fromarray(np.minimum(values(), 2)).convert("P")
    index.putpalette([9, 9, 9, *ROAD, *CAR])
    rows = [{"image": photo(), "mask": index}]
    np.testing.assert_array_equal(decoded(read_segmentation(rows, classes=CLASSES))[0], np.minimum(values(), 2))
    colours = {"ground": (9, 9, 9), "road": ROAD, "car": CAR}
    for mask in (index, index.convert("RGB"), index.convert("RGBA")):
        found = read_segmentation([{"image": photo(), "mask": mask}], classes=colours)
        np.testing.assert_array_equal(decoded(found)[0], np.minimum(values(), 2))
    found = read_segmentation(rows, classes={"road": ROAD, "car": CAR}, ignore=[(9, 9, 9)])
    assert decoded(found)[0][0, 0] == 255


def test_one_bit_sixteen_bits_and_three_equal_channels():
    road = values() == 1
    for mask in (
        Image.fromarray(road),
        Image.fromarray(road.astype(np.uint16)),
        Image.fromarray(road.astype(np.int32)),
        Image.fromarray(road.astype(np.uint8)).convert("RGB"),
    ):
        found = read_segmentation([{"image": photo(), "mask": mask}], classes=["rest", "road"])
        np.testing.assert_array_equal(decoded(found)[0], road)
    assert found.notices == ["train: 1 masks have three equal channels and are read as one."]
    wide = values().astype(np.uint16) * 1000
    found = read_segmentation(
        [{"image": photo(), "mask": wide}], classes={"road": 1000, "rest": 0}, ignore=[2000, 255000 % 65536]
    )
    assert set(np.unique(decoded(found)[0])) == {0, 1, 255}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "ground\nroad\n\ncar\n"),
        ("label_names.txt", "# the classes\n0 ground\n1: road\n2 car\n"),
        ("classes.yaml", "names: {0: ground, 1: road, 2: car}\n"),
        ("sem_names.yaml", "classes:\n- ground\n- road\n- car\n"),
        ("id2label.json", '{"0": "ground", "1": "road", "2": "car"}'),
        ("data.yaml", "path: .\nnames:\n  ground: 0\n  road: 1\n  car: 2\n"),
    ],
)
def test_class_names_come_from_a_file_beside(tmp_path, name, content):
    make(tmp_path)
    (tmp_path / name).write_text(content)
    found = read_segmentation(tmp_path)
    assert dict(zip(found.table.names, found.table.values, strict=True)) == CLASSES
    assert f"class names are those of {name}." in found.notices
    assert read_segmentation(tmp_path, ignore=(0, 255)).table.names == (
        "road",
        "car",
    )  # what a file names may be left out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("label_colors.txt", "128 64 128 road\n0 0 142\tcar\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nroad:128,64,128::\ncar:0,0,142::\n"),
        ("classes.yaml", "classes: {road: [128, 64, 128], car: [0, 0, 142]}"),
    ],
)
def test_class_files_may_hold_colours(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_class_file(tmp_path / name) == {"road": ROAD, "car": CAR}


def test_a_class_file_may_say_what_does_not_count(tmp_path):
    make(tmp_path)
    (tmp_path / "classes.yaml").write_text("classes: {road: 1, car: 2}\nignore: [0, 255]\n")
    found = read_segmentation(tmp_path)
    assert (found.table.names, found.table.ignored) == (("road", "car"), (0, 255))
    assert read_segmentation(tmp_path, classes="classes.yaml").table == found.table
    with pytest.raises(DataError, match=r"masks hold 0 \("):
        read_segmentation(tmp_path, ignore=[255])
    (tmp_path / "classes.yaml").write_text("classes: {road: 1, car: 2}\nignore: 255\n")
    with pytest.raises(DataError, match="'ignore' is a list of values"):
        read_segmentation(tmp_path)


def test_without_names_every_value_is_a_class(tmp_path):
    found = read_segmentation(make(tmp_path))
    assert found.table.names == ("0", "1", "2")
    assert any("no class names were given" in notice for notice in found.notices)


# -- COCO -------------------------------------------------------------------------------------------------------------


def coco(folder: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:
    save(photo(), folder / "images" / "a.jpg")
    save(photo(1), folder / "images" / "b.jpg")
    content = {
        "images": [{"id": i, "file_name": n, "width": 12, "height": 8} for i, n in ((7, "a.jpg"), (9, "b.jpg"))],
        "categories": [{"id": 3, "name": "car"}, {"id": 90, "name": "road"}],
        "annotations": [{"id": i, "image_id": 7, "iscrowd": 0, **a} for i, a in enumerate(annotations)],
        **changes,
    }
    path = folder / "annotations" / "instances_train2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def test_coco_outlines_become_masks(tmp_path):
    inside = np.zeros((8, 12), dtype=bool)
    inside[5:7, 2:5] = True
    runs = _runs(inside)
    path = coco(
        tmp_path,
        [
            {"category_id": 3, "segmentation": {"size": [8, 12], "counts": runs}},
            {"category_id": 90, "segmentation": [box(0, 4, 12, 8), box(0, 0, 1, 1)]},
            {"category_id": 3, "segmentation": {"size": [8, 12], "counts": [0, 96]}, "iscrowd": 1, "image_id": 9},
            {"category_id": 90, "segmentation": [], "image_id": 9},
            {"category_id": 90, "segmentation": [box(0, 4, 12, 8)], "image_id": 9},
        ],
    )
    expected = np.zeros((8, 12), dtype=np.uint8)
    expected[4:], expected[0, 0], expected[5:7, 2:5] = 2, 2, 1  # the smaller lies on top
    for data in (path, tmp_path, {"train": path}):
        found = read_segmentation(data)
        assert found.table.names == ("background", "car", "road")
        np.testing.assert_array_equal(decoded(found)[0], expected)
        assert found.splits["train"][1]["pixels"] == [0, 0, 48, 48]
        assert [row["row"] for row in found.splits["train"]] == ["a.jpg", "b.jpg"]
    assert any("1 of 5 annotations have no outline" in notice for notice in found.notices)
    assert any("1 crowds do not count" in notice for notice in found.notices)
    assert read_segmentation(path, classes=["road"]).table.names == ("background", "road")


def _runs(inside: np.ndarray) -> list[int]:
    flat = inside.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]).astype(int)))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return counts if counts[-1] else counts[:-1]


def _compressed(counts: list[int]) -> str:
    """`rleToString` of COCO's maskApi.c, written from its description."""
    text = ""
    for i, count in enumerate(counts):
        number, more = count - counts[i - 2] if i > 2 else count, True
        while more:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            text += chr((bits | 32 if more else bits) + 48)
    return text


def test_compressed_run_lengths_are_read():
    draw = np.random.default_rng(0)
    for size in ((1, 1), (40, 30), (300, 200)):
        inside = np.zeros(size[::-1], dtype=bool)
        for _ in range(5):
            x, y = draw.integers(0, size[0]), draw.integers(0, size[1])
            inside[y : y + 60, x : x + 90] ^= True
        counts = _runs(inside)
        for form in (counts, _compressed(counts)):
            np.testing.assert_array_equal(rle_mask({"size": [size[1], size[0]], "counts": form}, size), inside)


def test_a_polygon_holds_the_pixels_whose_centre_is_inside():
    square = polygon_mask(box(2, 1, 5, 4), (8, 6))
    assert square.sum() == 9
    assert square[1:4, 2:5].all()
    assert polygon_mask(box(2.4, 1.6, 5.4, 4.4), (8, 6)).sum() == 6  # 3 columns, 2 rows
    assert polygon_mask(box(-5, -5, 50, 50), (8, 6)).all()
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([50 + 30 * np.cos(angle), 40 + 30 * np.sin(angle)], axis=1)
    ours = polygon_mask(circle.ravel().tolist(), (100, 80))
    assert ours.sum() == pytest.approx(np.pi * 30**2, rel=0.005)
    drawn = Image.new("1", (100, 80))
    ImageDraw.Draw(drawn).polygon([tuple(p) for p in circle], fill=1)
    assert (ours != np.asarray(drawn)).mean() < 0.02  # PIL also fills the outline
    assert scene_mask([], (8, 6)).sum() == 0


@pytest.mark.parametrize(
    ("annotations", "changes", "expected"),
    [
        ([{"category_id": 4, "segmentation": [box(0, 0, 3, 3)]}], {}, "annotation 0: no category has the id 4"),
        ([{"category_id": 3, "segmentation": [box(0, 0, 3, 3)], "image_id": 1}], {}, "no picture has the id 1"),
        ([{"category_id": 3, "segmentation": [[1, 2, 3, 4]]}], {}, "'a.jpg'.*at least three points"),
        ([{"category_id": 3, "segmentation": [[1, 2, 3, 4, 5, 6, 7]]}], {}, "list of numbers"),
        ([{"category_id": 3, "segmentation": {"size": [8, 12], "counts": [5, 5]}}], {}, "cover 10 pixels of 96"),
        ([{"category_id": 3, "segmentation": {"size": [12, 8], "counts": [96]}}], {}, "size.*12, 8"),
        ([{"category_id": 3, "segmentation": {"size": [8, 12], "counts": "0o"}}], {}, "middle of a number"),
        ([{"category_id": 3, "bbox": [0, 0, 3, 3]}], {}, "boxes and no outlines"),
        ([], {"images": []}, "lists no pictures"),
        ([], {"images": [{"id": 1, "file_name": "a.jpg"}]}, "has no 'width'"),
        ([], {"categories": {}}, "'images', 'annotations', 'categories'"),
        ([], {"images": [{"id": 1, "file_name": "z.jpg", "width": 12, "height": 8}]}, "'z.jpg', which is not there"),
        (
            [{"category_id": 3, "segmentation": [box(0, 0, 3, 3)]}],
            {"categories": [{"id": 3, "name": "x"}] * 2},
            "two cat",
        ),
        (
            [{"category_id": 3, "segmentation": [box(0, 0, 3, 3)]}],
            {"images": [{"id": 7, "file_name": "a.jpg", "width": 8, "height": 12}]},
            "exchanged",
        ),
    ],
)
def test_faults_in_coco_are_refused(tmp_path, annotations, changes, expected):
    path = coco(tmp_path, annotations, **changes)
    with pytest.raises(DataError, match=expected):
        read_segmentation(path)


def test_other_faults_in_coco(tmp_path):
    path = coco(tmp_path, [{"category_id": 3, "segmentation": [box(0, 0, 3, 3)]}])
    with pytest.raises(DataError, match="says itself"):
        read_segmentation(path, classes=CLASSES)
    with pytest.raises(DataError, match="no category 'bus'"):
        read_segmentation(path, classes=["bus"])
    (path.parent / "person_keypoints_train2017.json").write_text("{}")
    assert len(read_segmentation(tmp_path).splits["train"]) == 2  # "instances" is the one with outlines
    path.rename(path.with_name("stuff_train2017.json"))
    with pytest.raises(DataError, match="look like train"):
        read_segmentation(tmp_path)
    (tmp_path / "broken.json").write_text('{"images": [')
    with pytest.raises(DataError, match="broken.json cannot be read as JSON"):
        read_segmentation(tmp_path / "broken.json")


def test_masks_go_before_coco_and_it_is_said(tmp_path):
    coco(tmp_path, [{"category_id": 3, "segmentation": [box(0, 0, 3, 3)]}])
    for name in "ab":
        save(values(), tmp_path / "masks" / f"{name}.png")
    found = read_segmentation(tmp_path, classes=CLASSES)
    assert any("instances_train2017.json' not" in notice for notice in found.notices)


# -- faults -----------------------------------------------------------------------------------------------------------


def no_mask(root: Path) -> None:
    (root / "masks" / "b.png").unlink()


def no_photo_at_all(root: Path) -> None:
    for path in (root / "images").iterdir():
        path.unlink()


def other_size(root: Path) -> None:
    save(values(size=(12, 9)), root / "masks" / "b.png")


def transposed(root: Path) -> None:
    save(values().T.copy(), root / "masks" / "b.png")


def turned_photo(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    save(photo(), root / "images" / "b.jpg", exif=exif)


def coloured(root: Path) -> None:
    mask = np.zeros((8, 12, 3), dtype=np.uint8)
    mask[4:], mask[5:7, 2:5] = ROAD, CAR
    save(mask, root / "masks" / "b.png")


def jpeg(root: Path) -> None:
    (root / "masks" / "b.png").unlink()
    save(values(), root / "masks" / "b.jpg")


def jpeg_called_png(root: Path) -> None:
    save(values(), root / "masks" / "b.png", format="JPEG")


def instances(root: Path) -> None:
    save(values().astype(np.uint16) * 1000 + 7, root / "masks" / "b.png")


def unknown_value(root: Path) -> None:
    mask = values()
    mask[0, :5] = 7
    save(mask, root / "masks" / "b.png")


def interpolated(root: Path) -> None:
    small = Image.fromarray(values() % 254 * 100)
    save(small.resize((60, 40), Image.Resampling.BILINEAR).resize(SIZE), root / "masks" / "b.png")


def truncated_mask(root: Path) -> None:
    draw = np.random.default_rng(0).integers(0, 3, (8, 12), dtype=np.uint8)
    path = save(draw, root / "masks" / "b.png")
    path.write_bytes(path.read_bytes()[:-30])


def no_png(root: Path) -> None:
    (root / "masks" / "b.png").write_text("not a picture")


def measurements(root: Path) -> None:
    save(Image.fromarray(values().astype(np.float32)), root / "masks" / "b.tif")
    (root / "masks" / "b.png").unlink()


def two_masks(root: Path) -> None:
    save(values(), root / "masks" / "b_mask.png")


def two_mask_folders(root: Path) -> None:
    make(root, masks="masks_fine")


def broken_photo(root: Path) -> None:
    path = root / "images" / "b.jpg"
    path.write_bytes(path.read_bytes()[:200])


def odd_list(root: Path) -> None:
    (root / "train.txt").write_text("a\nz\n")


def list_without_mask(root: Path) -> None:
    no_mask(root)
    (root / "train.txt").write_text("a\nb\n")


def only_one_class(root: Path) -> None:
    for name in "abcd":
        save(np.zeros((8, 12), dtype=np.uint8), root / "masks" / f"{name}.png")


def all_ignored(root: Path) -> None:
    for name in "abcd":
        save(np.full((8, 12), 255, dtype=np.uint8), root / "masks" / f"{name}.png")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (no_mask, "1 of 4 photos have no mask.*'images/b.jpg'.*train.txt"),
        (no_photo_at_all, "needs a folder of photos"),
        (other_size, "row images/b.jpg: mask b.png has 12 × 9 pixels, its photo b.jpg 12 × 8.*NEAREST"),
        (transposed, "exchanged"),
        (turned_photo, "12 × 8 pixels, its photo b.jpg 8 × 12 after the turn.*EXIF.*exif_transpose"),
        (coloured, r"mask b.png holds colours.*\(0, 0, 0\), \(128, 64, 128\), \(0, 0, 142\).*classes="),
        (jpeg, "b.jpg is a JPEG.*Export the masks as PNG"),
        (jpeg_called_png, "b.png is a JPEG"),
        (instances, r"1007 \(36 pixels in 1 masks\)|1007.*above 255"),
        (unknown_value, r"7 \(5 pixels in 1 masks\).*b.png.*ground = 0, road = 1, car = 2; ignored: 255"),
        (interpolated, "resizing with interpolation"),
        (truncated_mask, "row images/b.jpg: mask b.png is damaged"),
        (no_png, "b.png is no picture"),
        (measurements, "mode 'F'"),
        (two_masks, "images/b.jpg has 2 masks: 'masks/b.png', 'masks/b_mask.png'"),
        (two_mask_folders, "2 folders of masks.*'masks', 'masks_fine'.*data="),
        (broken_photo, "b.jpg"),
        (odd_list, "train.txt, line 2: there is no photo named 'z'"),
        (list_without_mask, "train.txt, line 2: there is no mask for the photo 'b'"),
        (only_one_class, "every pixel of train that counts is 'ground'"),
        (all_ignored, "no mask has a pixel that counts"),
    ],
)
def test_what_cannot_be_right_is_an_error_with_the_place(tmp_path, spoil, expected):
    spoil(make(tmp_path))
    with pytest.raises(DataError) as caught:
        load_segmentation_splits(tmp_path, classes=CLASSES, valid_fraction=0.25)
    assert re.search(expected, str(caught.value), re.DOTALL), caught.value


def test_only_the_first_five_faults_of_a_split_are_shown(tmp_path):
    make(tmp_path, "abcdefgh")
    for name in "abcdefg":
        (tmp_path / "masks" / f"{name}.png").write_text("no")
    with pytest.raises(DataError, match="and 2 more of train") as caught:
        read_segmentation(tmp_path, classes=CLASSES)
    assert len(str(caught.value).splitlines()) == 6


@pytest.mark.parametrize(
    ("data", "kinds", "expected"),
    [
        ("nowhere", {}, "'nowhere' is no file and no folder"),
        ([{"image": None, "mask": None}], {}, "row 1, image: expected a picture"),
        ([{"image": photo(), "mask": None}], {}, "row 1, mask: expected a picture"),
        ([{"image": photo(), "mask": values()[None]}], {}, r"shape \(1, 8, 12\)"),
        ([{"image": photo(), "mask": values() / 2}], {}, "float64"),
        ([{"image": photo(), "mask": values()}], {"columns": {"mask": "label"}}, "'label' not found.*'image', 'mask'"),
        ([{"image": photo(), "mask": values()}], {"classes": {"a": 0, "b": 0}}, "value 0 is given twice"),
        ([{"image": photo(), "mask": values()}], {"classes": ["a", "a"]}, "twice"),
        ([{"image": photo(), "mask": values()}], {"classes": {"a": 0, "b": ROAD}}, "mix numbers and colours"),
        ([{"image": photo(), "mask": values()}], {"classes": {"a": 0, "b": -1}}, "-1 is no value"),
        ([{"image": photo(), "mask": values()}], {"classes": CLASSES, "ignore": [2, 255]}, "class 'car' and ignored"),
        ([{"image": photo(), "mask": values()}], {"classes": "nowhere.txt"}, "no file of class names 'nowhere.txt'"),
        ({"train": [{"image": photo(), "mask": values()}], "dev2": []}, {"classes": CLASSES}, "'dev2' is unknown"),
        ({"valid": [{"image": photo(), "mask": values()}]}, {"classes": CLASSES}, "no split 'train'"),
        ({"images": "nowhere", "masks": "nowhere"}, {}, "no folder 'nowhere'"),
        ([{"image": photo(), "mask": np.where(values() == 1, 255, 0)}], {}, "classes={'ground': 0, 'object': 255}"),
        ([{"image": photo(), "mask": np.arange(96).reshape(8, 12)}], {}, "96 values.*too many"),
    ],
)
def test_other_mistakes_are_answered(data, kinds, expected):
    with pytest.raises(DataError, match=expected):
        read_segmentation(data, **kinds)


def test_an_empty_folder_and_one_with_two_name_files(tmp_path):
    with pytest.raises(DataError, match="it holds nothing"):
        read_segmentation(tmp_path)
    make(tmp_path)
    for name in ("sem_names.yaml", "labels.txt"):
        (tmp_path / name).write_text("classes: [ground, road, car]")
    with pytest.raises(DataError, match="2 files of class names.*'labels.txt', 'sem_names.yaml'"):
        read_segmentation(tmp_path)
    assert read_segmentation(tmp_path, classes="sem_names.yaml").table.names == ("ground", "road", "car")
    (tmp_path / "labels.txt").write_text("0 ground\n0 ground\n")
    with pytest.raises(DataError, match="none twice"):
        read_segmentation(tmp_path, classes="labels.txt")


# -- doubts -----------------------------------------------------------------------------------------------------------


def test_doubts_are_counted(tmp_path):
    make(tmp_path, "abcdefgh")
    make(tmp_path / "test", "xyz")
    save(photo(ord("a")), tmp_path / "test" / "images" / "x.jpg")
    save(np.zeros((8, 12), dtype=np.uint8), tmp_path / "test" / "masks" / "y.png")
    save(np.zeros((8, 12), dtype=np.uint8), tmp_path / "test" / "masks" / "z.png")
    save(np.zeros((8, 12), dtype=np.uint8), tmp_path / "test" / "masks" / "x.png")
    save(np.full((8, 12), 255, dtype=np.uint8), tmp_path / "masks" / "h.png")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down: the size says nothing about the mask
    save(photo(1), tmp_path / "images" / "g.jpg", exif=exif)
    data = {"train": {"images": tmp_path / "images", "masks": tmp_path / "masks"}, "test": tmp_path / "test"}
    splits, table = load_segmentation_splits(data, classes={**CLASSES, "sky": 9}, valid_fraction=0.2)
    said = "\n".join(splits.notices)
    assert "train: 1 of 8 masks hold only pixels that do not count and are left out: 'h.jpg'" in said
    assert (
        "train: 1 photos are turned as their EXIF note says; make sure that their masks are too, for example g.png"
        in said
    )
    assert "1 of 3 pictures are also in train" in said
    assert "train: 1 of 4 classes have no pixel and cannot be learnt: 'sky'" in said
    assert "test: 2 of 4 classes have no pixel, so nothing says how well they are found: 'road', 'car'" in said
    assert "cut from images, seed 0" in said
    assert len(splits.train) + len(splits.valid) == 7
    assert table.names[3] == "sky"


def test_the_cut_keeps_equal_photos_together_and_a_mask_of_one_class_is_named():
    rows = [{"image": photo(i // 2), "mask": np.where(values(i) == 2, 2, 0)} for i in range(20)]
    splits, _ = load_segmentation_splits(rows, classes=CLASSES, valid_fraction=0.3, test_fraction=0.2)
    assert [len(split) for _, split in splits.items()] == [12, 4, 4]
    assert not any("also in train" in notice for notice in splits.notices)
    assert any("94% of the pixels are 'ground'; a mask of nothing else" in notice for notice in splits.notices)
    for split in (splits.train, splits.valid, splits.test):
        assert set(split.column_names) == {"image", "mask", "pixels", "row"}


def test_a_decoded_mask_names_what_it_does_not_know():
    table = ClassTable(("a", "b"), (0, 1))
    with pytest.raises(DataError, match="holds '2'; known are a = 0, b = 1"):
        load_mask(stored_mask(np.array([[0, 1, 2]]), None, "here"), table)
    buffer = io.BytesIO()
    Image.new("RGBA", (2, 2), (1, 2, 3, 0)).save(buffer, "PNG")
    with pytest.raises(DataError, match="transparent"):
        load_mask(stored_mask(buffer.getvalue(), None, "here"), ClassTable(("a",), ((1, 2, 3),), ()))


# -- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_oxford_pets(test_data):
    folder = test_data / "vision_multi" / "oxford_pets_mini"
    found = read_segmentation(folder, classes={"pet": 1, "ground": 2}, ignore=(3, 255))
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 120, "test": 60}
    assert any("train: 12.6% of the pixels do not count (3, 255)" in notice for notice in found.notices)
    with pytest.raises(DataError, match=r"masks hold 3 \(\d+ pixels in 120 masks\), which no class has"):
        read_segmentation(folder, classes={"pet": 1, "ground": 2})


@pytest.mark.realdata
def test_coco_with_its_stuff(test_data):
    folder = test_data / "vision_multi" / "coco_open53"
    with pytest.raises(DataError, match="3 files of class names"):
        read_segmentation(folder)
    splits, table = load_segmentation_splits(folder, classes="sem_names.yaml", ignore=(0, 255))
    assert [len(split) for _, split in splits.items()] == [26, 27]
    assert "unlabeled" not in table.names
    assert "person" in table.names
    assert any("classes have no pixel and cannot be learnt" in notice for notice in splits.notices)
