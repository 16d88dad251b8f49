"""Image models by name, from files, from folders: heads replaced, everything else loaded, faults named."""

import json
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from transformers import AutoImageProcessor, ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from ftnb.pretrained import ModelError
from ftnb.saved import load_task
from ftnb.vision.images import read_image
from ftnb.vision.models import load_image_classifier, loading_code, save_vision_model
from ftnb.vision.torchvision_models import parse_name, read_state_file
from tests.test_images import photo

LABELS = ["cat", "dog", "owl"]


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory) -> str:
    """A file of weights as torchvision's own are: the classifier has 1,000 outputs."""
    torch.manual_seed(0)
    state = models.squeezenet1_1(weights=None).state_dict()
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save({name: tensor.half() for name, tensor in state.items()}, path)
    return str(path)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> str:
    """A tiny folder laid out as the Hub's."""
    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(1)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**sizes, num_labels=5)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(folder)
    return str(folder)


def outputs(model: torch.nn.Module, size: int = 64) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        out = model(torch.randn(2, 3, size, size, generator=g))
    return getattr(out, "logits", out)


def test_torchvision_weights_from_a_file(squeezenet):
    found = load_image_classifier(f"torchvision:squeezenet1_1@{squeezenet}", LABELS, seed=3)
    assert outputs(found.model).shape == (2, 3)
    assert found.new_parameters == {"classifier.1.weight", "classifier.1.bias"}
    state = torch.load(squeezenet, weights_only=True)
    own = found.model.state_dict()
    for name, tensor in state.items():
        if not name.startswith("classifier"):
            torch.testing.assert_close(own[name], tensor.float())
    again = load_image_classifier(f"torchvision:squeezenet1_1@{squeezenet}", LABELS, seed=3)
    assert torch.equal(outputs(found.model), outputs(again.model))
    assert (found.transform.height, found.transform.resize) == (224, 256)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v3_small", "convnext_tiny", "vit_b_16", "googlenet", "densenet121", "regnet_y_400mf"],
)
def test_families_get_a_new_head(name):
    found = load_image_classifier(f"torchvision:{name}", LABELS, scratch=True)
    assert len(found.new_parameters) == len(dict(found.model.named_parameters()))
    assert outputs(found.model, 224).shape == (2, 3)


def test_a_torchvision_model_is_saved_and_loads_again_without_us(squeezenet, tmp_path):
    found = load_image_classifier(f"torchvision:squeezenet1_1@{squeezenet}", LABELS, image_size=64)
    folder = save_vision_model(found, tmp_path / "model")
    again = load_image_classifier(str(folder), LABELS)
    assert torch.equal(outputs(found.model), outputs(again.model))
    assert again.new_parameters == frozenset()
    assert again.transform == found.transform
    assert load_image_classifier(str(folder), LABELS[::-1]).labels == LABELS  # the checkpoint's own order counts
    other = load_image_classifier(str(folder), ["a", "b"])
    assert other.new_parameters == {"classifier.1.weight", "classifier.1.bias"}
    assert any("made for other labels" in notice for notice in other.notices)

    task = load_task(folder)  # as `ftnb predict` and `Run.open` do
    assert (task.name, task.labels) == ("image-classification", LABELS)
    assert task.predict([photo()])[0].label in LABELS

    picture = photo(90, 70)
    picture.save(tmp_path / "picture.png")
    code = loading_code(found, folder).replace('"picture.jpg"', repr(str(tmp_path / "picture.png")))
    scope: dict = {}
    exec(code.rpartition("\n")[0], scope)
    with torch.no_grad():
        ours = found.model(found.transform(read_image(picture))["pixel_values"][None]).softmax(-1)[0]
    torch.testing.assert_close(scope["scores"], ours, atol=1e-5, rtol=0)


def test_a_transformers_folder(resnet, tmp_path):
    found = load_image_classifier(resnet, LABELS)
    assert outputs(found.model, 24).shape == (2, 3)
    assert (found.transform.height, found.transform.resize) == (24, None)
    assert all(name.startswith("classifier") for name in found.new_parameters)
    folder = save_vision_model(found, tmp_path / "model")
    assert AutoImageProcessor.from_pretrained(folder).size["height"] == 24
    again = load_image_classifier(str(folder), LABELS)
    assert torch.equal(outputs(found.model, 24), outputs(again.model, 24))
    assert again.new_parameters == frozenset()


def test_another_image_size_is_saved_with_the_processor(resnet, tmp_path):
    found = load_image_classifier(resnet, LABELS, image_size=32)
    folder = save_vision_model(found, tmp_path / "model")
    assert load_image_classifier(str(folder), LABELS).transform == found.transform


def test_no_network_is_said_with_what_to_do(monkeypatch):
    def no_network(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(ModelError, match=r"cannot be downloaded from .*torchvision:resnet18@/path/to/weights.pth"):
        load_image_classifier("torchvision:resnet18", LABELS)


def test_weights_that_are_downloaded_bring_their_own_transform(monkeypatch):
    state = models.resnet18(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    found = load_image_classifier("torchvision:resnet18", LABELS)
    torch.testing.assert_close(found.model.state_dict()["conv1.weight"], state["conv1.weight"])
    preset = models.ResNet18_Weights.DEFAULT.transforms()
    picture = photo(300, 250)
    torch.testing.assert_close(found.transform(picture)["pixel_values"], preset(picture), atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision:resnet19", "no model 'resnet19'. Did you mean 'resnet"),
        ("torchvision:resnet18@IMAGENET", "no weights 'IMAGENET' for resnet18; there are: IMAGENET1K_V1"),
        ("torchvision:resnet18@/nowhere/x.pth", "there is no file of weights /nowhere/x.pth"),
        ("torchvision:fcos_resnet50_fpn", "is no image classifier"),
        ("builtin:cat", "'builtin:cat' is unknown"),
        ("/nowhere/at/all", "is no folder"),
    ],
)
def test_wrong_names_are_refused(name, expected):
    with pytest.raises(ModelError, match=expected):
        load_image_classifier(name, LABELS)


def test_files_that_are_no_weights_are_refused(tmp_path, squeezenet):
    (tmp_path / "a.pth").write_bytes(b"nothing")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "b.pth")  # needs code to open
    torch.save([1, 2], tmp_path / "c.pth")
    (tmp_path / "d.safetensors").write_bytes(b"x" * 100)
    save_file({"x": torch.zeros(2)}, tmp_path / "e.safetensors")
    faults = {
        "a.pth": "cannot be read as plain tensors",
        "b.pth": "needs code to open it is not opened",
        "c.pth": "holds no state dictionary",
        "d.safetensors": "damaged or no safetensors",
    }
    for name, expected in faults.items():
        with pytest.raises(ModelError, match=expected):
            read_state_file(tmp_path / name)
    with pytest.raises(ModelError, match="does not fit ResNet: .* tensors are missing, for example 'conv1.weight'"):
        load_image_classifier(f"torchvision:resnet18@{tmp_path / 'e.safetensors'}", LABELS)
    torch.save({"state_dict": {"module.x": torch.ones(1, dtype=torch.half)}}, tmp_path / "f.pth")
    assert read_state_file(tmp_path / "f.pth")["x"].dtype == torch.float32


def test_folders_that_are_no_models_are_refused(resnet, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"library_name": "torchvision", "task": "object-detection"}))
    with pytest.raises(ModelError, match="for object-detection, not for image-classification"):
        load_image_classifier(str(tmp_path), LABELS)


def test_names_are_parsed():
    assert parse_name("torchvision:resnet18") == ("resnet18", "DEFAULT")
    assert parse_name("torchvision:resnet18@C:\\x.pth") == ("resnet18", "C:\\x.pth")
