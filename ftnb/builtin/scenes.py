"""Small scenes of handwritten digits with boxes and masks, for detection and segmentation.

One to three real digits (see `ftnb.builtin.digits`) in random colours and sizes stand on a textured ground. A split's
scenes use digits of the same split only, so that no handwriting of the test is seen in training.
"""

from dataclasses import dataclass
from random import Random
from typing import Literal, TypedDict

import numpy as np
from PIL import Image

from ftnb.builtin.digits import LABELS, digit_array, digit_label, digit_rows
from ftnb.tables import DataError

Split = Literal["train", "valid", "test"]

SMALLEST, LARGEST = 14, 28  # side of a digit's image in pixels
MAX_HIDDEN = 0.1  # at most this share of a digit's ink lies under a later one


class Scene(TypedDict):
    """One example, see `digit_scenes`."""

    image: Image.Image
    boxes: list[list[int]]
    labels: list[str]
    mask: Image.Image


@dataclass(frozen=True)
class _Digit:
    """A digit where it stands: its class, its colour, and how much ink each pixel of the scene has of it."""

    digit: int
    colour: np.ndarray  # (3,), 0 to 1
    ink: np.ndarray  # (size, size), 0 to 1

    @property
    def covers(self) -> np.ndarray:
        """The pixels that count as its ink, bool, shape (size, size)."""
        return self.ink >= 0.5


def digit_scenes(split: Split, num_scenes: int, seed: int = 0, size: int = 64) -> list[Scene]:
    """Scenes of one to three handwritten digits.

    Scene i depends on split, seed, size and i alone: fewer scenes are the beginning of more.

    Args:
        split: "train", "valid" or "test"; the digits are of the same split of `digit_images`.
        num_scenes: how many scenes.
        seed: another seed gives other scenes.
        size: side of the image in pixels, at least 32.

    Returns:
        One dictionary a scene: "image" (mode "RGB", size × size); "boxes" ([x1, y1, x2, y2] in pixels, tightly around
        a digit's visible ink, x2 and y2 just outside of it); "labels" ("0" to "9", one a box); "mask" (mode "L": 0 is
        ground, 1 to 10 the digit there plus 1).

    Raises:
        DataError: if the split is unknown, `num_scenes` is negative or `size` is too small.
    """
    if num_scenes < 0:
        raise DataError(f"num_scenes must not be negative, got {num_scenes}.")
    if size < LARGEST + 4:
        raise DataError(f"size is {size}; a scene needs at least {LARGEST + 4} pixels to hold a digit of {LARGEST}.")
    rows = sorted(digit_rows(split))
    return [_scene(rows, Random(f"scenes-{split}-{seed}-{i}"), size) for i in range(num_scenes)]


def _scene(rows: list[int], rng: Random, size: int) -> Scene:
    # NumPy's generator gives the many numbers of a texture; it is seeded from ours, so one seed says it all.
    noise = np.random.default_rng(int(rng.random() * 2**32))
    ground = _ground(noise, size)
    digits: list[_Digit] = []
    for _ in range(1 + int(rng.random() * 3)):
        digit = _placed(rows, rng, noise, ground, digits)
        if digit is not None:
            digits.append(digit)
    image = ground
    owner = np.zeros((size, size), dtype=np.uint8)  # which digit is on top, counted from 1
    mask = np.zeros((size, size), dtype=np.uint8)
    for i, digit in enumerate(digits, start=1):
        image = image + digit.ink[:, :, None] * (digit.colour - image)
        owner[digit.covers] = i
        mask[digit.covers] = digit.digit + 1
    image = image + noise.normal(0, 0.02, image.shape)
    return {
        "image": Image.fromarray(np.round(image.clip(0, 1) * 255).astype(np.uint8)),
        "boxes": [_box(owner == i) for i in range(1, len(digits) + 1)],
        "labels": [LABELS[digit.digit] for digit in digits],
        "mask": Image.fromarray(mask),
    }


def _placed(
    rows: list[int], rng: Random, noise: np.random.Generator, ground: np.ndarray, before: list[_Digit]
) -> _Digit | None:
    """A digit at a place where it hides little of those before it; None if there is no room (the first always fits)."""
    size = len(ground)
    row = rows[int(rng.random() * len(rows))]
    side = SMALLEST + int(rng.random() * (LARGEST - SMALLEST + 1))
    glyph = np.asarray(Image.fromarray(digit_array(row)).resize((side, side), Image.Resampling.BICUBIC)) / 255
    # Blocks are half covered at a stroke's rim; steeper edges look like pen on paper rather than like fog.
    glyph = ((glyph - 0.5) * 1.8 + 0.5).clip(0, 1)
    for _ in range(30):
        x, y = (int(rng.random() * (size - side + 1)) for _ in range(2))
        ink = np.zeros((size, size))
        ink[y : y + side, x : x + side] = glyph
        covers = ink >= 0.5
        if all((covers & other.covers).sum() <= MAX_HIDDEN / 2 * other.covers.sum() for other in before):
            return _Digit(digit_label(row), _ink_colour(noise, ground[covers].mean(0)), ink)
    return None


def _box(visible: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(visible)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


def _ink_colour(noise: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """A random colour that differs clearly in brightness from the ground below, shape (3,), 0 to 1."""
    brightness = np.array([0.299, 0.587, 0.114])  # how bright red, green and blue look (ITU-R BT.601)
    while True:
        colour = noise.random(3)
        if abs((colour - ground) @ brightness) > 0.3:
            return colour


def _ground(noise: np.random.Generator, size: int) -> np.ndarray:
    """Stripes, clouds and a slope of brightness around one colour; shape (size, size, 3), 0 to 1."""
    y, x = np.mgrid[0:size, 0:size] / size
    direction, waves, phase = noise.random(3) * (2 * np.pi, 10, 2 * np.pi)
    along = x * np.cos(direction) + y * np.sin(direction)
    stripes = np.sin(2 * np.pi * (2 + waves) * along + phase)
    pattern = 0.08 * noise.random() * stripes + 0.15 * noise.random() * (along - along.mean())
    for cells in (4, 16):
        clouds = Image.fromarray(noise.random((cells, cells), dtype=np.float32) - 0.5)
        pattern = pattern + 0.2 * noise.random() * np.asarray(clouds.resize((size, size), Image.Resampling.BICUBIC))
    tint = 1 + 0.4 * (noise.random(3) - 0.5)  # the texture is not quite grey
    return np.clip(noise.random(3) + pattern[:, :, None] * tint, 0, 1)
