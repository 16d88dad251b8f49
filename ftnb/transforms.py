# Exported from nbs/32_images.py: edit the lesson, then run `make export`.
"""A picture becomes a tensor the way the model's makers did it, and what is random about it is said."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from ftnb.tables import DataError

__all__ = [
    "AUGMENTATIONS",
    "ImageTransform",
    "transform_from_processor",
]


AUGMENTATIONS = ("none", "shift", "flip", "strong")


@dataclass(frozen=True)
class ImageTransform:
    """From a picture to the tensor that a model takes.

    Args:
        height: of the result, in pixels.
        width: of the result.
        resize: for a crop, the pixels of the shorter side before it; None squashes the picture to the size.
        mean: what to subtract from each channel, of values between 0 and 1.
        std: what to divide by then.
        resample: "bilinear", "bicubic", "lanczos" or "nearest".
        augment: what changes at random in training: one of `AUGMENTATIONS`.
        ignore: the class of mask pixels that a random change brings in from outside the picture.

    Raises:
        DataError: if a number or a name is impossible.
    """

    height: int
    width: int
    resize: int | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resample: str = "bilinear"
    augment: str = "none"
    ignore: int = 255

    def __post_init__(self) -> None:
        if self.augment not in AUGMENTATIONS:
            known = ", ".join(map(repr, AUGMENTATIONS))
            raise DataError(f"augment must be one of {known}; got {self.augment!r}.")
        if not (8 <= self.height <= 4096 and 8 <= self.width <= 4096):
            raise DataError(f"an image size lies between 8 and 4096 pixels; got {self.height} × {self.width}.")
        if not (len(self.mean) == len(self.std) == 3 and min(self.std) > 0):
            raise DataError(f"mean and std need three numbers each, std above 0; got {self.mean} and {self.std}.")

    def __call__(
        self,
        image: Image.Image,
        *,
        boxes: Sequence[Sequence[float]] | None = None,
        mask: Image.Image | None = None,
        train: bool = False,
    ) -> dict[str, Tensor]:
        """Resize, change at random if `train`, and normalise.

        Args:
            image: of mode "RGB".
            boxes: [x1, y1, x2, y2] in pixels of the image; they move along.
            mask: of mode "L", a class in each pixel; it moves along and is never blended.
            train: whether to augment, with random numbers from torch's global generator.

        Returns:
            "pixel_values", shape (3, height, width); with boxes "boxes", shape (left, 4), and "kept", the places of
            the boxes that are still in the picture; with a mask "mask", whole numbers of shape (height, width).
        """
        items: dict[str, Any] = {"image": tv_tensors.Image(image)}
        if boxes is not None:
            corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            size = (image.height, image.width)
            items["boxes"] = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size)
            items["kept"] = torch.arange(len(corners))
        if mask is not None:
            items["mask"] = tv_tensors.Mask(torch.from_numpy(np.array(mask)).long()[None])
        items = _pipeline(self, train)(items)
        out = {"pixel_values": items["image"].as_subclass(Tensor)}
        if boxes is not None:
            out |= {"boxes": items["boxes"].as_subclass(Tensor), "kept": items["kept"]}
        if mask is not None:
            out["mask"] = items["mask"].as_subclass(Tensor)[0]
        return out

    def shown(self, pixel_values: Tensor) -> np.ndarray:
        """A tensor of shape (3, height, width) as a picture again: uint8, shape (height, width, 3)."""
        mean, std = (torch.tensor(of)[:, None, None] for of in (self.mean, self.std))
        values = pixel_values.float().cpu() * std + mean
        return (values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()

    def to_dict(self) -> dict[str, Any]:
        """As plain data; `ImageTransform(**data)` makes it again."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@cache
def _pipeline(transform: ImageTransform, train: bool) -> v2.Compose:
    t, size = transform, [transform.height, transform.width]
    how = InterpolationMode(t.resample)
    augment = t.augment if train else "none"
    steps: list[nn.Module] = []
    if augment == "strong":
        steps.append(v2.RandomResizedCrop(size, scale=(0.3, 1.0), interpolation=how, antialias=True))
    elif t.resize is None:
        steps.append(v2.Resize(size, interpolation=how, antialias=True))
    else:
        steps += [v2.Resize(t.resize, interpolation=how, antialias=True), v2.CenterCrop(size)]
    if augment in ("shift", "flip"):
        moves = {"degrees": 8, "translate": (0.08, 0.08), "scale": (0.9, 1.1)}
        outside = {tv_tensors.Image: 128, tv_tensors.Mask: t.ignore}
        steps.append(v2.RandomAffine(**moves, interpolation=InterpolationMode.BILINEAR, fill=outside))
    if augment in ("flip", "strong"):
        steps.append(v2.RandomHorizontalFlip())
    if augment != "none":
        steps.append(v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2 if augment == "strong" else 0.0))
    to_numbers = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    return v2.Compose([*steps, _InsideOnly(), to_numbers, v2.Normalize(t.mean, t.std)])


class _InsideOnly(nn.Module):
    """Cut boxes at the picture's edge and drop those of which less than two pixels are left, with their "kept"."""

    def forward(self, items: dict[str, Any]) -> dict[str, Any]:
        if "boxes" not in items:
            return items
        boxes = v2.functional.clamp_bounding_boxes(items["boxes"])
        sides = boxes.as_subclass(Tensor)[:, 2:] - boxes.as_subclass(Tensor)[:, :2]
        left = (sides >= 2).all(1)
        return {**items, "boxes": tv_tensors.wrap(boxes[left], like=boxes), "kept": items["kept"][left]}


_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, in preprocessor_config.json


def transform_from_processor(processor: Any, image_size: int | None = None) -> ImageTransform:
    """What a transformers image processor does, as a transform.

    Args:
        processor: from `AutoImageProcessor.from_pretrained`.
        image_size: another size than the processor's own, in pixels, for both sides.
    """
    size, crop = dict(processor.size or {}), dict(getattr(processor, "crop_size", None) or {})
    shortest = size.get("shortest_edge")
    resize: int | None = None
    if "height" in size:
        height, width = int(size["height"]), int(size["width"])
    else:
        side = int(shortest or 224)
        height, width, resize = side, side, side
        if getattr(processor, "do_center_crop", False) and crop:
            height, width = int(crop["height"]), int(crop["width"])
        elif (share := getattr(processor, "crop_pct", None)) and side < 384:  # ConvNeXt's processor
            resize = int(side / share)
    if image_size is not None:
        resize = None if resize is None else round(image_size * resize / min(height, width))
        height = width = image_size
    normalise = getattr(processor, "do_normalize", True)
    mean, std = (processor.image_mean, processor.image_std) if normalise else ((0.0,) * 3, (1.0,) * 3)
    resample = _RESAMPLE.get(int(getattr(processor, "resample", 2) or 2), "bilinear")
    return ImageTransform(height, width, resize, tuple(mean), tuple(std), resample)
