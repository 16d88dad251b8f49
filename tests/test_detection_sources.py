"""Boxes from COCO, Pascal VOC, YOLO, tables and memory, and everything that can be wrong with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image

from ftnb.detection.boxes import BOX_FORMATS, BoxNotes, check_boxes, convert_boxes, fits
from ftnb.detection.sources import load_detection_splits, read_detection
from ftnb.tables import DataError

SIZE = (80, 60)
BOXES = [[10.0, 5.0, 30.0, 25.0], [40.0, 20.0, 80.0, 60.0]]
LABELS = ["cat", "dog"]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE, **kinds: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **kinds)
    return path


def turned(path: Path, orientation: int = 6) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(path, exif=exif)


def coco(path: Path, names: list[str], boxes: Any = BOXES, labels: Any = (7, 3), **changes: Any) -> Path:
    """A COCO file on pictures of `SIZE`, every one with the same boxes; category ids are 3 and 7."""
    as_coco = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]
    data = {
        "images": [{"id": 100 + i, "file_name": n, "width": SIZE[0], "height": SIZE[1]} for i, n in enumerate(names)],
        "annotations": [
            {"id": 9 * i + j, "image_id": 100 + i, "category_id": label, "bbox": box, "iscrowd": 0}
            for i in range(len(names))
            for j, (box, label) in enumerate(zip(as_coco, labels, strict=True))
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        **changes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def voc(path: Path, name: str, boxes: Any = BOXES, labels: Any = LABELS, size: tuple[int, int] = SIZE) -> Path:
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin><xmax>{b[2]}</xmax>"
        f"<ymax>{b[3]}</ymax></bndbox><difficult>{i}</difficult></object>"
        for i, (b, label) in enumerate(zip(boxes, labels, strict=True))
    )
    shape = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>{name}</filename>{shape}{objects}</annotation>", encoding="utf-8")
    return path


def yolo(path: Path, boxes: Any = BOXES, labels: Any = (0, 1)) -> Path:
    rows = convert_boxes(boxes, "xyxy", "cxcywhn", SIZE)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{label} {' '.join(map(str, row))}" for row, label in zip(rows, labels, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def voc_folder(folder: Path, count: int = 4) -> Path:
    for i in range(count):
        picture(folder / "JPEGImages" / f"{i}.jpg", i)
        voc(folder / "Annotations" / f"{i}.xml", f"{i}.jpg")
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n")
    (lists / "val.txt").write_text("3\n")
    (lists / "cat_train.txt").write_text("0 1\n1 -1\n2 1\n")
    return folder


def yolo_folder(folder: Path, names: str = "names: {0: cat, 1: dog}\ntrain: images/train\nval: images/val\n") -> Path:
    for split, numbers in (("train", (0, 1, 2)), ("val", (3,))):
        for i in numbers:
            picture(folder / "images" / split / f"{i}.png", i)
            yolo(folder / "labels" / split / f"{i}.txt")
    if names:
        (folder / "data.yaml").write_text(names, encoding="utf-8")
    return folder


def rows_in_memory(count: int = 4) -> list[dict[str, Any]]:
    images = [Image.new("RGB", SIZE, (i, 0, 0)) for i in range(count)]
    return [{"image": image, "boxes": BOXES, "labels": LABELS} for image in images]


def assert_boxes(found: Any, splits: dict[str, int], labels: tuple[str, ...] = ("cat", "dog")) -> None:
    assert {name: len(rows) for name, rows in found.splits.items()} == splits
    assert found.label_names == labels
    for rows in found.splits.values():
        for row in rows:
            assert set(row) == {"image", "boxes", "labels", "row"}
            assert row["labels"] == LABELS
            np.testing.assert_allclose(row["boxes"], BOXES, atol=1e-6)


# -- boxes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", BOX_FORMATS)
@pytest.mark.parametrize("source", BOX_FORMATS)
def test_every_format_becomes_every_other_and_back(source, target):
    boxes = convert_boxes(BOXES, "xyxy", source, SIZE)
    back = convert_boxes(convert_boxes(boxes, source, target, SIZE), target, source, SIZE)
    np.testing.assert_allclose(back, boxes)
    assert fits(boxes, SIZE, source).all()


def test_conversion_agrees_with_torchvision_and_needs_a_size_only_for_units():
    import torch
    from torchvision.ops import box_convert

    for target in ("xywh", "cxcywh"):
        expected = box_convert(torch.tensor(BOXES), "xyxy", target)
        np.testing.assert_allclose(convert_boxes(BOXES, "xyxy", target), expected)
    with pytest.raises(DataError, match=r"size=\(width, height\)"):
        convert_boxes(BOXES, "xyxy", "cxcywhn")
    with pytest.raises(DataError, match="'xywh': left, top, width, height in pixels"):
        convert_boxes(BOXES, "yxyx", "xyxy")


def test_boxes_that_stick_out_are_clipped_and_those_without_area_left_out_and_both_counted():
    notes = BoxNotes()
    boxes = [[-0.5, 0, 20, 20], [5, 5, 5, 9], [60, 50, 200, 90], [0, 0, 80, 60.004]]
    kept, positions = check_boxes(boxes, SIZE, place="a.jpg", notes=notes)
    assert kept == [[0, 0, 20, 20], [60, 50, 80, 60], [0, 0, 80, 60]]
    assert positions == [0, 2, 3]
    assert dict(notes.counts) == {"clipped": 2, "no area": 1}
    assert notes.messages()[0].startswith("2 of 4 boxes stick out of their picture")
    assert "a.jpg, box 2 (5, 5, 5, 9)" in notes.messages()[1]


@pytest.mark.parametrize(
    ("box", "box_format", "expected"),
    [
        ([30, 5, 10, 25], "xyxy", ["left of its left one", "'xywh'"]),
        ([10, 25, 30, 5], "xyxy", ["bottom above its top"]),
        ([10, 5, -3, 5], "xywh", ["width or height is negative"]),
        ([90, 5, 95, 25], "xyxy", ["wholly outside", "80 × 60"]),
        ([-20, 5, -1, 25], "xyxy", ["wholly outside"]),
        ([0.1, 0.1, 0.5, 0.5], "xyxy", ["normalised", "box_format='xyxyn'"]),
        ([0.1, 0.1, 0.5, 0.5], "xywh", ["normalised", "box_format='xywhn'"]),
        ([10, 5, 30, 25], "cxcywhn", ["these are pixels", "box_format='cxcywh'"]),
        ([float("nan"), 5, 30, 25], "xyxy", ["not finite"]),
        ([10, 5, 30], "xyxy", ["four numbers, got 3"]),
        ("10 5 30 25", "xyxy", ["four numbers"]),
        (None, "xyxy", ["four numbers, got None"]),
        ([10, 5, 30, "x"], "xyxy", ["four numbers"]),
        ([10, 5, 30, 25], "xxyy", ["'xxyy' is unknown", "centre x"]),
    ],
)
def test_a_box_that_cannot_be_right_is_refused_with_the_place_named(box, box_format, expected):
    with pytest.raises(DataError) as caught:
        check_boxes(
            [[1, 1, 5, 5] if not box_format.endswith("n") else [0.1, 0.1, 0.1, 0.1], box], SIZE, box_format, "b.jpg"
        )
    for part in [*expected, *([] if box_format == "xxyy" else ["b.jpg, box 2"])]:
        assert part in str(caught.value)


# -- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["", "images/", "train2017/", "images/train/"])
def test_coco_finds_its_pictures_wherever_they_usually_are(tmp_path, where):
    for i in range(3):
        picture(tmp_path / where / f"{i}.jpg", i)
    file = coco(tmp_path / "annotations" / "instances_train2017.json", [f"{i}.jpg" for i in range(3)])
    assert_boxes(read_detection(file), {"train": 3})
    assert_boxes(read_detection(tmp_path), {"train": 3})


def test_coco_folder_with_splits_captions_crowds_and_pictures_without_boxes(tmp_path):
    for i in range(4):
        picture(tmp_path / ("val" if i == 3 else "train") / f"{i}.jpg", i)
    folder = tmp_path / "annotations"
    path = coco(folder / "instances_train.json", ["0.jpg", "1.jpg", "2.jpg"])
    data = json.loads(path.read_text())
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != 102]
    data["annotations"].append({"image_id": 100, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1})
    path.write_text(json.dumps(data))
    coco(folder / "instances_val.json", ["3.jpg"])
    coco(folder / "captions_train.json", ["0.jpg"])
    found = read_detection(tmp_path)
    assert [len(row["boxes"]) for row in found.splits["train"]] == [2, 2, 0]
    assert len(found.splits["valid"]) == 1
    assert found.label_names == ("cat", "dog")  # the file's order, not that of the ids
    said = "\n".join(found.notices)
    assert "1 crowd regions" in said
    assert "1 of 3 pictures have no box" in said
    assert "'captions_train.json'" in said
    assert "COCO format" in said


def test_coco_split_by_folders_with_the_pictures_beside(tmp_path):
    for split, numbers in (("train", (0, 1)), ("valid", (2,)), ("test", (3,))):
        for i in numbers:
            picture(tmp_path / split / f"{i}.jpg", i)
        coco(tmp_path / split / "_annotations.coco.json", [f"{i}.jpg" for i in numbers])
    assert_boxes(read_detection(tmp_path), {"train": 2, "valid": 1, "test": 1})


def test_voc_with_split_files(tmp_path):
    found = read_detection(voc_folder(tmp_path / "VOC"))
    assert_boxes(found, {"train": 3, "valid": 1})
    said = "\n".join(found.notices)
    assert "Pascal VOC format, 4 of 4 XML files" in said
    assert "3 boxes are marked as difficult" in said
    picture(tmp_path / "VOC" / "JPEGImages" / "more.jpg")
    assert any("1 pictures have no XML file" in notice for notice in read_detection(tmp_path / "VOC").notices)


def test_voc_beside_its_pictures_by_folder_or_given_as_the_folder_of_xml_files(tmp_path):
    for i in range(4):
        folder = tmp_path / "a" / ("valid" if i == 3 else "train")
        picture(folder / f"{i}.PNG", i)
        voc(folder / f"{i}.xml", f"somewhere/else/{i}.jpg")  # the stem counts where the name is not there
        picture(tmp_path / "b" / "images" / f"{i}.jpg", i)
        picture(tmp_path / "b" / "trimaps" / f"{i}.png", i)
        voc(tmp_path / "b" / "xmls" / f"{i}.xml", f"{i}.jpg")
    assert_boxes(read_detection(tmp_path / "a"), {"train": 3, "valid": 1})
    for folder in (tmp_path / "b", tmp_path / "b" / "xmls"):
        found = read_detection(folder)
        assert_boxes(found, {"train": 4})
        assert {Path(row["image"]).parent.name for row in found.splits["train"]} == {"images"}


def test_yolo_with_a_yaml_file_without_splits_in_it_or_with_a_list_of_classes(tmp_path):
    folder = yolo_folder(tmp_path / "a")
    assert_boxes(read_detection(folder), {"train": 3, "valid": 1})
    assert_boxes(read_detection(folder / "data.yaml"), {"train": 3, "valid": 1})
    (folder / "data.yaml").write_text("names: [cat, dog]")
    assert_boxes(read_detection(folder), {"train": 3, "valid": 1})
    (folder / "data.yaml").unlink()
    (folder / "labels" / "classes.txt").write_text("cat\ndog\n")
    assert_boxes(read_detection(folder), {"train": 3, "valid": 1})


def test_yolo_in_split_folders_with_paths_that_lead_out(tmp_path):
    for split, numbers in (("train", (0, 1)), ("valid", (2,))):
        for i in numbers:
            picture(tmp_path / split / "images" / f"{i}.jpg", i)
            yolo(tmp_path / split / "labels" / f"{i}.txt")
    states = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [cat, dog]\n"
    (tmp_path / "data.yaml").write_text(states)
    found = read_detection(tmp_path)
    assert_boxes(found, {"train": 2, "valid": 1})
    assert any("'../test/images' for test, where there are no pictures" in notice for notice in found.notices)


def test_yolo_negatives_orphans_and_polygons(tmp_path):
    folder = yolo_folder(tmp_path)
    (folder / "labels" / "train" / "0.txt").unlink()
    (folder / "labels" / "train" / "1.txt").write_text("\n")
    (folder / "labels" / "train" / "2.txt").write_text("1 0.1 0.1 0.5 0.1 0.5 0.4\n")
    yolo(folder / "labels" / "train" / "gone.txt")
    found = read_detection(folder)
    assert [row["labels"] for row in found.splits["train"]] == [[], [], ["dog"]]
    np.testing.assert_allclose(found.splits["train"][2]["boxes"], [[8, 6, 40, 24]])
    said = "\n".join(found.notices)
    for part in ("1 of 3 pictures have no label file", "2 of 3 pictures have no box", "1 polygons", "gone.txt"):
        assert part in said


def test_rows_in_memory_tables_and_mappings(tmp_path):
    assert_boxes(read_detection(rows_in_memory()), {"train": 4})
    assert_boxes(read_detection({"train": rows_in_memory(), "val": rows_in_memory(2)}), {"train": 4, "valid": 2})
    frame = pd.DataFrame(rows_in_memory()).rename(columns={"boxes": "bbox"})
    assert_boxes(read_detection(frame, columns={"boxes": "bbox"}), {"train": 4})
    lines = [{"image": picture(tmp_path / f"{i}.jpg", i).name, "boxes": BOXES, "labels": LABELS} for i in range(3)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert_boxes(read_detection(tmp_path), {"train": 3})
    mixed = {"train": yolo_folder(tmp_path / "y", "names: [cat, dog]") / "data.yaml", "test": rows_in_memory(1)}
    with pytest.raises(DataError, match="train: expected one split, found 'train', 'valid'"):
        read_detection(mixed)
    assert_boxes(
        read_detection({"train": tmp_path / "train.jsonl", "test": rows_in_memory(1)}), {"train": 3, "test": 1}
    )


def test_a_dataset_as_the_hub_has_it(tmp_path):
    path = str(picture(tmp_path / "a.png"))
    names = ClassLabel(names=["dog", "cat"])
    objects = {"bbox": Sequence(Sequence(Value("float32"))), "category": Sequence(names)}
    features = Features({"image": ImageFeature(), "objects": objects})
    boxes = convert_boxes(BOXES, "xyxy", "xywh").tolist()
    rows = {"image": [path] * 2, "objects": [{"bbox": boxes, "category": [1, 0]}] * 2}
    dataset = Dataset.from_dict(rows, features=features)
    assert_boxes(read_detection(dataset), {"train": 2}, ("dog", "cat"))
    both = DatasetDict({"train": dataset, "validation": dataset})
    splits = load_detection_splits(both)
    assert splits.label_names == ("dog", "cat")
    assert any("also in train" in notice for notice in splits.notices)
    np.testing.assert_allclose(splits.valid["boxes"][0], BOXES)


def test_boxes_follow_the_format_that_is_named(tmp_path):
    for box_format in BOX_FORMATS:
        boxes = convert_boxes(BOXES, "xyxy", box_format, SIZE).tolist()
        rows = [{**row, "boxes": boxes} for row in rows_in_memory()]
        assert_boxes(read_detection(rows, box_format), {"train": 4})
    with pytest.raises(DataError, match="'yxyx' is unknown"):
        read_detection(rows_in_memory(), "yxyx")


def test_the_whole_set_gives_a_wrong_format_away():
    rng = np.random.default_rng(0)
    corners = np.concatenate([low := rng.uniform(0, 40, (40, 2)), low + rng.uniform(8, 20, (40, 2))], 1)
    for true, named in (
        ("xywh", "xyxy"),
        ("xyxy", "xywh"),
        ("cxcywhn", "xyxy"),
        ("xyxyn", "xyxy"),
        ("xyxy", "cxcywhn"),
    ):
        boxes = convert_boxes(corners, "xyxy", true, SIZE).tolist()
        rows = [
            {"image": Image.new("RGB", SIZE, (i, 0, 0)), "boxes": [b], "labels": ["a"]} for i, b in enumerate(boxes)
        ]
        with pytest.raises(DataError, match="look like") as caught:
            read_detection(rows, named)
        assert f"'{true}'" in str(caught.value), (true, named)


def test_a_turned_photo_has_its_boxes_where_a_person_sees_them(tmp_path):
    path = turned(tmp_path / "a.jpg")  # stored 80 × 60, seen 60 × 80
    found = read_detection([{"image": path, "boxes": [[5, 60, 25, 79]], "labels": ["cat"]}])
    assert found.splits["train"][0]["boxes"] == [[5, 60, 25, 79]]
    with pytest.raises(DataError, match="wholly outside its picture of 60 × 80"):
        read_detection([{"image": path, "boxes": [[62, 5, 79, 25]], "labels": ["cat"]}])


def test_builtin_scenes_and_the_cut_into_splits():
    splits = load_detection_splits("builtin:digit-scenes")
    assert [len(split) for _, split in splits.items()] == [100, 50, 100]
    assert splits.label_names == tuple("0123456789")
    assert not any("also in train" in notice for notice in splits.notices)
    cut = load_detection_splits(rows_in_memory(40), valid_fraction=0.2, test_fraction=0.1, seed=1)
    assert [len(split) for _, split in cut.items()] == [29, 7, 4]
    assert set(cut.train.column_names) == {"image", "boxes", "labels", "row"}


# -- what can be wrong ------------------------------------------------------------------------------------------------


def _no_picture(folder: Path) -> Any:
    (voc_folder(folder) / "JPEGImages" / "1.jpg").unlink()
    return folder


def _no_annotation(folder: Path) -> Any:
    (voc_folder(folder) / "Annotations" / "1.xml").unlink()
    return folder


def _broken_json(folder: Path) -> Any:
    path = coco(folder / "a.json", ["a.jpg"])
    path.write_text(path.read_text()[:-40])
    return folder


def _broken_xml(folder: Path) -> Any:
    path = voc_folder(folder) / "Annotations" / "1.xml"
    path.write_text(path.read_text().replace("</object>", ""))
    return folder


def _broken_picture(folder: Path) -> Any:
    (voc_folder(folder) / "JPEGImages" / "1.jpg").write_bytes(b"no picture")
    return folder


def _unknown_category(folder: Path) -> Any:
    picture(folder / "a.jpg")
    return coco(folder / "a.json", ["a.jpg"], labels=(7, 4))


def _unknown_number(folder: Path) -> Any:
    yolo(yolo_folder(folder) / "labels" / "train" / "1.txt", labels=(0, 5))
    return folder


def _voc_box(*box: float) -> Any:
    def make(folder: Path) -> Any:
        voc(voc_folder(folder) / "Annotations" / "1.xml", "1.jpg", [box], ["cat"])
        return folder

    return make


def _yolo_line(line: str) -> Any:
    def make(folder: Path) -> Any:
        (yolo_folder(folder) / "labels" / "train" / "1.txt").write_text(line)
        return folder

    return make


def _yaml(text: str) -> Any:
    return lambda folder: yolo_folder(folder, text)


def _other_size(folder: Path) -> Any:
    voc(voc_folder(folder) / "Annotations" / "1.xml", "1.jpg", size=(160, 120))
    return folder


def _turned_after(folder: Path) -> Any:
    turned(voc_folder(folder) / "JPEGImages" / "1.jpg")
    return folder


def _coco_with(**changes: Any) -> Any:
    def make(folder: Path) -> Any:
        picture(folder / "a.jpg")
        return coco(folder / "a.json", ["a.jpg"], **changes)

    return make


def _no_boxes(folder: Path) -> Any:
    for path in (yolo_folder(folder) / "labels" / "val").iterdir():
        path.write_text("")
    return folder


def _two_formats(folder: Path) -> Any:
    voc_folder(folder)
    yolo_folder(folder)
    return folder


def _only_pictures(folder: Path) -> Any:
    picture(folder / "a.jpg")
    return folder


def _two_jsons(folder: Path) -> Any:
    coco(folder / "one.json", ["a.jpg"])
    coco(folder / "two.json", ["a.jpg"])
    return folder


def _two_label_folders(folder: Path) -> Any:
    yolo(yolo_folder(folder) / "labels_new" / "train" / "0.txt")
    return folder


def _memory(**changes: Any) -> Any:
    return lambda folder: [{**rows_in_memory(1)[0], **changes}]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (_no_picture, ["1.xml", "there is no picture", "1.jpg"]),
        (_no_annotation, ["train.txt names '1'", "no annotation 1.xml"]),
        (_broken_json, ["a.json, line 1", "not JSON"]),
        (_broken_xml, ["1.xml, line 1", "broken XML"]),
        (_broken_picture, ["1.xml", "1.jpg is no picture"]),
        (_unknown_category, ["a.json, annotation 2", "category_id 4 is unknown", "7, 3"]),
        (_unknown_number, ["1.txt, line 2", "class 5 is unknown", "0 to 1"]),
        (_voc_box(30, 5, 10, 25), ["1.xml, box 1", "left of its left one"]),
        (_voc_box(90, 5, 120, 25), ["1.xml, box 1", "wholly outside"]),
        (_voc_box(0.1, 0.1, 0.5, 0.5), ["1.xml, box 1", "normalised", "'xyxyn'"]),
        (_yolo_line("0 40 30 20 10\n"), ["1.txt, box 1", "these are pixels", "'cxcywh'"]),
        (_yolo_line("0 0.5 0.5 0.1\n"), ["1.txt, line 1", "five numbers; got 4"]),
        (_yolo_line("cat 0.5 0.5 0.1 0.1\n"), ["1.txt, line 1", "expected numbers"]),
        (_yaml("names: [cat\n"), ["data.yaml", "not YAML"]),
        (_yaml("names: cat\n"), ["data.yaml", "expected 'names'"]),
        (_yaml("names: [cat, dog]\ntrain: nowhere\n"), ["data.yaml states 'nowhere' for train"]),
        (_yaml(""), ["no file says what they mean"]),
        (_other_size, ["1.xml", "annotated on 160 × 120", "80 × 60", "same shape"]),
        (_turned_after, ["1.xml", "EXIF", "60 × 80"]),
        (_coco_with(categories=[]), ["category_id 7 is unknown"]),
        (_coco_with(categories=[{"id": 7}]), ["categories with 'id' and 'name'"]),
        (_coco_with(images=[]), ["the image_id 100 is not among"]),
        (_coco_with(images=[], annotations=[]), ["holds no pictures"]),
        (_coco_with(images=[{"id": 1}]), ["image 1", "'file_name'"]),
        (_coco_with(annotations=[{"image_id": 100, "category_id": 7}]), ["annotation 1", "no 'bbox'"]),
        (_coco_with(annotations={}), ["the lists 'images', 'annotations', 'categories'"]),
        (_coco_with(annotations=[]), ["none of the 1 pictures has a box"]),
        (_no_boxes, ["valid (labels/)", "none of the 1 pictures has a box"]),
        (_two_formats, ["in 2 formats", "Pascal VOC XML", "YOLO text", "data.yaml itself"]),
        (_only_pictures, ["holds no boxes", "COCO JSON", "'a.jpg'"]),
        (lambda folder: folder, ["holds no boxes", "it holds nothing"]),
        (lambda folder: folder / "none.json", ["none.json not found"]),
        (lambda folder: folder / "none", ["no file and no folder"]),
        (lambda folder: "builtin:cats", ["'builtin:digit-scenes'"]),
        (_two_jsons, ["one COCO file per split", "'one.json', 'two.json'"]),
        (_two_label_folders, ["'labels', 'labels_new' all hold YOLO labels"]),
        (_memory(boxes=BOXES[:1]), ["row 1", "1 boxes, but 2 labels"]),
        (_memory(labels=["cat", ""]), ["row 1", "expected a class name"]),
        (_memory(labels=["cat", None]), ["row 1", "expected a class name"]),
        (_memory(boxes="all"), ["row 1", "a list of boxes, got str"]),
        (_memory(image="gone.jpg"), ["row 1", "gone.jpg"]),
        (_memory(image=5), ["row 1", "expected a path"]),
        (lambda folder: [{"image": 1, "box": 2}], ["column 'boxes' not found", "'image', 'box'"]),
        (lambda folder: {"train": rows_in_memory(), "trial": []}, ["'trial' is unknown"]),
        (lambda folder: {"test": rows_in_memory()}, ["no split 'train'"]),
        (lambda folder: 42, ["int"]),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, monkeypatch, make, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read_detection(make(tmp_path))
    for part in expected:
        assert part in str(caught.value), str(caught.value)


def test_several_faults_are_told_at_once(tmp_path):
    folder = voc_folder(tmp_path)
    for i in (0, 2):
        (folder / "JPEGImages" / f"{i}.jpg").unlink()
    with pytest.raises(DataError) as caught:
        read_detection(folder)
    assert len(str(caught.value).splitlines()) == 2


def test_what_is_only_doubtful_is_counted(tmp_path):
    rows = rows_in_memory(30)
    rows[0]["boxes"] = [[10, 5, 10, 25], [40, 20, 95, 60]]
    rows[1] |= {"boxes": [], "labels": []}
    valid = [{"image": rows[5]["image"], "boxes": [[1, 1, 9, 9]], "labels": ["emu"]}, rows_in_memory(40)[-1]]
    test = [{"image": Image.new("RGB", SIZE), "boxes": [], "labels": []}]
    splits = load_detection_splits({"train": rows, "valid": valid, "test": test})
    said = "\n".join(splits.notices)
    assert splits.train["labels"][0] == ["dog"]
    assert splits.train["boxes"][1] == []
    assert splits.test is None
    for part in (
        "train: 1 of 58 boxes have no width or no height and are left out",
        "train: 1 of 58 boxes stick out of their picture",
        "1 of 30 pictures have no box; they stay",
        "valid: 1 classes never occur in train",
        "'emu'",
        "valid: 1 of 2 pictures are also in train",
        "test (table) has no boxes and is left out",
        "1 of 3 classes have no box in train: 'emu'",
    ):
        assert part in said, said


# -- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_head_boxes_of_pets(test_data):
    splits = load_detection_splits(test_data / "vision_multi" / "oxford_pets_mini")
    assert [len(splits.train) + len(splits.valid), len(splits.test)] == [120, 60]
    assert splits.label_names == ("cat", "dog")
    assert all(len(boxes) == 1 for boxes in splits.test["boxes"][:])
    assert not any("stick out" in notice or "also in train" in notice for notice in splits.notices)


@pytest.mark.realdata
def test_coco_pictures_with_yolo_labels(test_data):
    folder = test_data / "vision_multi" / "coco_open53"
    found = read_detection(folder)
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 26, "valid": 27}
    assert len(found.label_names) == 80
    said = "\n".join(found.notices)
    assert "YOLO labels from 'labels_det', class names from det_names.yaml" in said
    assert "1 of 26 pictures have no box" in said
    assert "stick out" not in said
    both = read_detection(folder / "det_names.yaml")
    assert both.splits == found.splits
