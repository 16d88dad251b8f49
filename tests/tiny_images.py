"""A tiny image model folder and small picture sets, laid out as a user's own are; for tests of whole runs."""

from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor


def tiny_resnet(folder: Path, num_labels: int = 4) -> str:
    """Save a random ResNet of about 6,000 parameters for pictures of 16 × 16 pixels."""
    torch.manual_seed(5)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**sizes, num_labels=num_labels)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


def stripes(upright: bool, seed: int, size: int = 20) -> Image.Image:
    """A noisy picture of upright or lying stripes."""
    rng = np.random.default_rng(seed)
    wave = 128 + 90 * np.sin(np.arange(size) * 1.3 + rng.uniform(0, 6))
    grey = np.tile(wave, (size, 1)) if upright else np.tile(wave[:, None], (1, size))
    noisy = grey[..., None] + rng.normal(0, 25, (size, size, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def stripe_folder(root: Path, per_class: int = 30) -> str:
    """A folder for each of two classes of stripes."""
    draw = Random(0)
    for name, upright in (("lying", False), ("upright", True)):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            stripes(upright, draw.randrange(10**6)).save(root / name / f"{i:03}.png")
    return str(root)
