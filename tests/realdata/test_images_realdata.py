"""Real photographs and a real pretrained network, through the paths that a person's own files take."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ftnb import Recipe, finetune
from ftnb.tasks.image_classification import ImageClassification
from ftnb.vision.examples import ImageExamples
from tests.tiny_images import tiny_resnet

pytestmark = pytest.mark.realdata

# 60 test photographs of three breeds: the standard error of an accuracy of 0.8 is 0.05.
NUMBERS = {"lr": 5e-4, "num_epochs": 4, "batch_size": 8, "augment": "flip"}


@pytest.fixture(scope="module")
def squeezenet(test_data: Path) -> str:
    """SqueezeNet 1.0 with ImageNet weights, as torchvision lays them out."""
    folder = test_data / "weights" / "squeezenet1_0_imagenet"
    return f"torchvision:squeezenet1_0@{folder / 'squeezenet1_0_deepcompressed_imagenet_fp16.pth'}"


@pytest.fixture(scope="module")
def pets(test_data: Path, tmp_path_factory) -> Path:
    """Three breeds of the Oxford pets as somebody's own tables: train.csv and test.csv with a column of paths."""
    source, folder = test_data / "vision_multi" / "oxford_pets_mini", tmp_path_factory.mktemp("pets")
    for split in ("train", "test"):
        stems = (source / f"{split}.txt").read_text(encoding="utf-8").split()
        lines = [f"{source / 'images' / stem}.jpg,{stem.rpartition('_')[0]}" for stem in stems]
        (folder / f"{split}.csv").write_text("photo,breed\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


def features(task: ImageClassification, split: str) -> tuple[Tensor, list[str]]:
    """What the frozen network says of each photograph, averaged over its places: shape (photographs, 512)."""
    examples: ImageExamples = task.examples(split)
    model: Any = task.model
    with torch.no_grad():
        pooled = [model.features(examples[i]["pixel_values"][None]).mean((2, 3))[0] for i in range(len(examples))]
    return torch.stack(pooled), task.splits.items()[["train", "valid", "test"].index(split)][1]["label"][:]


@pytest.fixture(scope="module")
def baseline(pets: Path, squeezenet: str) -> float:
    """A plain script's answer: logistic regression on the frozen features, fitted to all photographs."""
    task = ImageClassification.prepare(str(pets), squeezenet, columns={"image": "photo", "label": "breed"})
    (train, labels), (valid, more), (test, truth) = (features(task, split) for split in ("train", "valid", "test"))
    fitted = LogisticRegression(max_iter=2000, C=0.1).fit(torch.cat([train, valid]).numpy(), [*labels, *more])
    return float(fitted.score(test.numpy(), truth))


@pytest.mark.parametrize("strategy", ["head", "full", {"name": "layer-decay", "decay": 0.8}], ids=str)
def test_breeds_of_pets_reach_what_a_linear_classifier_on_frozen_features_reaches(
    pets, squeezenet, baseline, strategy, tmp_path
):
    recipe = Recipe(
        task="image-classification", data=str(pets), columns={"image": "photo", "label": "breed"}, model=squeezenet,
        strategy=strategy, **{**NUMBERS, "lr": 1e-3 if strategy == "head" else 1e-4},
    )  # fmt: skip
    run = finetune(recipe, folder=tmp_path / "run", progress=False)
    scores = run.task.evaluate("test")
    print(f"test accuracy {scores['accuracy']:.3f}, linear classifier on frozen features {baseline:.3f}")
    assert scores["accuracy"] >= max(0.6, baseline - 0.15)  # three standard errors; the largest class is 0.33
    assert run.task.show_errors(3, split="test").png()


def test_fashion_sprites_train_from_their_folders(test_data, tmp_path):
    folder = test_data / "image_classification" / "fashion_mnist_sprite900"
    task = ImageClassification.prepare(str(folder), tiny_resnet(tmp_path / "model", 10), image_size=28)
    assert len(task.labels) == 10
    assert [len(task.splits.train) + len(task.splits.valid), len(task.splits.test)] == [660, 240]
    assert task.evaluate("test")["top5"] <= 1
