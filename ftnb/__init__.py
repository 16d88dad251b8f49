"""Fine-tune pretrained models and understand what you are doing: lessons, a live panel, and one training loop.

The names below load on first use, so that `import ftnb` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Panel": "ftnb.panel",
    "Recipe": "ftnb.recipe",
    "Run": "ftnb.run",
    "finetune": "ftnb.run",
    "Learner": "ftnb.train",
    "Training": "ftnb.train",
    "Adapter": "ftnb.adapters",
    "DoRA": "ftnb.adapters",
    "LoRA": "ftnb.adapters",
    "BitFit": "ftnb.more_strategies",
    "Gradual": "ftnb.more_strategies",
    "Reinit": "ftnb.more_strategies",
    "Surgical": "ftnb.more_strategies",
    "Full": "ftnb.strategies",
    "Head": "ftnb.strategies",
    "LPFT": "ftnb.strategies",
    "LayerDecay": "ftnb.strategies",
    "TopK": "ftnb.strategies",
    "AudioClassification": "ftnb.tasks.audio_classification",
    "ImageClassification": "ftnb.tasks.image_classification",
    "ImageSegmentation": "ftnb.tasks.image_segmentation",
    "ObjectDetection": "ftnb.tasks.object_detection",
    "SpeechRecognition": "ftnb.tasks.speech_recognition",
    "TextClassification": "ftnb.tasks.text_classification",
    "TextGeneration": "ftnb.tasks.text_generation",
    "TokenClassification": "ftnb.tasks.token_classification",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from ftnb.adapters import Adapter, DoRA, LoRA
    from ftnb.more_strategies import BitFit, Gradual, Reinit, Surgical
    from ftnb.panel import Panel
    from ftnb.recipe import Recipe
    from ftnb.run import Run, finetune
    from ftnb.strategies import LPFT, Full, Head, LayerDecay, TopK
    from ftnb.tasks.audio_classification import AudioClassification
    from ftnb.tasks.image_classification import ImageClassification
    from ftnb.tasks.image_segmentation import ImageSegmentation
    from ftnb.tasks.object_detection import ObjectDetection
    from ftnb.tasks.speech_recognition import SpeechRecognition
    from ftnb.tasks.text_classification import TextClassification
    from ftnb.tasks.text_generation import TextGeneration
    from ftnb.tasks.token_classification import TokenClassification
    from ftnb.train import Learner, Training


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ftnb' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}.")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
