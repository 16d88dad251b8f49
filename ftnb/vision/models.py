"""Image models from transformers, torchvision or a saved folder, with a new head and the transform that they expect."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import nn

from ftnb.pretrained import NO_WEIGHTS, ModelError, load_pretrained, read_config
from ftnb.saving import save_pretrained
from ftnb.transforms import ImageTransform, transform_from_processor
from ftnb.vision.torchvision_models import (
    PREFIX,
    WEIGHTS,
    is_saved_folder,
    load_backbone,
    make_model,
    output_layer,
    parse_name,
    read_weights,
    replace_output,
    save_folder,
)


@dataclass(frozen=True)
class VisionModel:
    """An image model and what belongs to it.

    Attributes:
        model: in eval mode, in float32.
        transform: from a picture to its input.
        labels: the classes, in the order of its outputs.
        processor: transformers' image processor, saved with the model; None for a torchvision model.
        architecture: torchvision's name; None for a transformers model.
        new_parameters: names of the parameters that start from random numbers.
        notices: what a reader of the result should know.
    """

    model: nn.Module
    transform: ImageTransform
    labels: list[str]
    processor: Any = None
    architecture: str | None = None
    new_parameters: frozenset[str] = frozenset()
    notices: list[str] = field(default_factory=list)


def load_image_classifier(
    name: str, labels: Sequence[str], *, scratch: bool = False, seed: int = 0, image_size: int | None = None
) -> VisionModel:
    """Load a model with a head for the labels.

    Args:
        name: "builtin:resnet-glyphs", "builtin:vit-glyphs", "torchvision:NAME" (see `ftnb.vision.torchvision_models`),
            a folder (transformers' layout, or one that `save_vision_model` wrote) or a Hub id.
        labels: the classes; their order is that of the outputs unless the checkpoint has the same classes already.
        scratch: random weights in place of the pretrained ones.
        seed: of the new parameters' random numbers.
        image_size: side of the input in pixels; None is what the checkpoint was made for.

    Raises:
        ModelError: if the model is not there, damaged, or does not fit the task or the image size.
    """
    if name.startswith(PREFIX):
        return _from_torchvision(name, labels, scratch, seed, image_size)
    folder = Path(name).expanduser()
    if is_saved_folder(folder):
        return _from_saved(folder, labels, scratch, seed, image_size)
    found = load_pretrained(name, "image-classification", labels, scratch=scratch, seed=seed)
    transform = transform_from_processor(found.processor, image_size)
    own: Any = found.model.config
    fixed = getattr(own, "image_size", None)
    side = fixed[0] if isinstance(fixed, list | tuple) else fixed
    if image_size is not None and side not in (None, image_size) and hasattr(own, "patch_size"):
        raise ModelError(f"{name!r} takes pictures of {side} × {side} pixels only; leave image_size out.")
    if image_size is not None:
        set_processor_size(found.processor, transform)
    names = {int(i): label for i, label in own.id2label.items()}
    return VisionModel(
        model=found.model,
        transform=transform,
        labels=[names[i] for i in range(len(names))],
        processor=found.processor,
        new_parameters=found.new_parameters,
        notices=found.notices,
    )


def set_processor_size(processor: Any, transform: ImageTransform) -> None:
    """Make a transformers image processor resize as a transform does, so that whoever loads it does the same."""
    size = {"height": transform.height, "width": transform.width}
    if transform.resize is None:
        processor.size, processor.do_center_crop = size, False
    elif getattr(processor, "crop_pct", None):  # ConvNeXt's: the size after the crop
        processor.size = {"shortest_edge": transform.height}
    else:
        processor.size, processor.crop_size = {"shortest_edge": transform.resize}, size


def _from_torchvision(
    name: str, labels: Sequence[str], scratch: bool, seed: int, image_size: int | None
) -> VisionModel:
    architecture, weights = parse_name(name)
    if models_module(architecture):
        raise ModelError(f"torchvision's {architecture!r} is no image classifier; name one such as 'resnet18'.")
    state, record = ({}, None) if scratch else read_weights(architecture, weights)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = make_model(architecture)
        head = replace_output(model, output_layer(model, 1000), len(labels))
    if scratch:
        new, notices = frozenset(n for n, _ in model.named_parameters()), [NO_WEIGHTS]
    else:
        load_backbone(model, state, head, weights)
        new, notices = head, []
    transform = _torchvision_transform(record, image_size)
    return VisionModel(model.eval(), transform, list(labels), None, architecture, new, notices)


def models_module(architecture: str) -> str:
    """The part of torchvision.models that an architecture is in: "", "detection", "segmentation", "video" …."""
    from torchvision import models

    module = models.get_model_builder(architecture).__module__.removeprefix("torchvision.models.")
    return module if "." in module else ""


def _torchvision_transform(record: Any, image_size: int | None) -> ImageTransform:
    """What torchvision's record of the weights says; for a file, what nearly all of its ImageNet models have."""
    preset = record.transforms() if record is not None else None
    crop = preset.crop_size[0] if preset is not None else 224
    resize = preset.resize_size[0] if preset is not None else 256
    transform = ImageTransform(crop, crop, resize)
    if preset is not None:
        how = str(preset.interpolation.value)
        transform = replace(transform, mean=tuple(preset.mean), std=tuple(preset.std), resample=how)
    if image_size is not None:
        scaled = round(image_size * resize / crop)
        transform = replace(transform, height=image_size, width=image_size, resize=scaled)
    return transform


def _from_saved(folder: Path, labels: Sequence[str], scratch: bool, seed: int, image_size: int | None) -> VisionModel:
    config = read_config(folder)
    if config.get("task") != "image-classification":
        raise ModelError(f"{folder} holds a model for {config.get('task')}, not for image-classification.")
    names, architecture = [config["id2label"][str(i)] for i in range(len(config["id2label"]))], config["architecture"]
    same = set(names) == set(labels)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = make_model(architecture)
        layer = output_layer(model, 1000)
        head = replace_output(model, layer, len(names))
        if not scratch:
            try:
                load_model(model, str(folder / WEIGHTS))
            except (OSError, RuntimeError) as error:
                raise ModelError(f"{folder / WEIGHTS} cannot be loaded: {str(error)[:300]}") from None
        if not same:
            head = replace_output(model, layer, len(labels))
    settings = {**config["transform"], **({"height": image_size, "width": image_size} if image_size else {})}
    tuples: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    notices = [] if same else ["the checkpoint's head was made for other labels; the head starts new."]
    new = frozenset(n for n, _ in model.named_parameters()) if scratch else frozenset() if same else head
    order = names if same else list(labels)
    return VisionModel(model.eval(), ImageTransform(**tuples), order, None, architecture, new, notices)


def save_vision_model(vision: VisionModel, folder: str | Path, task: str = "image-classification") -> Path:
    """Save a model as a folder: transformers' layout for its models, else what `load_image_classifier` reads.

    Returns:
        The folder.
    """
    folder = Path(folder)
    if vision.processor is not None:
        save_pretrained(folder, vision.model, vision.processor)
    else:
        config = {
            "task": task,
            "architecture": vision.architecture,
            "id2label": dict(enumerate(vision.labels)),
            "transform": replace(vision.transform, augment="none").to_dict(),
        }
        save_folder(folder, vision.model, config)
    return folder


def loading_code(vision: VisionModel, folder: str | Path) -> str:
    """The lines of Python that load a saved model without this package."""
    if vision.processor is not None:
        return (
            "from transformers import pipeline\n\n"
            f'classify = pipeline("image-classification", {str(folder)!r})\nclassify("picture.jpg")'
        )
    t = vision.transform
    resize = (
        f"v2.Resize({[t.height, t.width]})" if t.resize is None else f"v2.Resize({t.resize}), v2.CenterCrop({t.height})"
    )
    module = output_layer(vision.model, len(vision.labels))
    layer: Any = vision.model.get_submodule(module)
    sizes = f"{layer.weight.shape[1]}, {len(vision.labels)}"
    new = f"nn.Linear({sizes})" if isinstance(layer, nn.Linear) else f"nn.Conv2d({sizes}, 1)"
    return f"""import torch
from PIL import Image
from safetensors.torch import load_model
from torch import nn
from torchvision import models
from torchvision.transforms import v2

model = models.get_model("{vision.architecture}")
model.set_submodule("{module}", {new})
load_model(model, {str(Path(folder) / WEIGHTS)!r})
prepare = v2.Compose([
    v2.ToImage(), {resize}, v2.ToDtype(torch.float32, scale=True),
    v2.Normalize({list(t.mean)}, {list(t.std)}),
])
labels = {vision.labels!r}
picture = Image.open("picture.jpg").convert("RGB")
scores = model.eval()(prepare(picture)[None]).softmax(-1)[0]
labels[scores.argmax()]"""
