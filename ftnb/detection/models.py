"""Detectors by name: torchvision's, a classifier's body with a pyramid, the DETR family; each with our classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModelForObjectDetection
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_BACKBONE_MAPPING,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
)

from ftnb.pretrained import (
    NO_WEIGHTS,
    ModelError,
    find_model,
    loading,
    read_checkpoint,
    read_config,
)
from ftnb.saving import save_pretrained
from ftnb.transforms import ImageTransform, transform_from_processor
from ftnb.vision.models import VisionModel, models_module
from ftnb.vision.pyramids import Stages, dense_detector, freeze_batch_norm, take_pictures_as_they_are
from ftnb.vision.torchvision_models import (
    PREFIX,
    WEIGHTS,
    is_saved_folder,
    load_backbone,
    make_model,
    output_layer,
    parse_name,
    read_weights,
    save_folder,
)

TASK = "object-detection"
DEFAULT_SIDE, SMALL_SIDE = 512, 64
MIN_SCORE = 0.05  # fainter detections are dropped by the model itself

NEW_CLASSES = "the checkpoint was made for other classes; what names them starts new."


@dataclass(frozen=True)
class Detector(VisionModel):
    """A detector and what belongs to it.

    Attributes:
        first_label: the model's number for the first class: 1 where 0 stands for the ground.
        plan: what it takes to build it again with random weights, as plain data; empty for the DETR family.
    """

    first_label: int = 0
    plan: Mapping[str, Any] = field(default_factory=dict)


def load_detector(
    name: str, labels: Sequence[str], *, scratch: bool = False, seed: int = 0, image_size: int | None = None
) -> Detector:
    """Load a detector for the labels.

    Args:
        name: "torchvision:fcos_resnet50_fpn" or another of torchvision's detectors; a classifier whose body becomes a
            backbone: "builtin:resnet-glyphs", "torchvision:resnet18", a folder or Hub id of a ResNet, ConvNeXt or
            another model that `AutoBackbone` knows; a model of the DETR family (DETR, YOLOS, RT-DETR …) as a folder or
            Hub id; or a folder that `save_detector` wrote.
        labels: the classes; their order is that of the outputs unless the checkpoint has the same classes already.
        scratch: random weights in place of the pretrained ones.
        seed: of the new parameters' random numbers.
        image_size: side of the input in pixels; pictures are squeezed to a square of it. None is what the model was
            made for, and 512 for a classifier's body (64 for one made for tiny pictures).

    Raises:
        ModelError: if the model is not there, damaged, or cannot be a detector.
    """
    if not labels:
        raise ModelError("a detector needs at least one class.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if name.startswith(PREFIX):
            return _from_torchvision(name, labels, scratch, image_size)
        if is_saved_folder(folder := Path(name).expanduser()):
            return _from_saved(folder, labels, scratch, image_size)
        place, source = find_model(name)
        with loading(name, source, seed):
            config = AutoConfig.from_pretrained(place)
            processor = AutoImageProcessor.from_pretrained(place)
            if config.model_type in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
                return _from_transformers(place, processor, labels, scratch, image_size)
            return _from_transformers_body(place, config, processor, labels, scratch, image_size)


# -- torchvision's layout ---------------------------------------------------------------------------------------------


def build(plan: Mapping[str, Any], num_labels: int, body: nn.Module | None = None) -> nn.Module:
    """Build a detector of torchvision's kind with random weights, in eval mode.

    Args:
        plan: "kind" ("torchvision": one of its detectors; "torchvision-body", "transformers-body": a classifier's
            body with a pyramid), "architecture" or "config", "frozen_norm" and "transform".
        num_labels: number of classes.
        body: a body already filled with weights.
    """
    side = plan["transform"]["height"]
    if plan["kind"] == "torchvision":
        model = make_model(plan["architecture"], num_classes=num_labels + _first_label(plan))
    else:
        model = dense_detector(body or _random_body(plan), side, num_labels)
    if plan["frozen_norm"]:
        freeze_batch_norm(model)
    take_pictures_as_they_are(model, side)
    parts: list[Any] = [model, getattr(model, "roi_heads", None)]
    for part in parts:
        if hasattr(part, "score_thresh"):
            part.score_thresh = min(part.score_thresh, MIN_SCORE)
    return model.eval()


def _random_body(plan: Mapping[str, Any]) -> nn.Module:
    if plan["kind"] == "torchvision-body":
        return Stages(make_model(plan["architecture"]))
    config = dict(plan["config"])
    body: nn.Module = AutoBackbone.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    return body


def _first_label(plan: Mapping[str, Any]) -> int:
    """Faster R-CNN and SSD keep the number 0 for the ground; FCOS and RetinaNet have no class for it."""
    return int(str(plan.get("architecture")).startswith(("fasterrcnn", "ssd")))


def _from_torchvision(name: str, labels: Sequence[str], scratch: bool, image_size: int | None) -> Detector:
    architecture, weights = parse_name(name)
    module = models_module(architecture)
    if architecture.startswith(("maskrcnn", "keypointrcnn")):
        raise ModelError(f"{architecture!r} also needs masks or key points; take 'fasterrcnn_resnet50_fpn' for boxes.")
    if module and not module.startswith("detection"):
        raise ModelError(f"torchvision's {architecture!r} is neither a detector nor an image classifier.")
    own = next((int(size) for size in ("300", "320") if module and size in architecture), DEFAULT_SIDE)
    side = image_size or own
    plan = {
        "kind": "torchvision" if module else "torchvision-body",
        "architecture": architecture,
        "frozen_norm": not scratch,
        "transform": ImageTransform(side, side).to_dict(),
    }
    if scratch:
        return _finished(build(plan, len(labels)), plan, labels)
    state, _ = read_weights(architecture, weights)
    if module:
        model = build(plan, len(labels))
        return _finished(model, plan, labels, _load_matching(model, state, f"{architecture}'s weights {weights}"))
    classifier = make_model(architecture)
    layer = output_layer(classifier, 1000)
    load_backbone(classifier, state, frozenset({f"{layer}.weight", f"{layer}.bias"}), weights)
    return _with_body(plan, labels, Stages(classifier))


def _from_transformers_body(
    place: str, config: Any, processor: Any, labels: Sequence[str], scratch: bool, image_size: int | None
) -> Detector:
    own = transform_from_processor(processor)
    side = image_size or (SMALL_SIDE if own.height <= SMALL_SIDE else DEFAULT_SIDE)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ModelError(
            f"a {config.model_type} is no detector, and transformers cannot take it as a backbone. Give a ResNet, a "
            "ConvNeXt, or a model of the DETR family."
        )
    stages = list(range(1, len(config.stage_names)))
    config = AutoConfig.from_pretrained(place, out_indices=stages)
    plan = {
        "kind": "transformers-body",
        "config": config.to_dict(),
        "frozen_norm": not scratch,
        "transform": replace(own, height=side, width=side, resize=None).to_dict(),
    }
    if scratch:  # its weights are neither needed nor fetched
        return _finished(build(plan, len(labels)), plan, labels)
    # AutoBackbone.from_pretrained asks the Hub about a local folder's path, so the class itself is asked
    body_class: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    body = body_class.from_pretrained(place, config=config, dtype=torch.float32, use_safetensors=True)
    return _with_body(plan, labels, body)


def _with_body(plan: Mapping[str, Any], labels: Sequence[str], body: nn.Module) -> Detector:
    model = build(plan, len(labels), body)
    loaded = {name for name, _ in model.named_parameters() if name.startswith("backbone.body.")}
    return _finished(model, plan, labels, loaded)


def _finished(
    model: nn.Module,
    plan: Mapping[str, Any],
    labels: Sequence[str],
    loaded: set[str] | None = None,
    notices: Sequence[str] = (),
) -> Detector:
    names = {name for name, _ in model.named_parameters()}
    return Detector(
        model=model.eval(),
        transform=_transform(plan),
        labels=list(labels),
        architecture=plan.get("architecture") or plan["config"]["model_type"],
        new_parameters=frozenset(names - (loaded or set())),
        notices=[NO_WEIGHTS] if loaded is None else list(notices),
        first_label=_first_label(plan),
        plan=plan,
    )


def _transform(plan: Mapping[str, Any]) -> ImageTransform:
    settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in plan["transform"].items()}
    return ImageTransform(**settings)


def _load_matching(
    model: nn.Module, state: Mapping[str, Tensor], source: str, skip: frozenset[str] = frozenset()
) -> set[str]:
    """Load the tensors whose name and shape fit; weights of a bare backbone go into it. Returns the loaded names."""
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in skip}
    prefixed = {f"backbone.body.{name}": tensor for name, tensor in state.items()}
    best = max((state, prefixed), key=lambda held: len(own.keys() & held.keys()))
    fitting = {name: best[name] for name in own if name in best and best[name].shape == own[name].shape}
    if len(fitting) < (len(own) - len(skip)) / 2:
        raise ModelError(f"{source} do not fit: only {len(fitting)} of {len(own)} tensors are in them.")
    model.load_state_dict(fitting, strict=False)
    return set(fitting)


def _from_saved(folder: Path, labels: Sequence[str], scratch: bool, image_size: int | None) -> Detector:
    config = read_config(folder)
    if config.get("task") != TASK or "plan" not in config:
        raise ModelError(f"{folder} holds a model for {config.get('task')}, not for {TASK}.")
    names, plan = [config["id2label"][str(i)] for i in range(len(config["id2label"]))], dict(config["plan"])
    if image_size:
        plan["transform"] = {**plan["transform"], "height": image_size, "width": image_size}
    same = set(names) == set(labels)
    order = names if same else list(labels)
    if scratch:
        plan["frozen_norm"] = False
        return _finished(build(plan, len(order)), plan, order)
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read: {error}.") from None
    model = build(plan, len(order))
    skip = frozenset() if same else _class_parameters(build(plan, len(order) + 1), model)
    loaded = _load_matching(model, state, str(folder / WEIGHTS), skip)
    return _finished(model, plan, order, loaded, [] if same else [NEW_CLASSES])


def _class_parameters(other: nn.Module, model: nn.Module) -> frozenset[str]:
    """The parameters whose shape depends on the number of classes: those that differ from a model with another one."""
    shapes = {name: p.shape for name, p in other.named_parameters()}
    return frozenset(name for name, p in model.named_parameters() if shapes.get(name) != p.shape)


# -- the DETR family --------------------------------------------------------------------------------------------------


def _from_transformers(
    place: str, processor: Any, labels: Sequence[str], scratch: bool, image_size: int | None
) -> Detector:
    own = AutoConfig.from_pretrained(place).id2label or {}
    same = set(own.values()) == set(labels)
    names = dict(own) if same else dict(enumerate(labels))
    config = AutoConfig.from_pretrained(
        place, num_labels=len(names), id2label=names, label2id={label: i for i, label in names.items()}
    )
    if scratch:
        model = AutoModelForObjectDetection.from_config(config)
        new = {name for name, _ in model.named_parameters()}
    else:
        model, new = _pretrained(place, config, same)
    found = transform_from_processor(processor)
    height, width = (image_size, image_size) if image_size else (found.height, found.width)
    fixed = getattr(config, "image_size", None)
    if fixed is not None and image_size is None:  # YOLOS: its positions are made for one size
        height, width = fixed if isinstance(fixed, list | tuple) else (fixed, fixed)
    processor.size = {"height": height, "width": width}  # saved with the model, so a pipeline does what we do
    return Detector(
        model=model.eval(),
        transform=replace(found, height=height, width=width, resize=None),
        labels=[names[i] for i in range(len(names))],
        processor=processor,
        new_parameters=frozenset(new),
        notices=[NO_WEIGHTS] if scratch else [] if same else [NEW_CLASSES],
    )


def _pretrained(place: str, config: Any, same: bool) -> tuple[nn.Module, set[str]]:
    """The checkpoint's weights, boxes' regression included; only what depends on the classes starts new."""
    model, new, _ = read_checkpoint(place, AutoModelForObjectDetection, config)
    names = {name for name, _ in model.named_parameters()}
    if len(new) > len(names) / 2:
        raise ModelError(f"{len(new)} of {len(names)} tensors are not in the checkpoint, for example {min(new)}.")
    if not same:
        more = AutoConfig.from_pretrained(place, num_labels=len(config.id2label) + 1)
        other = AutoModelForObjectDetection.from_config(more)
        fresh = dict(AutoModelForObjectDetection.from_config(config).named_parameters())
        of_classes = _class_parameters(other, model)
        with torch.no_grad():
            for name in of_classes:
                model.get_parameter(name).copy_(fresh[name])
        new |= of_classes
    return model, new


def save_detector(detector: Detector, folder: str | Path) -> Path:
    """Save a detector as a folder: transformers' layout for the DETR family, else one that `load_detector` reads.

    Returns:
        The folder.
    """
    folder = Path(folder)
    if detector.processor is not None:
        return save_pretrained(folder, detector.model, detector.processor)
    config = {
        "task": TASK,
        "architecture": detector.architecture,
        "id2label": dict(enumerate(detector.labels)),
        "plan": dict(detector.plan),
    }
    save_folder(folder, detector.model, config)
    return folder


def loading_code(detector: Detector, folder: str | Path) -> str:
    """The lines of Python that use a saved detector: without this package where its architecture is a library's own."""
    if detector.processor is not None:
        return (
            "from transformers import pipeline\n\n"
            f'find = pipeline("object-detection", {str(folder)!r})\nfind("picture.jpg")'
        )
    if detector.plan["kind"] != "torchvision":
        return (
            "from ftnb.tasks.object_detection import ObjectDetection\n\n"
            f'task = ObjectDetection.from_saved({str(folder)!r})\ntask.predict(["picture.jpg"])'
        )
    t, count = detector.transform, len(detector.labels) + detector.first_label
    return f"""import torch
from PIL import Image
from safetensors.torch import load_model
from torchvision import models
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

model = models.get_model("{detector.architecture}", weights=None, weights_backbone=None, num_classes={count})
model.transform = GeneralizedRCNNTransform({t.height}, {t.width}, [0.0] * 3, [1.0] * 3, _skip_resize=True)
load_model(model, {str(Path(folder) / WEIGHTS)!r}, strict=False)  # BatchNorm's counters are not in it
prepare = v2.Compose([
    v2.ToImage(), v2.Resize({[t.height, t.width]}), v2.ToDtype(torch.float32, scale=True),
    v2.Normalize({list(t.mean)}, {list(t.std)}),
])
labels = {[*["ground"] * detector.first_label, *detector.labels]!r}
picture = Image.open("picture.jpg").convert("RGB")
model.eval()([prepare(picture)])  # boxes in pixels of a {t.height} × {t.width} picture"""
