"""Tasks by their Hugging Face names; a task's module is imported only when it is asked for."""

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class TaskEntry:
    """What is known of a task before its module is imported.

    Attributes:
        place: "module:class" of its task class.
        data: the data of a recipe that names none.
        model: the model of a recipe that names none.
        options: the settings of a recipe that this task has beside those that all have.
        learner_options: further ones, which say how batches are made, not how data and model are prepared.
        roles: the columns that its data has.
        models: further models to suggest in a form.
        lr, num_epochs, batch_size: the numbers of a recipe that names none; they suit the built-in data and model.
    """

    place: str
    data: str
    model: str
    options: tuple[str, ...]
    roles: tuple[str, ...]
    models: tuple[str, ...] = ()
    lr: float = 5e-4
    num_epochs: int = 3
    batch_size: int = 16
    learner_options: tuple[str, ...] = ()

    @property
    def own_settings(self) -> tuple[str, ...]:
        """All settings of a recipe that belong to this task."""
        return (*self.options, *self.learner_options)


TASKS: dict[str, TaskEntry] = {
    "text-classification": TaskEntry(
        "ftnb.tasks.text_classification:TextClassification",
        data="builtin:reviews",
        model="builtin:bert-reviews",
        options=("max_length", "label_separator"),
        roles=("text", "label", "text_pair"),
        models=("google-bert/bert-base-uncased", "distilbert/distilbert-base-uncased"),
        learner_options=("batch_tokens",),
    ),
    "token-classification": TaskEntry(
        "ftnb.tasks.token_classification:TokenClassification",
        data="builtin:names",
        model="builtin:bert-reviews",
        options=("max_length",),
        roles=("text", "entities", "tokens", "tags"),
        models=("google-bert/bert-base-cased", "distilbert/distilbert-base-cased"),
        lr=2e-3,
        num_epochs=10,
        learner_options=("batch_tokens",),
    ),
    "audio-classification": TaskEntry(
        "ftnb.tasks.audio_classification:AudioClassification",
        data="builtin:commands",
        model="builtin:wav2vec2-babble",
        options=("max_seconds",),
        roles=("audio", "label"),
        models=("logmel-cnn", "facebook/wav2vec2-base", "MIT/ast-finetuned-speech-commands-v2"),
        lr=1.5e-3,
        num_epochs=5,
    ),
    "automatic-speech-recognition": TaskEntry(
        "ftnb.tasks.speech_recognition:SpeechRecognition",
        data="builtin:spoken-digits",
        model="builtin:wav2vec2-babble",
        options=("max_seconds",),
        roles=("audio", "text"),
        models=("facebook/wav2vec2-base-960h", "openai/whisper-tiny"),
        lr=1.5e-3,
        num_epochs=8,
        batch_size=4,
    ),
    "text-generation": TaskEntry(
        "ftnb.tasks.text_generation:TextGeneration",
        data="builtin:instructions",
        model="builtin:lm-stories",
        options=("max_length", "packing", "loss_on"),
        roles=("prompt", "completion", "messages", "instruction", "input", "output"),
        models=("HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen3-0.6B-Base"),
        lr=1e-3,
        num_epochs=10,
        learner_options=("batch_tokens",),
    ),
    "image-classification": TaskEntry(
        "ftnb.tasks.image_classification:ImageClassification",
        data="builtin:digits",
        model="builtin:resnet-glyphs",
        options=("image_size", "augment"),
        roles=("image", "label"),
        models=("builtin:vit-glyphs", "torchvision:resnet18", "microsoft/resnet-50", "google/vit-base-patch16-224"),
        lr=1e-3,
    ),
    "object-detection": TaskEntry(
        "ftnb.tasks.object_detection:ObjectDetection",
        data="builtin:digit-scenes",
        model="builtin:resnet-glyphs",
        options=("box_format", "image_size", "augment"),
        roles=("image", "boxes", "labels"),
        models=(
            "torchvision:fcos_resnet50_fpn",
            "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn",
            "facebook/detr-resnet-50",
        ),
        lr=2e-3,
        num_epochs=20,
        batch_size=8,
    ),
    "image-segmentation": TaskEntry(
        "ftnb.tasks.image_segmentation:ImageSegmentation",
        data="builtin:digit-scenes",
        model="builtin:resnet-glyphs",
        options=("image_size", "augment"),
        roles=("image", "mask"),
        models=("torchvision:lraspp_mobilenet_v3_large", "nvidia/mit-b0"),
        lr=5e-3,
        num_epochs=20,
        batch_size=8,
    ),
}


def task_class(name: str) -> Any:
    """The class of a task, for example `task_class("text-classification")`.

    Raises:
        ValueError: if there is no task of that name; the nearest one is suggested.
    """
    if name not in TASKS:
        near = get_close_matches(str(name), TASKS, n=1)
        suggestion = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"task {name!r} is unknown; there are {', '.join(map(repr, TASKS))}.{suggestion}")
    module, _, attribute = TASKS[name].place.partition(":")
    return getattr(import_module(module), attribute)
