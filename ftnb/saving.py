"""Saving a transformers model as a folder that anybody's `from_pretrained` loads."""

from pathlib import Path
from typing import Any

from ftnb.adapters import merged
from ftnb.pretrained import quiet_transformers


def save_pretrained(folder: str | Path, model: Any, *processors: Any) -> Path:
    """Save a model, its adapters folded in for the moment, and what prepares its inputs.

    Args:
        folder: made if it is not there.
        model: a transformers model.
        processors: its tokenizer, image processor or feature extractor.

    Returns:
        The folder.
    """
    with quiet_transformers(), merged(model):
        model.save_pretrained(folder)
        for processor in processors:
            processor.save_pretrained(folder)
    return Path(folder)
