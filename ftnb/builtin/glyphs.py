"""Printed letters and digits without end: labelled images to pretrain vision models on.

The glyphs come from the fonts that matplotlib ships (DejaVu, STIX, Computer Modern). Each is turned, sheared, bent,
thickened or thinned, put on an uneven ground and often made coarse, because what a model should do with it later is
read handwritten digits of 8 × 8 pixels. Everything follows from a seed.
"""

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from ftnb.tables import DataError

SIZE = 32  # side of an image in pixels
_FONT_FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FONTS = tuple(  # those that the installed matplotlib has: 3.10.0 has no cmti10 yet
    name
    for name in """
    DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSans-BoldOblique DejaVuSerif DejaVuSerif-Bold DejaVuSerif-Italic
    DejaVuSerif-BoldItalic DejaVuSansMono DejaVuSansMono-Bold DejaVuSansMono-Oblique DejaVuSansMono-BoldOblique
    STIXGeneral STIXGeneralBol STIXGeneralItalic STIXGeneralBolIta cmr10 cmb10 cmss10 cmti10 cmtt10
    """.split()
    if (_FONT_FOLDER / f"{name}.ttf").is_file()
)
# A class is named by its first character. The cases of c, k, o … differ in size alone, and size is random here; a
# small l is an upright stroke like I.
_SAME_SHAPE = ("Cc", "Il", "Kk", "Oo", "Pp", "Ss", "Uu", "Vv", "Ww", "Xx", "Zz")
_MERGED = {pair[0]: pair for pair in _SAME_SHAPE}
LABELS = tuple(
    character
    for character in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    if not any(character == pair[1] for pair in _SAME_SHAPE)
)

_BITMAP = 48  # side of a bitmap in the bank
_STROKES = 5  # one step of erosion, as it is, one to three steps of dilation


@dataclass(frozen=True)
class Distortion:
    """How far glyphs are changed at random; 0 switches a change off.

    Attributes:
        rotation: largest turn, degrees.
        shear: largest sideways shift per height.
        stretch: widths and heights vary by up to this factor's logarithm, each for itself.
        bend: typical shift of a point by a smooth random field, as a share of the image's half side.
        shift: largest displacement of the middle, as a share of the image's half side.
        thickness: whether strokes are thinned and thickened.
        coarse: share of images that are reduced to 7-14 pixels and enlarged again.
        texture: largest strength of an uneven ground, as a share of the range of grey.
        noise: largest standard deviation of noise per pixel, as a share of the range of grey.
        dark_ink: share of images with dark ink on a light ground.
    """

    rotation: float = 20.0
    shear: float = 0.3
    stretch: float = 0.3
    bend: float = 0.1
    shift: float = 0.15
    thickness: bool = True
    coarse: float = 0.7
    texture: float = 0.3
    noise: float = 0.08
    dark_ink: float = 0.3

    def scaled(self, strength: float) -> "Distortion":
        """The same with every number multiplied by `strength` (0 to 1); strokes vary unless it is 0."""
        numbers = {f.name: strength * getattr(self, f.name) for f in fields(self) if f.name != "thickness"}
        return Distortion(**numbers, thickness=self.thickness and strength > 0)


def glyph_batch(
    num_images: int, seed: int, distortion: Distortion | None = None, fonts: tuple[str, ...] = FONTS
) -> tuple[Tensor, Tensor]:
    """Random glyphs, every class, character and font equally often in the long run.

    Args:
        num_images: how many images N.
        seed: of everything; the same seed gives the same images (with the same versions of the libraries).
        distortion: how far they are changed; by default `Distortion()`.
        fonts: names from `FONTS` to draw from.

    Returns:
        Images, uint8, shape (N, 32, 32), grey from 0 (black) to 255; indices into `LABELS`, int64, shape (N,).

    Raises:
        DataError: if the number is not positive, or no font or an unknown one is named.
    """
    if num_images < 1:
        raise DataError(f"num_images must be at least 1, got {num_images}.")
    if not fonts:
        raise DataError("fonts is empty; name at least one font of ftnb.builtin.glyphs.FONTS.")
    g = torch.Generator().manual_seed(seed)
    distortion = distortion or Distortion()
    bank = torch.cat([glyph_bank(font) for font in fonts]).reshape(len(fonts), -1, _STROKES, _BITMAP, _BITMAP)
    labels = torch.randint(len(LABELS), (num_images,), generator=g)
    font = torch.randint(len(fonts), (num_images,), generator=g)
    # A merged class has two bitmaps, one of each case; another class has the same one twice.
    character = 2 * labels + torch.randint(2, (num_images,), generator=g)
    stroke = torch.ones(num_images, dtype=torch.long)
    if distortion.thickness:
        stroke = torch.randint(_STROKES, (num_images,), generator=g)
    bitmaps = bank[font, character, stroke].unsqueeze(1).float() / 255  # (N, 1, 48, 48)
    ink = F.grid_sample(bitmaps, _sampling_grid(num_images, distortion, g), align_corners=False)
    ink = _coarsened(ink, distortion.coarse, g)
    return _on_ground(ink, distortion, g), labels


def _uniform(shape: tuple[int, ...], low: float, high: float, g: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=g)


def _sampling_grid(num_images: int, distortion: Distortion, g: torch.Generator) -> Tensor:
    """Where each pixel of an image looks into its bitmap, shape (N, 32, 32, 2), in units of half a bitmap."""
    n = (num_images,)
    angle = torch.deg2rad(_uniform(n, -distortion.rotation, distortion.rotation, g))
    shear = _uniform(n, -distortion.shear, distortion.shear, g)
    # A bitmap has a rim of 4 of its 48 pixels; 1.05 makes it a little wider.
    scale = 1.05 * torch.exp(_uniform((2, num_images), -distortion.stretch, distortion.stretch, g))
    cos, sin = angle.cos(), angle.sin()
    # Turn, then shear along x, then stretch; rows of the matrix that maps places in the image to the bitmap.
    row_x = torch.stack([cos + shear * sin, -sin + shear * cos], dim=1) * scale[0].unsqueeze(1)
    row_y = torch.stack([sin, cos], dim=1) * scale[1].unsqueeze(1)
    shift = _uniform((num_images, 2, 1), -distortion.shift, distortion.shift, g)
    theta = torch.cat([torch.stack([row_x, row_y], dim=1), shift], dim=2)  # (N, 2, 3)
    grid = F.affine_grid(theta, [num_images, 1, SIZE, SIZE], align_corners=False)
    if distortion.bend:
        bends = distortion.bend * torch.randn((num_images, 2, 4, 4), generator=g)
        bends = F.interpolate(bends, size=(SIZE, SIZE), mode="bicubic", align_corners=True)
        grid = grid + bends.permute(0, 2, 3, 1)
    return grid


def _coarsened(ink: Tensor, share: float, g: torch.Generator) -> Tensor:
    """Reduce some images to 7-14 pixels a side and enlarge them again; shape (N, 1, 32, 32) in and out."""
    side = torch.randint(7, 15, (len(ink),), generator=g)
    side[torch.rand(len(ink), generator=g) >= share] = SIZE
    result = ink.clone()
    for pixels in range(7, 15):
        chosen = side == pixels
        if chosen.any():
            small = F.adaptive_avg_pool2d(ink[chosen], pixels)
            result[chosen] = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return result


def _on_ground(ink: Tensor, distortion: Distortion, g: torch.Generator) -> Tensor:
    """Grey images with ink on a ground, both of random brightness, uint8, shape (N, 32, 32)."""
    n = (len(ink), 1, 1, 1)
    texture = torch.zeros_like(ink)
    if distortion.texture:
        for cells in (3, 8):
            field = _uniform((len(ink), 1, cells, cells), -0.5, 0.5, g) * _uniform(n, 0, distortion.texture, g)
            texture += F.interpolate(field, size=(SIZE, SIZE), mode="bilinear", align_corners=True)
        # Many images of the world have a plain ground, the handwritten digits among them.
        texture *= _uniform(n, 0, 1, g) > 0.4
        ground, contrast = _uniform(n, 0, 0.4, g), _uniform(n, 0.45, 1, g)
        plain = _uniform(n, 0, 1, g) < 0.4
        ground, contrast = torch.where(plain, 0.0, ground), torch.where(plain, 1.0, contrast)
    else:
        ground, contrast = torch.zeros(n), torch.ones(n)
    image = ground + texture + ink * contrast
    image = image + torch.randn(ink.shape, generator=g) * _uniform(n, 0, distortion.noise, g)
    image = torch.where(_uniform(n, 0, 1, g) < distortion.dark_ink, 1 - image, image)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).squeeze(1)


@cache
def glyph_bank(font: str) -> Tensor:
    """All bitmaps of one font, uint8, shape (2 · len(LABELS), 5, 48, 48): two characters a class, five strokes.

    Each glyph is cut out and scaled, its proportions kept, so that its larger side fills the bitmap.

    Raises:
        DataError: if the font is not in `FONTS`.
    """
    if font not in FONTS:
        raise DataError(f"font {font!r} is unknown; choose from {', '.join(FONTS)}.")
    large = ImageFont.truetype(str(_FONT_FOLDER / f"{font}.ttf"), size=2 * _BITMAP)
    characters = "".join((_MERGED.get(label, 2 * label)) for label in LABELS)
    return torch.stack([_strokes(_bitmap(large, character)) for character in characters])


def _bitmap(font: ImageFont.FreeTypeFont, character: str) -> Tensor:
    left, top, right, bottom = font.getbbox(character)
    width, height = int(right - left), int(bottom - top)
    glyph = Image.new("L", (width, height))
    ImageDraw.Draw(glyph).text((-left, -top), character, fill=255, font=font)
    room = _BITMAP - 8  # for thicker strokes
    scale = room / max(width, height)
    glyph = glyph.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS)
    bitmap = Image.new("L", (_BITMAP, _BITMAP))
    bitmap.paste(glyph, ((_BITMAP - glyph.width) // 2, (_BITMAP - glyph.height) // 2))
    return torch.from_numpy(np.array(bitmap))


def _strokes(bitmap: Tensor) -> Tensor:
    """A bitmap with thinner to thicker strokes, uint8, shape (5, 48, 48)."""
    ink = bitmap.float()[None, None]
    thin = -F.max_pool2d(-ink, 3, stride=1, padding=1)
    if thin.sum() < 0.3 * ink.sum():  # hairlines would vanish
        thin = ink
    variants = [thin, ink]
    for _ in range(3):
        variants.append(F.max_pool2d(variants[-1], 3, stride=1, padding=1))
    return torch.cat(variants).squeeze(1).to(torch.uint8)
