"""Semantic segmentation from photos and masks to a saved model: models of both libraries, loss, score, pictures."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex
from transformers import (
    AutoModelForSemanticSegmentation,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

from ftnb.layers import layer_groups, what_is_training
from ftnb.pretrained import ModelError, quiet_transformers
from ftnb.segmentation.examples import SegmentationExamples, class_colors, overlay, wrong_pixels
from ftnb.segmentation.models import load_segmentation_model
from ftnb.strategies import Full, Head, LayerDecay
from ftnb.tables import DataError
from ftnb.tasks.image_segmentation import (
    ImageSegmentation,
    class_iou,
    confusion_of,
    enlarge,
    pixel_cross_entropy,
    segmentation_loss,
    segmentation_metrics,
    stack_pixels,
)
from ftnb.train import Training
from ftnb.vision.images import read_image

LABELS = ["ground", "red", "blue"]


def scene(seed: int, size: tuple[int, int] = (48, 32)) -> dict[str, Image.Image]:
    """A red and a blue box on a grey ground, and a column that does not count."""
    draw = np.random.default_rng(seed)
    photo = np.full((size[1], size[0], 3), 110, dtype=np.int64) + draw.integers(-25, 26, (size[1], size[0], 3))
    mask = np.zeros(size[::-1], dtype=np.uint8)
    for index, color in ((1, (225, 40, 40)), (2, (40, 40, 225))):
        x, y = draw.integers(0, size[0] - 14), draw.integers(0, size[1] - 12)
        photo[y : y + 11, x : x + 13] = color
        mask[y : y + 11, x : x + 13] = index
    mask[:, 0] = 255
    return {"image": Image.fromarray(photo.clip(0, 255).astype(np.uint8)), "mask": Image.fromarray(mask)}


DATA = {
    "train": [scene(i) for i in range(24)],
    "valid": [scene(i, (40, 40)) for i in range(100, 108)],
    "test": [scene(i, (48 + i % 3, 32)) for i in range(200, 207)],
}


def segformer(folder: Path, labels: list[str] | None = None) -> str:
    names = labels or ["a", "b", "c", "d"]
    torch.manual_seed(3)
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=32,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    with quiet_transformers():
        SegformerForSemanticSegmentation(config).save_pretrained(folder)
        SegformerImageProcessor(size={"height": 32, "width": 32}, do_reduce_labels=True).save_pretrained(folder)
    return str(folder)


def resnet(folder: Path) -> str:
    torch.manual_seed(3)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=7)
    with quiet_transformers():
        ResNetForImageClassification(config).save_pretrained(folder)
        size = {"height": 24, "width": 24}
        ViTImageProcessor(size=size, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return segformer(tmp_path_factory.mktemp("segformer"))


@pytest.fixture
def task(model) -> ImageSegmentation:
    return ImageSegmentation.prepare(DATA, model, classes=LABELS)


# -- loss and score ---------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_the_pixels_that_count():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 5, 4), torch.randint(0, 3, (2, 5, 4))
    labels[0, :2], labels[1, :, 3] = 255, 255
    counted = labels != 255
    chosen = logits.log_softmax(1).movedim(1, -1)[counted].gather(1, labels[counted][:, None])
    assert pixel_cross_entropy(logits, labels).item() == pytest.approx(-chosen.mean().item(), abs=1e-6)
    nothing = pixel_cross_entropy(logits.requires_grad_(), torch.full_like(labels, 255))
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad.abs().max() == 0


def test_mean_iou_pools_counts_and_leaves_out_what_does_not_occur():
    torch.manual_seed(0)
    metrics, reference = segmentation_metrics(5), MulticlassJaccardIndex(5, average="none", ignore_index=255)
    for _ in range(3):
        logits, labels = torch.randn(2, 5, 6, 6), torch.randint(0, 4, (2, 6, 6))  # class 4 is predicted, never true
        labels[:, 0] = 255
        metrics.update(logits, {"labels": labels})
        reference.update(logits.argmax(1), labels)
    expected = reference.compute()
    assert metrics.compute()["mean_iou"] == pytest.approx(expected[:4].mean().item(), abs=1e-6)
    assert torch.isnan(class_iou(confusion_of(metrics))[4])
    metrics.reset()
    labels = torch.tensor([[[0, 0, 1, 255]]])
    metrics.update(nn.functional.one_hot(torch.tensor([[[0, 1, 1, 1]]]), 5).movedim(-1, 1), {"labels": labels})
    assert metrics.compute() == {"mean_iou": 0.5, "pixel_accuracy": pytest.approx(2 / 3, abs=1e-6)}


def test_accumulated_gradients_are_those_of_one_batch(model):
    rows = [scene(i) for i in range(4)]
    for i, row in enumerate(rows):  # very different numbers of counted pixels
        mask = np.array(row["mask"])
        mask[: 7 * i] = 255
        row["mask"] = Image.fromarray(mask)

    def gradient(batch_size: int) -> torch.Tensor:
        task = ImageSegmentation.prepare({**DATA, "train": rows}, model, classes=LABELS)
        learner = task.learner(batch_size=batch_size)
        batches = list(learner.train.epoch())
        weights = [learner.weight(batch) for batch in batches]
        assert weights == [int((batch["labels"] != 255).sum()) for batch in batches]
        for batch, weight in zip(batches, weights, strict=True):  # in eval mode: BatchNorm depends on the company
            loss, _ = learner.loss(task.model, batch)
            (loss * weight / sum(weights)).backward()
        return torch.cat([p.grad.flatten() for p in task.model.parameters()])

    torch.testing.assert_close(gradient(4), gradient(1), atol=1e-6, rtol=1e-4)


def test_a_single_photo_in_training_does_not_stop_batch_norm(tmp_path):
    data = {**DATA, "train": DATA["train"][:5]}
    task = ImageSegmentation.prepare(data, resnet(tmp_path / "r"), classes=LABELS)
    assert task.model.config.pool_scales[0] == 1  # a map of one value, of which there is no variance
    events = list(Training(task.learner(batch_size=4), lr=1e-3, num_epochs=1, device="cpu", precision="fp32"))
    assert events[-1].reason == "done"
    example = stack_pixels([task.examples("train")[0]])
    task.model.train()
    loss, logits = segmentation_loss(task.model, example)
    assert logits.shape == (1, 3, 64, 64)
    assert math.isfinite(loss.item())


# -- the task ---------------------------------------------------------------------------------------------------------


def test_prepare_gathers_everything(task):
    assert task.labels == LABELS
    assert task.table.names == tuple(LABELS)
    assert task.vision.new_parameters == {"decode_head.classifier.weight", "decode_head.classifier.bias"}
    assert any("output layer was made for other labels" in warning for warning in task.warnings)
    assert any("do not count" in warning for warning in task.warnings)
    assert (task.vision.transform.height, task.vision.transform.resize) == (32, None)
    batch = next(iter(task.learner(batch_size=5).train.epoch()))
    assert batch["pixel_values"].shape == (5, 3, 32, 32)
    assert batch["labels"].shape == (5, 32, 32)
    assert set(batch["labels"].unique().tolist()) <= {0, 1, 2, 255}
    assert task.name == "image-segmentation"


@pytest.mark.parametrize(
    ("data", "kinds", "error", "expected"),
    [
        (DATA, {"augment": "wild"}, DataError, "'wild'"),
        (DATA, {"image_size": 5}, DataError, "5 × 5"),
        (DATA, {"classes": ["ground", "red"]}, DataError, r"masks hold 2 \("),
        (DATA["train"], {"valid_fraction": 1.0}, DataError, "valid_fraction=1.0"),
        ("nowhere", {}, DataError, "nowhere"),
        ([{"image": DATA["train"][0]["image"]}] * 4, {}, DataError, "column 'mask' not found"),
    ],
)
def test_whatever_is_wrong_is_said_before_training(model, data, kinds, error, expected):
    with pytest.raises(error, match=expected):
        ImageSegmentation.prepare(data, model, **{"classes": LABELS, **kinds})


def test_training_learns_and_looking_in_between_changes_nothing(model):
    def run(look: bool) -> tuple[ImageSegmentation, list[float]]:
        task = ImageSegmentation.prepare(DATA, model, classes=LABELS, augment="flip")
        training = Training(task.learner(batch_size=8), lr=5e-3, num_epochs=12, device="cpu", precision="fp32")
        losses = []
        while (event := training.step()) is not None:
            losses.append(event.loss)
            if look and len(losses) == 4:
                task.predict([DATA["valid"][0]["image"]])
                task.show_batch(2)
                task.show_errors(1)
        return task, losses

    (task, losses), (_, looked_at) = run(False), run(True)
    assert losses == looked_at
    measured = task.evaluate("test")
    constant = np.mean([row["pixels"][0] for row in task.splits.test]) / np.mean(
        [sum(r["pixels"][:3]) for r in task.splits.test]
    )
    assert (
        measured["mean_iou"] > constant / 3 + 0.1
    )  # a mask of nothing but ground has that share, divided by 3 classes
    assert losses[-1] < 0.6 * losses[0]


def test_masks_move_with_their_photos(model):
    task = ImageSegmentation.prepare(DATA, model, classes=LABELS, augment="strong")
    red, blue = [], []
    for i in range(12):
        example = task.examples("train", train=True)[i]
        photo = task.vision.transform.shown(example["pixel_values"]).astype(int)
        labels = example["labels"].numpy()
        red += (photo[..., 0] - photo[..., 2])[labels == 1].tolist()
        blue += (photo[..., 0] - photo[..., 2])[labels == 2].tolist()
    assert np.mean(np.array(red) > 0) > 0.9
    assert np.mean(np.array(blue) < 0) > 0.9


def test_predictions_have_the_photos_own_size_and_do_not_depend_on_company(task):
    photos = [row["image"] for row in DATA["test"][:3]] + [np.asarray(DATA["valid"][0]["image"])]
    together = task.predict(photos, batch_size=2)
    for photo, answer in zip(photos, together, strict=True):
        image = read_image(photo)
        assert answer.classes.shape == answer.probability.shape == (image.height, image.width)
        assert answer.classes.dtype == np.uint8
        assert 1 / 3 <= answer.probability.min() <= answer.probability.max() <= 1
        alone = task.predict([photo])[0]
        assert (alone.classes == answer.classes).mean() > 0.999
        assert sum(answer.shares().values()) == pytest.approx(1)
    assert str(together[0]).endswith("%")
    assert task.predict([]) == []
    for wrong in ("photo.jpg", DATA["test"][0]["image"], Path("photo.jpg")):
        with pytest.raises(DataError, match="list of pictures"):
            task.predict(wrong)
    with pytest.raises(DataError, match="no picture"):
        task.predict(["nowhere.jpg"])


def test_a_turned_photo_gets_a_mask_of_what_people_see(task, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    DATA["test"][0]["image"].save(tmp_path / "turned.jpg", exif=exif)
    width, height = DATA["test"][0]["image"].size
    assert task.predict([tmp_path / "turned.jpg"])[0].classes.shape == (width, height)


def test_evaluate_agrees_with_the_predictions_at_full_size(task):
    measured = task.evaluate("test", batch_size=3)
    answers = task.predict([row["image"] for row in DATA["test"]])
    metrics = segmentation_metrics(3)
    for answer, row in zip(answers, DATA["test"], strict=True):
        logits = nn.functional.one_hot(torch.from_numpy(answer.classes).long(), 3).movedim(-1, 0)[None]
        metrics.update(logits, {"labels": torch.from_numpy(np.array(row["mask"])).long()[None]})
    assert measured["mean_iou"] == pytest.approx(metrics.compute()["mean_iou"], abs=1e-6)
    per_class = class_iou(confusion_of(metrics)).tolist()
    assert [measured[f"iou {name}"] for name in LABELS] == pytest.approx(per_class, abs=1e-6)
    assert set(measured) == {"loss", "mean_iou", "pixel_accuracy", "iou ground", "iou red", "iou blue"}
    with pytest.raises(DataError, match="'train', 'valid', 'test'"):
        task.evaluate("dev")
    table = task.per_class("test")
    assert [float(row[2]) for row in table.rows] == sorted(float(row[2]) for row in table.rows)
    assert {row[0] for row in table.rows} == set(LABELS)


def test_predicting_restores_the_mode_of_every_module(task):
    task.model.train()
    task.model.segformer.eval()
    before = [module.training for module in task.model.modules()]
    task.predict([DATA["test"][0]["image"]])
    task.evaluate("valid")
    task.show_errors(2)
    assert [module.training for module in task.model.modules()] == before


def test_errors_show_the_worst_first(task):
    sheet = task.show_errors(3, split="test")
    titles = [axes.get_title() for axes in sheet.axes if axes.get_title()]
    assert len(titles) == 12
    ious = [float(title.split()[-1]) for title in titles if title.startswith("predicted")]
    assert ious == sorted(ious)
    assert "3 of 7 test photos" in sheet.get_suptitle()
    assert sheet.png().startswith(b"\x89PNG")
    assert task.show_batch(2).png().startswith(b"\x89PNG")
    assert {text.get_text() for text in sheet.legends[0].get_texts()} >= {"ground (no colour)", "red", "blue"}


def test_overlays_leave_the_clear_class_grey_and_mark_what_is_wrong():
    photo = np.full((2, 3, 3), 100, dtype=np.uint8)
    mask = np.array([[0, 1, 255], [0, 2, 1]])
    shown = overlay(photo, mask, 3, clear=0, strength=1.0)
    assert (shown[:, 0] == 100).all()
    np.testing.assert_array_equal(shown[0, 1], class_colors(3)[1])
    assert shown[0, 2].min() > 180
    red = wrong_pixels(photo, mask, np.array([[0, 2, 0], [0, 2, 1]]))
    np.testing.assert_array_equal((red == (214, 39, 40)).all(-1), [[False, True, False], [False, False, False]])
    assert len(np.unique(class_colors(60), axis=0)) == 60


def test_examples_without_masks_have_no_labels(task):
    examples = SegmentationExamples(task.splits.test, task.vision.transform)
    assert set(examples[0]) == {"pixel_values"}
    with pytest.raises(ValueError, match="no masks"):
        examples.mask(0)


# -- models -----------------------------------------------------------------------------------------------------------


def test_a_saved_folder_gives_the_pipeline_the_same_masks(task, tmp_path):
    for _ in Training(task.learner(batch_size=8), lr=5e-3, num_epochs=2, device="cpu", precision="fp32"):
        pass
    folder = task.save(tmp_path / "model")
    assert not list(folder.glob("*.bin"))
    assert json.loads((folder / "preprocessor_config.json").read_text())["do_reduce_labels"] is False
    photo = DATA["test"][1]["image"]
    answer = task.predict([photo])[0]
    with quiet_transformers():
        parts = pipeline("image-segmentation", str(folder), device="cpu")(photo, subtask="semantic")
    for part in parts:
        ours = answer.classes == LABELS.index(part["label"])
        assert ((np.asarray(part["mask"]) > 127) == ours).mean() > 0.98  # resizing differs in the last bit
    again = ImageSegmentation.from_saved(folder)
    np.testing.assert_array_equal(again.predict([photo])[0].classes, answer.classes)
    assert again.labels == LABELS
    with pytest.raises(DataError, match="there are none"):
        again.evaluate("test")


def test_a_saved_model_can_be_trained_further_and_keeps_its_order_of_classes(task, tmp_path):
    folder = str(task.save(tmp_path / "model"))
    other_order = {"blue": 2, "ground": 0, "red": 1}
    again = ImageSegmentation.prepare(DATA, folder, classes=other_order)
    assert again.vision.new_parameters == frozenset()
    assert again.labels == LABELS
    assert again.evaluate("test") == pytest.approx(task.evaluate("test"), abs=1e-6)
    fewer = ImageSegmentation.prepare(DATA, folder, classes={"any": 0, "box": 1}, ignore=[2, 255])
    assert fewer.vision.new_parameters == {"decode_head.classifier.weight", "decode_head.classifier.bias"}
    equally_many = load_segmentation_model(folder, ["x", "y", "z"])
    assert equally_many.new_parameters == fewer.vision.new_parameters  # other classes, even if as many
    weights = [v.state_dict()["decode_head.classifier.weight"] for v in (equally_many.model, task.model)]
    assert not torch.equal(*weights)


def test_a_new_output_layer_begins_with_the_classes_shares(model, tmp_path):
    lraspp = "torchvision:lraspp_mobilenet_v3_large"
    for name in (model, resnet(tmp_path / "resnet"), lraspp):
        kinds = {"scratch": True, "image_size": 64} if name == lraspp else {}
        task = ImageSegmentation.prepare(DATA, name, classes={"red": 1, "ground": 0, "blue": 2}, **kinds)
        pixels = np.asarray(task.splits.train["pixels"][:])[:, :3].sum(0)
        biases = [p for n, p in task.model.named_parameters() if n.endswith("classifier.bias")]
        total = sum(biases).detach().softmax(0)
        np.testing.assert_allclose(total.numpy(), pixels / pixels.sum(), atol=1e-4)
    saved = ImageSegmentation.prepare(DATA, str(task.save(tmp_path / "saved")), classes=LABELS)
    kept = [p for n, p in saved.model.named_parameters() if n.endswith("classifier.bias")]
    assert torch.equal(sum(kept), sum(biases))  # a trained one stays


def test_a_backbone_without_a_decoder_gets_one_and_saves_as_transformers_does(tmp_path):
    folder = resnet(tmp_path / "resnet")
    task = ImageSegmentation.prepare(DATA, folder, classes=LABELS, image_size=64)
    assert task.vision.transform.mean == (0.4, 0.4, 0.4)
    assert all(name.startswith("decode_head.") for name in task.vision.new_parameters)
    with quiet_transformers():
        own = ResNetForImageClassification.from_pretrained(folder).resnet.state_dict()
    kept = task.model.backbone.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in own.items() if name in kept)
    groups = layer_groups(task.model, task.vision.new_parameters)
    assert [group.name for group in groups] == ["embeddings", "block 0", "block 1", "head"]
    saved = task.save(tmp_path / "saved")
    assert str(tmp_path) not in (saved / "config.json").read_text()
    with quiet_transformers():
        loaded = AutoModelForSemanticSegmentation.from_pretrained(saved).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).logits, task.model(x).logits, atol=1e-5, rtol=1e-5)
    assert (
        ImageSegmentation.prepare(DATA, folder, classes=LABELS).vision.transform.height == 64
    )  # about the photos' side
    scratch = load_segmentation_model(folder, LABELS, scratch=True)
    assert len(scratch.new_parameters) == len(list(scratch.model.parameters()))


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "squeezenet1_1"])
def test_torchvision_models_train_save_and_load(name, tmp_path):
    task = ImageSegmentation.prepare(DATA, f"torchvision:{name}", classes=LABELS, scratch=True, image_size=64)
    assert any("random weights" in warning for warning in task.warnings)
    learner = task.learner(batch_size=4)
    loss, logits = learner.loss(task.model, next(iter(learner.train.epoch())))
    assert logits.shape == (4, 3, 64, 64)
    assert math.isfinite(loss.item())
    folder = task.save(tmp_path / "model")
    again = ImageSegmentation.from_saved(folder)
    photo = DATA["test"][0]["image"]
    np.testing.assert_array_equal(again.predict([photo])[0].classes, task.predict([photo])[0].classes)
    further = load_segmentation_model(str(folder), [*LABELS, "green"])
    assert further.labels == [*LABELS, "green"]
    assert all("classifier" in name for name in further.new_parameters)
    kept, own = further.model.state_dict(), task.model.state_dict()
    assert sum(torch.equal(kept[n], own[n]) for n in own if kept[n].shape == own[n].shape) > 0.9 * len(own)


def test_torchvision_weights_come_from_a_file(tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    for name in ("lraspp_mobilenet_v3_large", "squeezenet1_1"):
        state = models.get_model(
            name, weights=None, **({"weights_backbone": None} if "lraspp" in name else {})
        ).state_dict()
        torch.save(state, tmp_path / f"{name}.pth")
        found = load_segmentation_model(f"torchvision:{name}@{tmp_path / name}.pth", LABELS)
        pairs = zip(
            found.model.backbone.parameters(),
            (t for n, t in state.items() if not n.startswith("classifier")),
            strict=False,
        )
        assert torch.equal(*next(iter(pairs)))
        assert 0 < len(found.new_parameters) < len(list(found.model.parameters()))
        with pytest.raises(ModelError, match="does not fit"):
            load_segmentation_model(f"torchvision:deeplabv3_mobilenet_v3_large@{tmp_path / name}.pth", LABELS)


def test_only_the_head_trains_when_the_strategy_says_so(tmp_path):
    task = ImageSegmentation.prepare(DATA, resnet(tmp_path / "r"), classes=LABELS)
    table = what_is_training(task.learner(batch_size=4), strategy=Head())
    assert [bool(row.moved) for row in table.rows] == [False] * (len(table.rows) - 1) + [True]
    everything = what_is_training(task.learner(batch_size=4), strategy=Full())
    assert all(row.moved for row in everything.rows)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision:resnet81", "Did you mean"),
        ("torchvision:vit_b_16", "no backbone"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no model for segmentation"),
        ("nowhere/at all", "no folder"),
    ],
)
def test_models_that_cannot_do_it_are_refused(name, expected):
    with pytest.raises(ModelError, match=expected):
        load_segmentation_model(name, LABELS, scratch=True)


def test_a_transformers_model_that_cannot_do_it_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with quiet_transformers():
        ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "vit")
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelError, match="is a vit model"):
        load_segmentation_model(str(tmp_path / "vit"), LABELS)
    folder = Path(segformer(tmp_path / "s"))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="cannot load"):
        load_segmentation_model(str(folder), LABELS)


def test_enlarging_keeps_what_fits():
    logits = torch.randn(1, 2, 4, 4)
    assert enlarge(logits, (4, 4)) is logits
    assert enlarge(logits, (9, 7)).shape == (1, 2, 9, 7)


# -- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize(("strategy", "lr"), [(Full(), 1e-3), (Head(), 3e-3), (LayerDecay(0.7), 2e-3)], ids=str)
def test_pets_with_imagenet_features_beat_the_best_constant_mask(test_data, strategy, lr):
    weights = test_data / "weights" / "squeezenet1_0_imagenet" / "squeezenet1_0_deepcompressed_imagenet_fp16.pth"
    task = ImageSegmentation.prepare(
        test_data / "vision_multi" / "oxford_pets_mini",
        f"torchvision:squeezenet1_0@{weights}",
        classes={"pet": 1, "ground": 2},
        ignore=(3, 255),
        image_size=128,
        augment="flip",
    )
    assert [len(split) for _, split in task.splits.items()] == [108, 12, 60]
    settings = {"lr": lr, "num_epochs": 4, "eval_every": 1000}
    for _ in Training(task.learner(batch_size=12), strategy, **settings, device="cpu", precision="fp32"):
        pass
    measured = task.evaluate("test")
    pixels = np.asarray(task.splits.test["pixels"][:])[:, :2].sum(0)
    constant = (pixels / pixels.sum()).max() / 2  # one class everywhere: its share is its IoU, the other's is 0
    print(measured, constant)
    assert measured["mean_iou"] > constant + 0.3
