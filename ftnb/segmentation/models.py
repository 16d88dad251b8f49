"""Models that give every pixel a class: transformers' own, torchvision's, or a backbone with a new decoder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.segmentation import LRASPP
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING

from ftnb.pretrained import NO_WEIGHTS, ModelError, find_model, loading, read_checkpoint
from ftnb.segmentation.torchvision_models import NEW_HEAD, from_saved, from_torchvision, resized
from ftnb.transforms import ImageTransform, transform_from_processor
from ftnb.vision.models import VisionModel
from ftnb.vision.torchvision_models import PREFIX, is_saved_folder


def load_segmentation_model(
    name: str,
    labels: Sequence[str],
    *,
    scratch: bool = False,
    seed: int = 0,
    image_size: int | None = None,
    picture_size: int = 512,
) -> VisionModel:
    """Load a model that gives every pixel one of the labels.

    Args:
        name: "builtin:resnet-glyphs", "torchvision:NAME" (see `ftnb.vision.torchvision_models`), a folder
            (transformers' layout, or one that a task saved) or a Hub id. A transformers backbone without a decoder gets
            UPerNet's, a torchvision classifier that of LR-ASPP; both start from random numbers.
        labels: the classes; their order is that of the outputs unless the checkpoint has the same classes already.
        scratch: random weights in place of the pretrained ones.
        seed: of the new parameters' random numbers.
        image_size: side of the input in pixels; pictures are squashed to a square. None is what the checkpoint was
            made for or, for a backbone that was made for classification, `picture_size`.
        picture_size: a good side for the pictures at hand.

    Raises:
        ModelError: if the model is not there, damaged, or cannot do this task.
    """
    if name.startswith(PREFIX):
        return from_torchvision(name, labels, scratch, seed, image_size, picture_size)
    folder = Path(name).expanduser()
    if is_saved_folder(folder):
        return from_saved(folder, labels, scratch, seed, image_size)
    place, source = find_model(name)
    with loading(name, source, seed):
        config: Any = AutoConfig.from_pretrained(place)
        processor: Any = AutoImageProcessor.from_pretrained(place)
    if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        with loading(name, source, seed):
            model, new, notices = _with_own_decoder(place, config, labels, scratch)
        transform = transform_from_processor(processor, image_size)
    elif type(config) in MODEL_FOR_BACKBONE_MAPPING and hasattr(config, "stage_names"):
        transform = transform_from_processor(processor, image_size or picture_size)
        with loading(name, source, seed):
            model, new, notices = _with_new_decoder(place, labels, scratch, transform.height)
    else:
        raise ModelError(
            f"{name!r} is a {config.model_type} model, which transformers can neither use for segmentation nor as a "
            "backbone. Choose a SegFormer, a ResNet or another convolutional network, or 'torchvision:…'."
        )
    transform = replace(transform, resize=None, augment="none")  # a crop would leave the picture's edge without a mask
    names = {int(i): label for i, label in model.config.id2label.items()}
    order = [names[i] for i in range(len(names))]
    return VisionModel(model.eval(), transform, order, _processor(transform), None, new, notices)


def _label_settings(labels: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def _with_own_decoder(
    place: str, config: Any, labels: Sequence[str], scratch: bool
) -> tuple[Any, frozenset[str], list[str]]:
    """A model that transformers itself makes for the task; only its output layer depends on the labels."""
    own = {int(i): label for i, label in (config.id2label or {}).items()}
    same = set(own.values()) == set(labels) and len(own) == len(labels)
    config = _with_labels(place, None if same else labels)
    if scratch:
        model: Any = AutoModelForSemanticSegmentation.from_config(config)
        return model, frozenset(name for name, _ in model.named_parameters()), [NO_WEIGHTS]
    model, new, _ = read_checkpoint(place, AutoModelForSemanticSegmentation, config)
    parameters = {name for name, _ in model.named_parameters()}
    if len(new) > len(parameters) / 2:
        example = sorted(new)[0]
        raise ModelError(f"{len(new)} of {len(parameters)} tensors are not in the checkpoint, for example {example}.")
    if same:
        return model, frozenset(new), []
    with torch.device("meta"):
        wider: Any = AutoModelForSemanticSegmentation.from_config(_with_labels(place, [*labels, "one more"]))
    outputs = resized(model, wider)
    _start_anew(model, outputs)
    return model, frozenset(new | outputs), [NEW_HEAD]


def _with_labels(place: str, labels: Sequence[str] | None) -> Any:
    """A checkpoint's configuration for other labels, without the auxiliary head that only helps a training on many."""
    config: Any = AutoConfig.from_pretrained(place, **({} if labels is None else _label_settings(labels)))
    if getattr(config, "use_auxiliary_head", False):
        config.use_auxiliary_head = False
    return config


def _start_anew(model: nn.Module, parameters: frozenset[str]) -> None:
    for name in {name.rpartition(".")[0] for name in parameters}:
        layer: Any = model.get_submodule(name)
        layer.reset_parameters()


def _with_new_decoder(
    place: str, labels: Sequence[str], scratch: bool, side: int
) -> tuple[Any, frozenset[str], list[str]]:
    """A backbone with UPerNet's decoder (Xiao et al. 2018), as wide as fits the backbone."""
    stages = AutoConfig.from_pretrained(place).stage_names[1:]
    config = AutoConfig.from_pretrained(place, out_features=stages)
    # Not AutoBackbone.from_pretrained: it asks the Hub about names of local folders.
    backbone_class: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    missing: set[str] = set()
    if scratch:
        backbone = backbone_class(config)
    else:
        backbone, info = backbone_class.from_pretrained(
            place, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        missing = set(info["missing_keys"])
    backbone.config._name_or_path = ""  # where it lay is nobody's business in a saved model
    backbone.config.architectures = None
    smallest = _smallest_map(backbone, side)
    scales = [scale for scale in (1, 2, 3, 6) if scale <= smallest]
    width = min(512, max(32, backbone.channels[-1] // 4))
    decoder = UperNetConfig(
        backbone_config=backbone.config,
        hidden_size=width,
        pool_scales=scales,
        use_auxiliary_head=False,
        **_label_settings(labels),
    )
    model: Any = UperNetForSemanticSegmentation(decoder)
    for module in model.decode_head.modules():
        if isinstance(module, nn.Conv2d):  # torch's own start learns faster than normal numbers of deviation 0.02
            module.reset_parameters()
    model.backbone.load_state_dict(backbone.state_dict())
    names = {name for name, _ in model.named_parameters()}
    new = {name for name in names if not name.startswith("backbone.") or name.removeprefix("backbone.") in missing}
    return model, frozenset(names if scratch else new), [NO_WEIGHTS] if scratch else []


def start_from_shares(vision: VisionModel, shares: Sequence[float]) -> None:
    """Let a new output layer begin with the classes' shares of the pixels, so that it need not learn them first.

    Its bias becomes the logarithm of the shares, as that of rare objects in Lin et al. (2017), "Focal loss for dense
    object detection", section 4.1. A trained output layer stays as it is.

    Args:
        vision: its model is changed in place.
        shares: of each class in training, in the order of the outputs; a class without a pixel counts as very rare.
    """
    layers = _output_layers(vision)
    if not layers or not {f"{name}.bias" for name in layers} <= vision.new_parameters:
        return
    prior = torch.tensor(shares, dtype=torch.float32).clamp(min=1e-4).log()
    with torch.no_grad():
        for i, name in enumerate(layers):  # LR-ASPP adds up two outputs, so one of them starts at 0
            vision.model.get_parameter(f"{name}.bias").copy_(prior if i == 0 else torch.zeros_like(prior))


def _output_layers(vision: VisionModel) -> list[str]:
    """The layers with a bias whose outputs are the logits."""
    if isinstance(vision.model, LRASPP):
        return ["classifier.high_classifier", "classifier.low_classifier"]
    sized = [n for n, m in vision.model.named_modules() if getattr(m, "out_channels", None) == len(vision.labels)]
    return sized[-1:] if sized and getattr(vision.model.get_submodule(sized[-1]), "bias", None) is not None else []


def _smallest_map(backbone: nn.Module, side: int) -> int:
    with torch.no_grad():
        maps = backbone.eval()(torch.zeros(1, 3, side, side)).feature_maps
    return int(min(maps[-1].shape[2:]))


def _processor(transform: ImageTransform) -> SegformerImageProcessor:
    """What transformers' pipeline for segmentation needs: squash, normalise, and masks of the picture's size back."""
    return SegformerImageProcessor(
        size={"height": transform.height, "width": transform.width},
        image_mean=list(transform.mean),
        image_std=list(transform.std),
        do_reduce_labels=False,
    )
