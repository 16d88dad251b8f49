"""From pictures with boxes to a saved detector: loss, average precision, predictions, errors, and loading back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file, save_file
from torch import nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import FrozenBatchNorm2d, box_convert
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
    pipeline,
)

from ftnb.detection.average_precision import BoxAveragePrecision, average_precision, detection_metrics, match_boxes
from ftnb.detection.models import load_detector
from ftnb.layers import layer_groups
from ftnb.pretrained import ModelError
from ftnb.strategies import Full, Head, LayerDecay
from ftnb.tables import DataError
from ftnb.tasks.object_detection import ObjectDetection, detect, detection_loss, num_boxes, sort_errors
from ftnb.train import Training
from ftnb.vision.pyramids import PyramidBackbone, Stages
from ftnb.vision.torchvision_models import make_model

SIDE = 64
COLORS = {"blue": (40, 60, 230), "red": (230, 50, 40)}


def squares(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Grey pictures with none, one or two coloured rectangles."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        image = Image.fromarray(rng.integers(90, 130, (SIDE, SIDE, 3), dtype=np.uint8))
        boxes, labels = [], []
        for left in (2, 34)[: rng.integers(0, 3)]:
            w, h = rng.integers(12, 28, 2).tolist()
            x, y = left + int(rng.integers(0, 30 - w)), int(rng.integers(0, SIDE - h))
            labels.append(str(rng.choice(list(COLORS))))
            ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=COLORS[labels[-1]])
            boxes.append([x, y, x + w, y + h])
        rows.append({"image": image, "boxes": boxes, "labels": labels})
    return rows


DATA = {"train": squares(24, 1), "valid": squares(12, 2), "test": squares(8, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tiny random checkpoints as the Hub lays them out: a ResNet, a ViT, a DETR, a YOLOS, a BERT."""
    place = tmp_path_factory.mktemp("models")
    torch.manual_seed(7)
    small = {"embedding_size": 8, "hidden_sizes": [8, 16, 16], "depths": [1, 1, 1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**small)).save_pretrained(place / "resnet")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(place / "vit")
    for name in ("resnet", "vit"):
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place / name)
    sizes = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 6, "num_labels": 5}
    body = ResNetConfig(**small, out_features=["stage3"])
    detr = DetrConfig(use_timm_backbone=False, backbone=None, backbone_config=body, **sizes, **heads)
    DetrForObjectDetection(detr).save_pretrained(place / "detr")
    DetrImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE}).save_pretrained(place / "detr")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    yolos = YolosConfig(image_size=[SIDE, SIDE], patch_size=16, num_detection_tokens=6, num_labels=5, **sizes)
    YolosForObjectDetection(yolos).save_pretrained(place / "yolos")
    YolosImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE}).save_pretrained(place / "yolos")
    bert = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForSequenceClassification(bert).save_pretrained(place / "bert")
    return place


@pytest.fixture
def task(folder) -> ObjectDetection:
    return ObjectDetection.prepare(DATA, str(folder / "resnet"))


def prepared(name: str, folder: Path, **kinds: Any) -> ObjectDetection:
    """A task by a short name of its model; torchvision's start from random weights."""
    if name.startswith("torchvision:"):
        return ObjectDetection.prepare(DATA, name, scratch=True, image_size=SIDE, **kinds)
    return ObjectDetection.prepare(DATA, str(folder / name), **kinds)


MOBILE = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"
KINDS = ["resnet", "detr", "yolos", MOBILE, "torchvision:ssdlite320_mobilenet_v3_large", "torchvision:resnet18"]


# -- average precision ------------------------------------------------------------------------------------------------


def many_boxes(seed: int, num_pictures: int = 30, num_classes: int = 4) -> tuple[list[Any], list[Any]]:
    """Random objects of three of four classes, and detections near them, of wrong classes, or anywhere."""
    rng = np.random.default_rng(seed)
    detections, targets = [], []
    for _ in range(num_pictures):
        m = rng.integers(0, 5)
        low = rng.uniform(0, 60, (m, 2))
        boxes = np.concatenate([low, low + rng.uniform(5, 30, (m, 2))], 1)
        labels = rng.integers(0, num_classes - 1, m)
        copies = rng.integers(0, 4, m)
        total = copies.sum()
        found = np.repeat(boxes, copies, 0) + rng.normal(0, 3, (total, 4))
        names = np.where(rng.random(total) < 0.8, np.repeat(labels, copies), rng.integers(0, num_classes, total))
        more = rng.integers(0, 3)
        low = rng.uniform(0, 60, (more, 2))
        found = np.concatenate([found, np.concatenate([low, low + rng.uniform(5, 30, (more, 2))], 1)])
        names = np.concatenate([names, rng.integers(0, num_classes, more)])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        scores = np.round(rng.random(len(found)), 3)
        targets.append({"boxes": torch.tensor(boxes).float().reshape(-1, 4), "labels": torch.tensor(labels)})
        as_tensors = {"boxes": torch.tensor(found).float(), "scores": torch.tensor(scores).float()}
        detections.append({**as_tensors, "labels": torch.tensor(names)})
    return detections, targets


def pycocotools_figures(detections: list[Any], targets: list[Any]) -> list[float]:
    """What the reference says: "map", "map_50" and "map_75"."""

    def entries(pictures: list[Any]) -> list[dict[str, Any]]:
        boxes = [(i, x, j) for i, x in enumerate(pictures) for j in range(len(x["labels"]))]
        table = []
        for number, (i, x, j) in enumerate(boxes, start=1):
            x1, y1, x2, y2 = x["boxes"][j].tolist()
            score = {"score": float(x["scores"][j])} if "scores" in x else {"iscrowd": 0}
            place = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), **score}
            table.append({"id": number, "image_id": i, "category_id": int(x["labels"][j]), **place})
        return table

    truth = COCO()
    classes = [{"id": i} for i in range(4)]
    truth.dataset = {
        "images": [{"id": i} for i in range(len(targets))],
        "annotations": entries(targets),
        "categories": classes,
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(entries(detections)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return list(evaluation.stats[:3])


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_pycocotools(seed):
    detections, targets = many_boxes(seed)
    metric, theirs = BoxAveragePrecision(4), MeanAveragePrecision(backend="pycocotools")
    for i in range(0, 30, 7):  # in batches
        metric.update(detections[i : i + 7], targets[i : i + 7])
    measured = {name: float(value) for name, value in metric.compute().items()}
    expected = pycocotools_figures(detections, targets)
    assert expected[0] > 0.04
    assert list(measured.values()) == pytest.approx(expected, abs=1e-7)
    theirs.update(detections, targets)
    loose = theirs.compute()  # torchmetrics rounds the 101 recalls to float32
    assert measured == pytest.approx({name: float(loose[name]) for name in measured}, abs=1e-3)


def test_average_precision_by_hand():
    # right, wrong, right of 2 objects: precision 1 up to recall 0.5 (51 of 101 points), then 2/3 (50 points)
    assert average_precision(np.array([True, False, True]), 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(np.array([], dtype=bool), 3) == 0
    iou = np.array([[0.6, 0.9], [0.8, 0.7], [0.9, 0.9]])
    assert match_boxes(iou, [0.5, 0.75]).tolist() == [[True, True, False], [True, True, False]]
    assert match_boxes(np.zeros((2, 0)), [0.5]).tolist() == [[False, False]]


def test_metrics_without_detections_without_objects_and_after_a_reset():
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    one = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "scores": torch.ones(1), "labels": torch.tensor([1])}
    truth = {"boxes": one["boxes"], "labels": one["labels"]}
    empty = {"boxes": none["boxes"], "labels": none["labels"]}
    metrics = detection_metrics(3)
    for found, target, expected in ((none, truth, 0.0), (one, truth, 1.0), (one, empty, 0.0), (none, empty, 0.0)):
        metrics.reset()
        metrics.update([found], {"targets": [target]})
        assert metrics.compute() == {"map": expected, "map_50": expected, "map_75": expected}
    with pytest.raises(ValueError, match="num_classes"):
        detection_metrics(0)


# -- errors -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_error_is_told_from_the_others():
    truth = {"boxes": torch.tensor([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10.0]])}
    truth["labels"] = torch.tensor([0, 0, 1, 1])
    found = {
        "boxes": torch.tensor([[0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10], [44, 0, 54, 10], [80, 80, 90, 90.0]]),
        "scores": torch.tensor([0.6, 0.9, 0.8, 0.7, 0.5]),
        "labels": torch.tensor([0, 0, 1, 1, 0]),
    }
    errors = sort_errors(found, truth)
    assert errors.right == [1]  # the surer of two on one object
    assert errors.double == [0]
    assert errors.wrong_class == [2]
    assert errors.misplaced == [3]
    assert errors.ground == [4]
    assert errors.missed == [2, 3]  # the object under a wrong name was found, the misplaced one was not
    assert errors.count == 6
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    assert sort_errors(nothing, truth).missed == [0, 1, 2, 3]
    assert sort_errors(nothing, nothing).count == 0
    assert sort_errors(found, nothing).ground == [1, 2, 3, 0, 4]


# -- preparing --------------------------------------------------------------------------------------------------------


def test_prepare_gathers_everything_a_training_needs(task):
    assert task.labels == ["blue", "red"]
    assert task.name == "object-detection"
    assert task.options == ("box_format", "image_size", "augment")
    assert [len(split) for _, split in task.splits.items()] == [24, 12, 8]
    assert any("have no box" in warning for warning in task.warnings)
    assert all(not name.startswith("backbone.body.") for name in task.detector.new_parameters)
    groups = layer_groups(task.model, task.detector.new_parameters)
    assert groups[-1].name == "head"
    assert set(groups[-1].parameters) == set(task.detector.new_parameters)
    assert any(isinstance(module, FrozenBatchNorm2d) for module in task.model.modules())
    assert task.detector.transform.height == SIDE


@pytest.mark.parametrize(
    ("data", "model", "kinds", "error", "expected"),
    [
        (DATA, "torchvision:nope", {}, ModelError, "no model 'nope'"),
        (DATA, "torchvision:maskrcnn_resnet50_fpn", {}, ModelError, "masks or key points"),
        (DATA, "torchvision:deeplabv3_resnet50", {}, ModelError, "neither a detector nor"),
        (DATA, "torchvision:vit_b_16", {"scratch": True}, ModelError, "no chain of convolutions"),
        (DATA, "torchvision:resnet18@nowhere.pth", {}, ModelError, "no file of weights"),
        (DATA, "vit", {}, ModelError, "a vit is no detector"),
        (DATA, "bert", {}, ModelError, "cannot load"),
        (DATA, "./nothing", {}, ModelError, "no folder"),
        (DATA, "resnet", {"augment": "wild"}, DataError, "'wild'"),
        (DATA, "resnet", {"image_size": 4}, DataError, "between 8 and 4096"),
        (DATA, "resnet", {"box_format": "yxyx"}, DataError, "'yxyx' is unknown"),
        (DATA, "resnet", {"box_format": "cxcywhn"}, DataError, "'xyxy'"),
        ([{**row, "labels": [], "boxes": []} for row in DATA["train"]], "resnet", {}, DataError, "has a box"),
        ("nowhere", "resnet", {}, DataError, "nowhere"),
    ],
)
def test_whatever_is_wrong_is_said_before_training(folder, data, model, kinds, error, expected):
    name = model if model.startswith(("torchvision:", ".")) else str(folder / model)
    with pytest.raises(error, match=expected):
        ObjectDetection.prepare(data, name, **kinds)


def test_augmentation_moves_boxes_along_and_leaves_validation_alone(folder):
    task = prepared("resnet", folder, augment="strong")
    torch.manual_seed(0)
    plain, moved = task.examples("train"), task.examples("train", train=True)
    lost = 0
    for i in range(len(plain)):
        a, b = plain[i], moved[i]
        assert a["boxes"].tolist() == DATA["train"][i]["boxes"]
        lost += len(a["boxes"]) - len(b["boxes"])
        assert len(b["boxes"]) == len(b["labels"])
        for (x1, y1, x2, y2), label in zip(b["boxes"].int().tolist(), b["labels"], strict=True):
            inside = task.detector.transform.shown(b["pixel_values"])[y1:y2, x1:x2].reshape(-1, 3).mean(0)
            assert (inside[2] > inside[0]) == (task.labels[label] == "blue")
    assert lost > 0
    first, again = (next(iter(task.learner().valid.epoch())) for _ in range(2))
    assert torch.equal(first["pixel_values"], again["pixel_values"])


# -- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_family_trains_evaluates_and_bears_pictures_without_boxes(folder, name):
    task = prepared(name, folder)
    empty = [i for i, row in enumerate(DATA["train"]) if not row["boxes"]][:2]
    nothing = task.collate([task.examples("train")[i] for i in empty])
    task.model.train()
    loss, outputs = task.loss(task.model, nothing)
    assert torch.isfinite(loss)
    assert outputs is None
    training = Training(task.learner(batch_size=8), lr=1e-3, num_epochs=1, device="cpu", precision="fp32")
    events = list(training)
    assert all(np.isfinite(event.loss) for event in events if event.kind == "step")
    assert set(next(e for e in events if e.kind == "evaluated").metrics) == {"map", "map_50", "map_75"}
    measured = task.evaluate("test")
    assert np.isfinite(measured["loss"])
    assert num_boxes(nothing) == 1


@pytest.mark.parametrize("name", ["torchvision:resnet18", MOBILE])
def test_measuring_touches_no_statistics_no_modes_and_no_random_numbers(folder, name):
    task = prepared(name, folder)
    assert any(isinstance(module, nn.BatchNorm2d) for module in task.model.modules())
    task.model.train()
    task.model.backbone.body.eval()  # as a strategy leaves a frozen part
    state = {key: value.clone() for key, value in task.model.state_dict().items()}
    modes = [module.training for module in task.model.modules()]
    torch.manual_seed(3)
    random = torch.get_rng_state()
    first, second = task.evaluate("valid"), task.evaluate("valid")
    assert first == second
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in task.model.state_dict().items())
    assert [module.training for module in task.model.modules()] == modes


def test_the_validation_loss_is_the_one_that_training_minimises(task):
    """The same number as torchvision gives in train mode, where nothing in the model depends on the mode."""
    batch = next(iter(task.learner().valid.epoch()))
    task.model.eval()
    with torch.no_grad():
        measured, found = task.loss(task.model, batch)
        task.model.train()  # BatchNorm is frozen here, and there is no dropout
        parts = task.model(list(batch["pixel_values"]), batch["targets"])
    assert set(parts) == {"classification", "bbox_regression", "bbox_ctrness"}
    assert measured.item() == pytest.approx(sum(parts.values()).item(), abs=1e-6)
    assert len(found) == len(batch["targets"])


@pytest.mark.parametrize("name", ["detr", "yolos"])
def test_the_set_loss_is_that_of_the_library(folder, name):
    task = prepared(name, folder)
    batch = next(iter(task.learner().valid.epoch()))
    labels = [
        {"class_labels": t["labels"], "boxes": box_convert(t["boxes"], "xyxy", "cxcywh") / SIDE}
        for t in batch["targets"]
    ]
    task.model.eval()
    with torch.no_grad():
        loss, found = task.loss(task.model, batch)
        outputs = task.model(pixel_values=batch["pixel_values"], labels=labels)
    assert loss.item() == pytest.approx(outputs.loss.item(), abs=1e-6)
    best = box_convert(outputs.pred_boxes[0], "cxcywh", "xyxy") * SIDE
    order = outputs.logits[0].softmax(-1)[:, :-1].max(-1).values.argsort(descending=True)
    torch.testing.assert_close(found[0]["boxes"], best[order])


def test_labels_of_models_with_a_class_for_the_ground_are_shifted_there_and_back(folder):
    for name, first in ((MOBILE, 1), ("torchvision:ssdlite320_mobilenet_v3_large", 1), ("resnet", 0)):
        task = prepared(name, folder)
        assert task.detector.first_label == first
        batch = next(iter(task.learner().valid.epoch()))
        task.model.eval()
        with torch.no_grad():
            found = detect(task.model, batch["pixel_values"], task.detector)
        labels = torch.cat([f["labels"] for f in found])
        assert labels.min() >= 0
        assert labels.max() < 2


def test_bfloat16_hardly_moves_the_boxes(task):
    batch = next(iter(task.learner().valid.epoch()))
    task.model.eval()
    with torch.no_grad():
        exact, _ = detection_loss(task.model, batch, task.detector)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, found = detection_loss(task.model, batch, task.detector)
    assert rough.dtype == torch.float32
    assert found[0]["boxes"].dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)


# -- training and predicting ------------------------------------------------------------------------------------------


def test_a_detector_learns_coloured_squares_and_predicting_in_between_changes_nothing(folder):
    def run(disturb: bool) -> tuple[ObjectDetection, list[float]]:
        task, losses = prepared("resnet", folder), []
        training = Training(task.learner(batch_size=8), lr=5e-3, num_epochs=16, device="cpu", precision="fp32")
        while (event := training.step()) is not None:
            losses.append(event.loss)
            if disturb and event.step in (2, 9):
                task.predict([DATA["valid"][0]["image"]])
                task.evaluate("valid")
        return task, losses

    (task, losses), (_, disturbed) = run(False), run(True)
    assert losses == disturbed
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert task.evaluate("train")["map_50"] > 0.3


def test_predictions_are_in_pixels_of_the_picture_given_and_do_not_depend_on_company(task):
    small = DATA["valid"][3]["image"]
    wide = small.resize((3 * SIDE, 2 * SIDE), Image.Resampling.NEAREST)
    images = [small, wide, np.asarray(small)]
    together = task.predict(images, min_score=0.0)
    alone = [task.predict([image], min_score=0.0)[0] for image in images]
    for a, b in zip(together, alone, strict=True):
        assert [d.label for d in a] == [d.label for d in b]
        np.testing.assert_allclose([d.box for d in a], [d.box for d in b], atol=1e-3)
    assert together[0] == together[2]
    assert [d.score for d in together[0]] == sorted((d.score for d in together[0]), reverse=True)
    right, bottom = (max(d.box[i] for d in together[1]) for i in (2, 3))
    assert SIDE < right <= 3 * SIDE
    assert SIDE < bottom <= 2 * SIDE
    assert task.predict([]) == []
    assert all(len(of) == 0 for of in task.predict(images, min_score=1.1))
    for wrong in ("a.jpg", b"abc", 5):
        with pytest.raises(DataError, match="list of pictures"):
            task.predict(wrong)
    with pytest.raises(DataError, match="expected a picture"):
        task.predict([5])


def test_the_head_alone_can_be_trained(task):
    before = {name: p.clone() for name, p in task.model.named_parameters()}
    training = Training(task.learner(), Head(), lr=1e-2, num_epochs=1, device="cpu", precision="fp32")
    for _ in training:
        pass
    moved = {name for name, p in task.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert moved <= set(task.detector.new_parameters)


def test_pictures_of_batches_and_errors(task):
    assert task.show_batch(3).png().startswith(b"\x89PNG")
    assert task.show_errors(2, min_score=0.1).png().startswith(b"\x89PNG")
    errors = task.errors("valid", min_score=1.1)
    assert [len(e.missed) for e in errors] == [len(row["boxes"]) for row in DATA["valid"]]
    for call in (task.show_errors, task.errors, task.evaluate):
        with pytest.raises(DataError, match="'train', 'valid', 'test'"):
            call(split="dev")


# -- saving and loading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_detector_answers_as_before(folder, tmp_path, name):
    task = prepared(name, folder)
    for _ in Training(task.learner(), lr=1e-3, num_epochs=1, device="cpu", precision="fp32"):
        pass
    saved = task.save(tmp_path / "model")
    again = ObjectDetection.from_saved(saved)
    images = [row["image"] for row in DATA["test"]][:3]
    assert again.labels == task.labels
    assert again.detector.new_parameters == frozenset()
    assert again.predict(images, min_score=0.0) == task.predict(images, min_score=0.0)
    assert not [path for path in saved.iterdir() if path.suffix in (".bin", ".pth", ".pt")]
    further = ObjectDetection.prepare(DATA, str(saved))
    assert further.evaluate("test") == pytest.approx(task.evaluate("test"), abs=1e-6)
    others = {split: [{**r, "labels": ["a" + x for x in r["labels"]]} for r in rows] for split, rows in DATA.items()}
    other = ObjectDetection.prepare(others, str(saved))
    assert 0 < len(other.detector.new_parameters) <= 12
    assert any("other classes" in warning for warning in other.warnings)
    scratch = ObjectDetection.prepare(DATA, str(saved), scratch=True)
    assert len(scratch.detector.new_parameters) == len(list(scratch.model.parameters()))


@pytest.mark.parametrize("name", ["detr", "yolos"])
def test_the_pipeline_of_transformers_gives_the_same_boxes(folder, tmp_path, name):
    task = prepared(name, folder)
    saved = task.save(tmp_path / "model")
    find = pipeline("object-detection", str(saved), device="cpu")
    for row in DATA["test"][:3]:
        theirs = sorted(find(row["image"], threshold=0.0), key=lambda found: -found["score"])
        for mine, other in zip(task.predict([row["image"]], min_score=0.0)[0], theirs, strict=True):
            assert mine.score == pytest.approx(other["score"], abs=1e-4)
            corners = [other["box"][key] for key in ("xmin", "ymin", "xmax", "ymax")]
            np.testing.assert_allclose(mine.box, corners, atol=1.01)  # the pipeline tells whole pixels
    assert "pipeline" in task.loading_code(saved)


def test_the_loading_code_runs_without_this_package(folder, tmp_path):
    task = prepared(MOBILE, folder)
    saved = task.save(tmp_path / "model")
    picture = tmp_path / "picture.jpg"
    DATA["test"][1]["image"].save(picture, quality=95)
    code = task.loading_code(saved).replace('"picture.jpg"', repr(str(picture)))
    assert "ftnb" not in code
    *lines, last = code.splitlines()
    scope: dict[str, Any] = {}
    exec("\n".join(lines) + "\nfound = " + last, scope)
    mine = task.predict([picture], min_score=0.0)[0]
    assert mine[0].score == pytest.approx(scope["found"][0]["scores"][0].item(), abs=1e-3)
    np.testing.assert_allclose(mine[0].box, scope["found"][0]["boxes"][0].tolist(), atol=0.5)
    assert "from_saved" in prepared("resnet", folder).loading_code("model")


def test_a_body_without_a_map_of_a_usable_size_is_refused():
    with pytest.raises(ModelError, match=r"strides \[2\], none between 8 and 32"):
        PyramidBackbone(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), _Listed()), 256)
    stages = Stages(make_model("resnet18"))
    assert PyramidBackbone(stages, 64).strides == [4, 8, 16, 32]
    assert PyramidBackbone(stages, 320).strides == [8, 16, 32]


class _Listed(nn.Module):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


def test_folders_that_hold_no_trained_detector(folder, tmp_path, task):
    with pytest.raises(ModelError, match="without a trained head"):
        ObjectDetection.from_saved(folder / "resnet")
    with pytest.raises(ModelError, match="config.json"):
        ObjectDetection.from_saved(tmp_path)
    saved = task.save(tmp_path / "model")
    (saved / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match="cannot be read"):
        ObjectDetection.from_saved(saved)


def test_weights_from_a_file_for_other_classes_or_for_the_backbone_alone(tmp_path):
    torch.manual_seed(5)
    whole = make_model("fcos_resnet50_fpn", num_classes=91)
    save_file({n: t.contiguous() for n, t in whole.state_dict().items()}, tmp_path / "coco.safetensors")
    found = load_detector(f"torchvision:fcos_resnet50_fpn@{tmp_path / 'coco.safetensors'}", ["a", "b"])
    assert found.new_parameters == {f"head.classification_head.cls_logits.{kind}" for kind in ("weight", "bias")}
    torch.testing.assert_close(found.model.state_dict()["backbone.body.conv1.weight"], whole.backbone.body.conv1.weight)
    body = {n.removeprefix("backbone.body."): t for n, t in whole.state_dict().items() if "backbone.body." in n}
    save_file({n: t.contiguous() for n, t in body.items()}, tmp_path / "resnet50.safetensors")
    found = load_detector(f"torchvision:fcos_resnet50_fpn@{tmp_path / 'resnet50.safetensors'}", ["a", "b"])
    assert "head.regression_head.bbox_reg.weight" in found.new_parameters
    assert not any("backbone.body." in name for name in found.new_parameters)
    save_file({"x": torch.zeros(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        load_detector(f"torchvision:fcos_resnet50_fpn@{tmp_path / 'odd.safetensors'}", ["a"])
    assert load_file(tmp_path / "odd.safetensors")["x"].shape == (3,)


# -- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("strategy", "lr", "num_epochs"), [(Head(), 2e-3, 4), (Full(), 5e-4, 8), (LayerDecay(0.5), 2e-3, 8)], ids=str
)
def test_heads_of_pets_are_found_with_a_body_pretrained_on_imagenet(test_data, strategy, lr, num_epochs):
    """SqueezeNet's body, and a new pyramid and head, see 96 pictures; rates and epochs come from the validation split.

    The floor: whoever answers the mean box of the training pictures, with the more frequent class, is the best that
    looks at no picture; the detector must be far above that.
    """
    weights = test_data / "weights" / "squeezenet1_0_imagenet" / "squeezenet1_0_deepcompressed_imagenet_fp16.pth"
    task = ObjectDetection.prepare(
        test_data / "vision_multi" / "oxford_pets_mini",
        f"torchvision:squeezenet1_0@{weights}",
        image_size=128,
        augment="flip",
        valid_fraction=0.2,
    )
    assert task.labels == ["cat", "dog"]
    settings = {"lr": lr, "num_epochs": num_epochs, "eval_every": 1000}
    for _ in Training(task.learner(), strategy, **settings, device="cpu", precision="fp32"):
        pass
    measured = task.evaluate("test")
    blind = blind_answer(task)
    print(f"test {measured}, the same box for all {blind}")
    assert blind["map_50"] < 0.35
    assert measured["map_50"] > max(0.5, blind["map_50"] + 0.2)


def blind_answer(task: ObjectDetection) -> dict[str, float]:
    """The metrics of one box for all pictures: the mean of the training boxes, for every class with its share."""
    train, test = task.examples("train"), task.examples("test")
    seen = [train[i] for i in range(len(train))]
    boxes, labels = (torch.cat([example[key] for example in seen]) for key in ("boxes", "labels"))
    shares = torch.bincount(labels, minlength=2) / len(labels)
    answer = {"boxes": boxes.mean(0).repeat(2, 1), "scores": shares, "labels": torch.arange(2)}
    metrics = task.metrics()
    metrics.update([answer] * len(test), {"targets": [test[i] for i in range(len(test))]})
    return metrics.compute()
