"""torchvision's models for segmentation, and its classifiers with LR-ASPP's decoder, by name or from a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torchvision.models.segmentation import LRASPP

from ftnb.pretrained import NO_WEIGHTS, ModelError, read_config
from ftnb.transforms import ImageTransform
from ftnb.vision.models import VisionModel, models_module
from ftnb.vision.torchvision_models import (
    WEIGHTS,
    load_backbone,
    make_model,
    output_layer,
    parse_name,
    read_weights,
)

NEW_HEAD = "the checkpoint's output layer was made for other labels; it starts new."
_STEM_SIDE = 128  # of the empty picture that shows the sizes of a backbone's maps


class TwoScales(nn.Module):
    """Layers in a row that give two of their maps: a finer one, "low", and the last one, "high".

    Args:
        layers: from pictures to maps.
        low: the place of the layer whose map is "low".
    """

    def __init__(self, layers: nn.Sequential, low: int) -> None:
        super().__init__()
        self.layers, self.low = layers, low

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps of shape (batch, channels, height, width)."""
        maps = {}
        for place, layer in enumerate(self.layers):
            x = layer(x)
            if place == self.low:
                maps["low"] = x
        return {**maps, "high": x}


def from_torchvision(
    name: str, labels: Sequence[str], scratch: bool, seed: int, image_size: int | None, picture_size: int
) -> VisionModel:
    """Load "torchvision:NAME"; the arguments are those of `ftnb.segmentation.models.load_segmentation_model`.

    Raises:
        ModelError: if there is no such model, it is for another task, or the weights do not fit.
    """
    architecture, weights = parse_name(name)
    state, record = ({}, None) if scratch else read_weights(architecture, weights)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model, outputs = build_torchvision(architecture, len(labels), state, weights)
    new = frozenset(n for n, _ in model.named_parameters()) if scratch else outputs
    own_size = 520 if models_module(architecture) else picture_size
    side = image_size or own_size
    transform = ImageTransform(side, side)
    if record is not None:
        preset = record.transforms()
        transform = replace(transform, mean=tuple(preset.mean), std=tuple(preset.std))
    notices = [NO_WEIGHTS] if scratch else []
    return VisionModel(model.eval(), transform, list(labels), None, architecture, new, notices)


def build_torchvision(
    architecture: str, num_labels: int, state: Mapping[str, Tensor] | None = None, source: str = ""
) -> tuple[nn.Module, frozenset[str]]:
    """A torchvision model for segmentation, and the names of the parameters that `state` does not fill.

    Args:
        architecture: one of torchvision's segmentation models, or one of its classifiers, which becomes the backbone of
            an LR-ASPP (Howard et al. 2019).
        num_labels: classes.
        state: pretrained tensors of the architecture; of a segmentation model also those of its backbone alone.
        source: where they are from, for messages.

    Raises:
        ModelError: if the architecture cannot do this, or the tensors do not fit.
    """
    kind = models_module(architecture)
    if not kind:
        net = make_model(architecture)
        if state:
            load_backbone(net, state, _parameters(net, output_layer(net, 1000)), source)
        model: nn.Module = _two_scale_model(net, architecture, num_labels)
        return model, frozenset(n for n, _ in model.named_parameters() if not n.startswith("backbone."))
    if not kind.startswith("segmentation"):
        raise ModelError(
            f"torchvision's {architecture!r} is no model for segmentation; name 'lraspp_mobilenet_v3_large' …"
        )
    model = make_model(architecture, num_classes=num_labels)
    with torch.device("meta"):
        outputs = resized(model, make_model(architecture, num_classes=num_labels + 1))
    if state and not any(name.startswith("backbone.") for name in state):
        state = {f"backbone.{name}": tensor for name, tensor in state.items()}
        outputs = frozenset(name for name, _ in model.named_parameters() if not name.startswith("backbone."))
        load_backbone(model, state, _with_buffers(model, outputs), source)
    elif state:
        load_backbone(model, state, outputs, source)
    return model, outputs


def _parameters(model: nn.Module, layer: str) -> frozenset[str]:
    return frozenset(f"{layer}.{name}" for name, _ in model.get_submodule(layer).named_parameters())


def _with_buffers(model: nn.Module, parameters: frozenset[str]) -> frozenset[str]:
    modules = {name.rpartition(".")[0] for name in parameters}
    return frozenset(name for name in model.state_dict() if name.rpartition(".")[0] in modules)


def _two_scale_model(net: Any, architecture: str, num_labels: int) -> LRASPP:
    """LR-ASPP on the map of stride 8 and the last one of a classifier's layers."""
    last = {"avgpool", "fc", "classifier", "head", "heads", "dropout"}
    layers = list(net.features) if hasattr(net, "features") else [c for n, c in net.named_children() if n not in last]
    x, shapes = torch.zeros(1, 3, _STEM_SIDE, _STEM_SIDE), []
    try:
        with torch.no_grad():
            for layer in layers:
                x = layer.eval()(x)
                shapes.append(tuple(x.shape))
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError):  # as each module has it
        shapes = []
    sides = [shape[2] for shape in shapes if len(shape) == 4 and shape[2] == shape[3]]
    fine = [i for i, side in enumerate(sides) if side >= _STEM_SIDE // 8 - 2]
    if len(sides) < max(1, len(layers)) or not fine or sides != sorted(sides, reverse=True):
        raise ModelError(
            f"torchvision's {architecture!r} gives no maps of falling size, so it is no backbone here. Take "
            "a convolutional network ('resnet50', 'mobilenet_v3_large', 'squeezenet1_1' …) or a segmentation model."
        )
    low = fine[-1]
    return LRASPP(TwoScales(nn.Sequential(*layers), low), shapes[low][1], shapes[-1][1], num_labels)


def from_saved(folder: Path, labels: Sequence[str], scratch: bool, seed: int, image_size: int | None) -> VisionModel:
    """Load a folder that a task saved; the arguments are those of `ftnb.segmentation.models.load_segmentation_model`.

    For other labels than its own, everything is kept but what depends on the number of classes.

    Raises:
        ModelError: if the folder holds a model for another task, or is damaged.
    """
    config = read_config(folder)
    if config.get("task") != "image-segmentation":
        raise ModelError(f"{folder} holds a model for {config.get('task')}, not for image-segmentation.")
    names = [config["id2label"][str(i)] for i in range(len(config["id2label"]))]
    architecture, same = config["architecture"], set(names) == set(labels)
    order = names if same else list(labels)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        trained, outputs = build_torchvision(architecture, len(names))
        if not scratch:
            try:
                load_model(trained, str(folder / WEIGHTS))
            except (OSError, RuntimeError) as error:
                raise ModelError(f"{folder / WEIGHTS} cannot be loaded: {str(error)[:300]}") from None
        model = trained
        if not same:  # keep all but what depends on the number of classes
            outputs = resized(trained, build_torchvision(architecture, len(names) + 1)[0])
            model = build_torchvision(architecture, len(labels))[0]
            kept = {n: t for n, t in trained.state_dict().items() if n not in outputs}
            model.load_state_dict(kept, strict=False)
    settings = {**config["transform"], **({"height": image_size, "width": image_size} if image_size else {})}
    tuples: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    new = frozenset(n for n, _ in model.named_parameters()) if scratch else frozenset() if same else outputs
    notices = [NO_WEIGHTS] if scratch else [] if same else [NEW_HEAD]
    return VisionModel(model.eval(), ImageTransform(**tuples), order, None, architecture, new, notices)


def resized(model: nn.Module, other: nn.Module) -> frozenset[str]:
    """Names of the parameters whose size differs between two models that differ in the number of classes only."""
    sizes = {name: parameter.shape for name, parameter in other.named_parameters()}
    return frozenset(name for name, parameter in model.named_parameters() if parameter.shape != sizes[name])
