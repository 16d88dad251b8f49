# %% [markdown]
# # Images
#
# > A picture becomes a tensor the way the model's makers did it, and what is random about it is said.
#
# At the end you can say what happens to a picture before a model sees it, choose an augmentation that does not change the label, and see that boxes and masks move along. Runs in about 12 s on a CPU.

# %%
#| default_exp transforms

# %%
#| export
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

# %%
import matplotlib.pyplot as plt

from ftnb.builtin.digits import digit_images
from ftnb.builtin.scenes import digit_scenes

# %% [markdown]
# ## What a model expects
#
# A picture on disk has any size, and numbers from 0 to 255. A model was pretrained on one size and on numbers scaled in one way: each channel minus a mean, divided by a deviation,
#
# $$x = \frac{u / 255 - \mu_c}{\sigma_c}.$$
#
# Both belong to the checkpoint like its weights do. Get them wrong and nothing crashes: the accuracy is lower, and nobody knows why. Two ways lead to the size. *Squash* ignores the picture's proportions; *crop* makes the shorter side fit and cuts the rest off. Digits and documents want the first, photographs were mostly pretrained with the second.

# %%
#| export
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

# %% [markdown]
# The work itself is done by torchvision's second generation of transforms. They know pictures, boxes and masks apart: a picture is blended when it is resized, a mask keeps whole classes, a box moves its corners. What leaves the picture is dropped, and what comes into it from outside is grey in the picture and *ignored* in the mask.

# %%
#| export
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

# %% [markdown]
# A scene of handwritten digits, squashed to half its size. The tensor has the channel first, and about as many numbers below zero as above:

# %%
scene = digit_scenes("train", 1, seed=4)[0]
half = ImageTransform(32, 32)
out = half(scene["image"], boxes=scene["boxes"], mask=scene["mask"])
out["pixel_values"].shape, out["pixel_values"].mean().item(), scene["boxes"], out["boxes"].tolist()

# %%
torch.testing.assert_close(out["boxes"], torch.tensor(scene["boxes"]) / 2)
assert set(out["mask"].unique().tolist()) <= set(np.unique(scene["mask"]).tolist())

# %% [markdown]
# ## Reading it off a checkpoint
#
# A transformers checkpoint says what it expects in `preprocessor_config.json`. We read the numbers and do the rest ourselves, since the library's processor does not augment and knows no boxes. Nobody should have to believe that the two agree:

# %%
#| export
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

# %%
from transformers import ViTImageProcessor
from transformers.models.convnext import ConvNextImageProcessor

rng = np.random.default_rng(0)
photo = Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).resize((300, 225), Image.Resampling.BICUBIC)
processors = [ViTImageProcessor(size={"height": 64, "width": 64}), ConvNextImageProcessor(size={"shortest_edge": 96})]
differences = []
for processor in processors:
    theirs = processor(photo, return_tensors="pt")["pixel_values"][0]
    ours = transform_from_processor(processor)(photo)["pixel_values"]
    differences.append((ours - theirs).abs().max().item())
differences

# %%
assert max(differences) < 1e-3

# %% [markdown]
# ## Changing what does not matter
#
# *Augmentation* shows the model a different version of each picture in each epoch: moved, mirrored, cropped, darker. It tells the model that the label does not depend on these. So it is a claim about the task. A mirrored cat is a cat. A mirrored *b* is a *d*.
#
# | augment | what may change |
# |---|---|
# | `none` | nothing; then a frozen layer's output can be computed once and kept (a later lesson) |
# | `shift` | up to 8 degrees, 8 % of the side, 10 % of the size; brightness and contrast |
# | `flip` | the same, and left and right |
# | `strong` | any part with at least 30 % of the area; left and right; colours |

# %%
def versions(transform: ImageTransform, n: int = 3) -> list[dict]:
    torch.manual_seed(0)
    return [transform(scene["image"], boxes=scene["boxes"], mask=scene["mask"], train=True) for _ in range(n)]

fig, axes = plt.subplots(2, 9, figsize=(9.5, 2.5), dpi=80, layout="constrained")
for block, augment in enumerate(AUGMENTATIONS[1:]):
    transform = ImageTransform(64, 64, augment=augment)
    for column, out in enumerate(versions(transform), start=3 * block):
        axes[0, column].imshow(transform.shown(out["pixel_values"]))
        for x1, y1, x2, y2 in out["boxes"].tolist():
            axes[0, column].add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="tab:red", linewidth=1.2))
        axes[1, column].imshow(np.ma.masked_equal(out["mask"], 255), cmap="tab20", vmin=0, vmax=19, interpolation="nearest")
        axes[1, column].set_facecolor("0.7")
    axes[0, 3 * block + 1].set_title(augment, fontsize=10)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# The boxes and masks moved along (grey is what came in from outside: no class). We check it where it can be computed: mirroring twice is the identity, and a box holds its digit's pixels before and after.

# %%
def ink_in_boxes(out: dict) -> float:
    inside = torch.zeros_like(out["mask"], dtype=torch.bool)
    for x1, y1, x2, y2 in out["boxes"].round().int().tolist():
        inside[y1:y2, x1:x2] = True
    ink = (out["mask"] > 0) & (out["mask"] < 255)
    return (ink & inside).sum().item() / max(1, ink.sum().item())

many = [versions(ImageTransform(64, 64, augment=augment), n=20) for augment in AUGMENTATIONS]
shares = [[ink_in_boxes(out) for out in of] for of in many]
{augment: min(of) for augment, of in zip(AUGMENTATIONS, shares, strict=True)}

# %%
assert min(map(min, shares)) > 0.9

# %% [markdown]
# ## The experiment: an augmentation that lies
#
# **Claim.** An augmentation helps when its claim is true and hurts when it is false. A small network learns ten handwritten digits of each class. *Shift* says that a digit stays itself when it moves a little, which is true. *Flip* says that a mirrored digit is the same digit, which is false for most of them. The claim would be refuted if *shift* were not better than no augmentation, or *flip* were not worse than *shift*, in the mean of five seeds.

# %%
def accuracy(augment: str, seed: int, num_steps: int = 150) -> float:
    transform = ImageTransform(16, 16, mean=(0.5,) * 3, std=(0.5,) * 3, augment=augment)
    train, valid = digit_images("train", 10, seed=seed), digit_images("valid")
    as_tensor = lambda rows, train: torch.stack([transform(r["image"].convert("RGB"), train=train)["pixel_values"] for r in rows])
    labels = torch.tensor([int(r["label"]) for r in train])
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 16, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    pool = torch.stack([as_tensor(train, True) for _ in range(4)])  # four versions of each digit, drawn in turn
    for step in range(num_steps):
        chosen = torch.randint(len(train), (32,))
        nn.functional.cross_entropy(model(pool[step % 4, chosen]), labels[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        right = model(as_tensor(valid, False)).argmax(1) == torch.tensor([int(r["label"]) for r in valid])
    return right.float().mean().item()

seeds = range(5)
found = {augment: [accuracy(augment, seed) for seed in seeds] for augment in ("none", "shift", "flip")}
{augment: f"{np.mean(of):.3f}" for augment, of in found.items()}

# %%
fig, ax = plt.subplots(figsize=(5, 2.6), dpi=80, layout="constrained")
for x, of in enumerate(found.values()):
    ax.plot([x] * len(of), of, "o", color="tab:blue", alpha=0.5)
    ax.plot([x - 0.2, x + 0.2], [np.mean(of)] * 2, color="tab:blue")
ax.set(xticks=range(3), xticklabels=found, ylabel="accuracy on 372 digits", title="100 labelled digits, 5 seeds (line: mean)", xlim=(-0.5, 2.5))
plt.show()

# %%
mean = {augment: np.mean(of) for augment, of in found.items()}
assert mean["shift"] > mean["none"] and mean["shift"] > mean["flip"]

# %% [markdown]
# ## The story: the photograph that lay on its side
#
# A telephone held upright stores a picture lying on its side, with a note in its EXIF data: turn me. Viewers do. Libraries for training mostly do not (PIL's `Image.open` leaves the note unread), so a model is trained on people standing up and asked about people lying down; Keras, OpenCV and torchvision each have long threads of reports. And boxes drawn in a viewer belong to the turned picture. Here is the same file, read both ways:

# %%
import io

from ftnb.vision.images import ImageNotes, read_image

buffer = io.BytesIO()
exif = Image.Exif()
exif[0x0112] = 6  # "turn me by 90 degrees"
digit_images("train")[0]["image"].resize((64, 96)).save(buffer, "JPEG", exif=exif)
notes = ImageNotes()
plain, turned = Image.open(io.BytesIO(buffer.getvalue())), read_image(buffer.getvalue(), notes=notes)
plain.size, turned.size, notes.messages(1)

# %%
assert plain.size == (64, 96) and turned.size == (96, 64)

# %% [markdown]
# `read_image` turns it. It also puts transparent parts on white, keeps the upper bits of 16-bit scans, and refuses what is damaged; every kind is counted and told before the training starts.
#
# ## Exercises
#
# **1 (easy).** Write `channel_statistics`: the mean and the deviation of each channel, of values between 0 and 1, over a list of pictures of any sizes. It is what you need for a checkpoint that you pretrain yourself.

# %% tags=["exercise"]
def channel_statistics(images: list[Image.Image]) -> tuple[list[float], list[float]]:
    ...  # your code here

# %% tags=["solution"]
def channel_statistics(images: list[Image.Image]) -> tuple[list[float], list[float]]:
    pixels = np.concatenate([np.asarray(image.convert("RGB")).reshape(-1, 3) / 255 for image in images])
    return pixels.mean(0).tolist(), pixels.std(0).tolist()

# %%
grey = Image.new("RGB", (10, 20), (51, 102, 204))
means, deviations = channel_statistics([grey, grey.resize((3, 3))])
assert np.allclose(means, [0.2, 0.4, 0.8]) and np.allclose(deviations, 0)

# %% [markdown]
# **2 (medium).** Write `label_safe`: whether mirroring a picture from left to right keeps its class, judged by a model: the share of pictures whose prediction stays the same. Use it to decide on `flip` before you train with it.

# %% tags=["exercise"]
def label_safe(predict, images: list[Image.Image]) -> float:
    ...  # your code here

# %% tags=["solution"]
def label_safe(predict, images: list[Image.Image]) -> float:
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    return float(np.mean([a == b for a, b in zip(predict(images), predict(mirrored), strict=True)]))

# %%
left_bright = lambda images: [np.asarray(i)[:, : i.width // 2].sum() > np.asarray(i)[:, i.width // 2 :].sum() for i in images]
halves = [Image.fromarray(np.array([[255, 0], [255, 0]], dtype=np.uint8)), Image.fromarray(np.full((2, 2), 9, dtype=np.uint8))]
assert label_safe(left_bright, halves) == 0.5

# %% [markdown]
# ## Summary
# - Size, mean and deviation belong to the checkpoint. Squash or crop is a choice.
# - An augmentation is a claim about the task; a false one costs accuracy.
# - Boxes and masks move along; a mask is never blended, and what comes from outside is ignored.
# - Photographs from telephones lie on their side until somebody reads the EXIF note.
#
# **What next:** lesson 33 fine-tunes image classifiers with it. **Sources:** torchvision's documentation of transforms v2; Shorten and Khoshgoftaar (2019), "A survey on image data augmentation for deep learning"; the EXIF 2.3 specification, tag 0x0112.
