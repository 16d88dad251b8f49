"""From a folder of pictures to a saved model: preparing, batches, predictions, errors, and the folder others load."""

import pytest
import torch
from PIL import Image
from transformers import pipeline

from ftnb.pretrained import ModelError
from ftnb.saved import load_task
from ftnb.tables import DataError
from ftnb.tasks import TASKS, task_class
from ftnb.tasks.image_classification import ImageClassification, image_cross_entropy, logits_of, saliency
from ftnb.tasks.text_classification import evaluating
from ftnb.train import Training
from tests.tiny_images import stripe_folder, stripes, tiny_resnet


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny_resnet(tmp_path_factory.mktemp("resnet"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return stripe_folder(tmp_path_factory.mktemp("data") / "stripes")


@pytest.fixture
def task(model, folder) -> ImageClassification:
    return ImageClassification.prepare(folder, model, valid_fraction=0.2, test_fraction=0.2)


def test_prepare_gathers_everything_a_training_needs(task):
    assert task.labels == ["lying", "upright"]
    assert [len(split) for _, split in task.splits.items()] == [38, 10, 12]
    assert all(name.startswith("classifier") for name in task.vision.new_parameters)
    assert task_class("image-classification") is ImageClassification
    assert TASKS[task.name].options == ImageClassification.options
    batch = next(iter(task.learner(batch_size=8).train.epoch()))
    assert batch["pixel_values"].shape == (8, 3, 16, 16)
    assert batch["labels"].dtype == torch.int64


def test_it_learns_and_everything_shown_agrees(task):
    before = task.evaluate("test")
    for _ in Training(task.learner(batch_size=8), lr=5e-3, num_epochs=6, device="cpu"):
        pass
    after = task.evaluate("test")
    assert after["accuracy"] >= 0.9
    assert after["loss"] < 0.7 * before["loss"]
    predictions = task.predict([stripes(True, 1), stripes(False, 2)])
    assert [p.label for p in predictions] == ["upright", "lying"]
    assert sum(predictions[0].scores.values()) == pytest.approx(1)
    assert str(predictions[0]).startswith("upright\t")
    table = task.per_class("test")
    assert sum(int(row[1]) for row in table.rows) == 12
    picture = task.show_batch(4)
    assert picture.png().startswith(b"\x89PNG")
    assert len(picture.axes) == 4


def test_errors_show_the_wrong_pictures_and_where_it_looked(task):
    answers = task.predict([row["image"] for row in task.splits.test])
    wrong = sum(p.label != label for p, label in zip(answers, task.splits.test["label"], strict=True))
    sheet = task.show_errors(3, split="test")
    assert f"{wrong} of 12 test pictures are wrong" in sheet.get_suptitle()
    assert sheet.png()
    with pytest.raises(DataError, match="there is no split 'train2'; there are 'train', 'valid', 'test'"):
        task.show_errors(split="train2")


def test_without_errors_the_sheet_says_so(task):
    for _ in Training(task.learner(batch_size=8), lr=5e-3, num_epochs=8, device="cpu"):
        pass
    sheet = task.show_errors(split="train")
    assert "0 of 38 train pictures are wrong" in sheet.get_suptitle()
    assert sheet.png()


def test_the_saved_folder_gives_the_same_answers_elsewhere(task, tmp_path):
    folder = task.save(tmp_path / "model")
    pictures = [stripes(bool(i % 2), i) for i in range(6)]
    ours = task.predict(pictures)
    theirs = pipeline("image-classification", str(folder), device="cpu")(pictures)
    for mine, scores in zip(ours, theirs, strict=True):
        assert scores[0]["label"] == mine.label
        assert scores[0]["score"] == pytest.approx(mine.score, abs=1e-4)
    again = load_task(folder)
    assert isinstance(again, ImageClassification)
    assert [dict(p.scores) for p in again.predict(pictures)] == [pytest.approx(dict(p.scores), abs=1e-6) for p in ours]
    assert "pipeline" in task.loading_code(folder)


def test_a_model_without_a_trained_head_predicts_nothing(model, tmp_path):
    from transformers import ResNetModel, ViTImageProcessor

    ResNetModel.from_pretrained(model).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="none of the tasks"):
        load_task(tmp_path)
    with pytest.raises(ModelError, match="without a trained head"):
        ImageClassification.from_saved(tmp_path)


def test_augmentation_changes_batches_by_epoch_and_not_the_validation(model, folder):
    task = ImageClassification.prepare(folder, model, augment="flip")
    examples = task.examples("train", train=True)
    torch.manual_seed(0)
    assert not torch.equal(examples[0]["pixel_values"], examples[0]["pixel_values"])
    valid = task.batches("valid", 4)
    first, second = (next(iter(valid.epoch()))["pixel_values"] for _ in range(2))
    assert torch.equal(first, second)
    state = torch.get_rng_state()
    task.show_batch(2)
    assert torch.equal(torch.get_rng_state(), state)  # looking does not disturb a training


def test_an_augmented_training_repeats_to_the_bit_and_goes_on_in_another_object(model, folder):
    def training() -> Training:
        task = ImageClassification.prepare(folder, model, augment="strong")
        return Training(task.learner(batch_size=8, seed=1), lr=1e-3, num_epochs=2, seed=1, device="cpu")

    def weights(of: Training) -> torch.Tensor:
        return torch.cat([t.flatten().float() for t in of.model.state_dict().values()])

    whole = training()
    for _ in whole:
        pass
    half = training()
    for _ in range(5):
        half.step()
    rest = training()
    rest.load_state_dict(half.state_dict())
    for _ in rest:
        pass
    assert torch.equal(weights(whole), weights(rest))


def test_batch_norm_stays_as_it_was_when_asked(model, folder):
    for batch_norm in ("moving", "fixed"):
        task = ImageClassification.prepare(folder, model)
        before = {name: b.clone() for name, b in task.model.named_buffers() if "running" in name}
        training = Training(task.learner(batch_size=8), lr=1e-3, num_epochs=1, batch_norm=batch_norm, device="cpu")
        for _ in training:
            pass
        moved = [
            name for name, b in task.model.named_buffers() if "running" in name and not torch.equal(b, before[name])
        ]
        assert bool(moved) == (batch_norm == "moving")


def test_the_loss_and_the_saliency_are_what_they_say(task):
    batch = next(iter(task.batches("valid", 6).epoch()))
    with evaluating(task.model):
        loss, logits = image_cross_entropy(task.model, batch)
        outputs = task.model(**batch)
    torch.testing.assert_close(loss, outputs.loss)
    torch.testing.assert_close(logits, logits_of(outputs))

    corner = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2))
    with torch.no_grad():
        weight = torch.zeros(2, 3, 8, 8)
        weight[1, 0, 2, 5] = 1.0  # one pixel decides
        corner[1].weight.copy_(weight.flatten(1))
    heat = saliency(corner, torch.rand(3, 8, 8), label=1)
    assert heat.argmax().item() == 2 * 8 + 5
    assert heat.sum().item() == pytest.approx(heat.max().item())
    assert corner[1].weight.grad is None


@pytest.mark.parametrize(
    ("settings", "error", "expected"),
    [
        ({"augment": "spin"}, DataError, "augment must be one of"),
        ({"image_size": 4}, DataError, "between 8 and 4096"),
        ({"columns": {"picture": "a"}}, DataError, "this task knows 'image', 'label'"),
        (
            {"data": [{"image": stripes(True, i), "label": "a"} for i in range(9)]},
            DataError,
            "every row has the label 'a'",
        ),
        ({"data": "nowhere"}, DataError, "'nowhere' is no file and no folder"),
        ({"model": "builtin:bert-reviews"}, ModelError, "has no image processor"),
    ],
)
def test_whatever_is_wrong_is_said_before_training(model, folder, settings, error, expected):
    with pytest.raises(error, match=expected):
        ImageClassification.prepare(**{"data": folder, "model": model, **settings})


@pytest.mark.parametrize(("images", "expected"), [("a.png", "got str"), ([b"x"], "is no picture"), ([3], "got 3")])
def test_what_cannot_be_predicted_is_said(task, images, expected):
    with pytest.raises(DataError, match=expected):
        task.predict(images)
    assert task.predict([]) == []


def test_six_classes_have_a_top_five(model, tmp_path):
    rows = [{"image": Image.new("RGB", (16, 16), (40 * (i % 6), i, 0)), "label": str(i % 6)} for i in range(60)]
    scores = ImageClassification.prepare(rows, model).evaluate("valid")
    assert scores["top5"] >= scores["accuracy"]
