"""From a picture to a tensor: sizes, the library's own numbers, boxes and masks that move along."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, ViTImageProcessor
from transformers.models.convnext import ConvNextImageProcessor

from ftnb.builtin.scenes import digit_scenes
from ftnb.tables import DataError
from ftnb.transforms import AUGMENTATIONS, ImageTransform, transform_from_processor


def photo(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessor(size={"height": 64, "width": 48}),
        ViTImageProcessor(size={"height": 64, "width": 64}, do_normalize=False),
        ConvNextImageProcessor(size={"shortest_edge": 96}),
        BitImageProcessor(size={"shortest_edge": 80}, crop_size={"height": 64, "width": 64}),
    ],
    ids=["vit", "not normalised", "convnext", "bit"],
)
@pytest.mark.parametrize("size", [(120, 90), (90, 131), (33, 304)])
def test_a_checkpoint_sees_what_its_own_processor_makes(processor, size):
    image = photo(*size)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = transform_from_processor(processor)(image)["pixel_values"]
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)  # with an odd rest, crops are a pixel apart


def test_another_size_keeps_the_share_that_is_cropped():
    processor = BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224})
    transform = transform_from_processor(processor, image_size=112)
    assert (transform.height, transform.width, transform.resize) == (112, 112, 128)
    assert ImageTransform(**transform.to_dict()).to_dict() == transform.to_dict()


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_boxes_and_masks_move_with_the_picture(augment):
    transform = ImageTransform(96, 64, augment=augment)
    scenes = digit_scenes("train", 25, seed=3)
    torch.manual_seed(0)
    kept = total = 0
    for scene in scenes:
        out = transform(scene["image"], boxes=scene["boxes"], mask=scene["mask"], train=True)
        assert out["pixel_values"].shape == (3, 96, 64)
        assert out["pixel_values"].dtype == torch.float32
        assert set(out["mask"].unique().tolist()) <= {*np.unique(scene["mask"]).tolist(), 255}
        assert len(out["boxes"]) == len(out["kept"])
        kept, total = kept + len(out["kept"]), total + len(scene["boxes"])
        for (x1, y1, x2, y2), place in zip(out["boxes"].tolist(), out["kept"].tolist(), strict=True):
            assert 0 <= x1 < x2 <= 64
            assert 0 <= y1 < y2 <= 96
            digit = int(scene["labels"][place]) + 1
            inside = out["mask"][int(y1 + 0.5) : int(y2 + 0.5), int(x1 + 0.5) : int(x2 + 0.5)]
            assert (inside == digit).any() or min(x2 - x1, y2 - y1) < 4
    assert kept > 0.6 * total
    assert augment != "none" or kept == total


def test_nothing_is_random_outside_training_and_everything_follows_from_the_seed():
    image = photo(60, 60)
    transform = ImageTransform(32, 32, augment="strong")
    assert torch.equal(transform(image)["pixel_values"], transform(image)["pixel_values"])
    torch.manual_seed(3)
    first = [transform(image, train=True)["pixel_values"] for _ in range(3)]
    torch.manual_seed(3)
    again = [transform(image, train=True)["pixel_values"] for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


def test_a_tensor_is_shown_as_the_picture_it_was():
    image = photo(32, 32)
    transform = ImageTransform(32, 32)
    assert np.abs(transform.shown(transform(image)["pixel_values"]).astype(int) - np.asarray(image)).max() <= 1


def test_without_boxes_left_there_are_none():
    out = ImageTransform(32, 32)(photo(32, 32), boxes=[])
    assert out["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"augment": "flips"}, "augment must be one of 'none', 'shift', 'flip', 'strong'; got 'flips'"),
        ({"height": 4}, "between 8 and 4096 pixels; got 4 × 32"),
        ({"width": 5000}, "got 32 × 5000"),
        ({"std": (1.0, 1.0, 0.0)}, "std above 0"),
    ],
)
def test_impossible_settings_are_refused(settings, expected):
    with pytest.raises(DataError, match=expected):
        ImageTransform(**{"height": 32, "width": 32, **settings})
