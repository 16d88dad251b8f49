"""A saved model as a task object without data: for predictions, long after the training."""

from pathlib import Path
from typing import Any

from ftnb.pretrained import ModelError, find_model, read_config
from ftnb.tasks import TASKS, task_class

# How transformers' names for models with a head end, by task.
HEADS = {
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
    "WhisperForConditionalGeneration": "automatic-speech-recognition",
    "ForSequenceClassification": "text-classification",  # or "audio-classification": see `task_of_folder`
    "ForTokenClassification": "token-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "image-segmentation",
}


def load_task(folder: str | Path) -> Any:
    """Load a model folder that a run or `task.save` wrote, or any trained model of transformers' layout.

    Returns:
        A task object that predicts and has no data.

    Raises:
        ModelError: if there is no such model, its task is unknown, or its head was never trained.
    """
    return task_class(task_of_folder(folder)).from_saved(folder)


def task_of_folder(folder: str | Path) -> str:
    """The task of a saved model, by its config.json.

    Raises:
        ModelError: if there is no model, or it is for no task that there is.
    """
    place = Path(find_model(str(folder))[0])
    if not place.is_dir():
        raise ModelError(f"{folder} is no folder; only a model on the disk says what it was trained for.")
    config = read_config(place)
    names = config.get("architectures") or [""]
    task = config.get("task") or next((of for end, of in HEADS.items() if names[0].endswith(end)), None)
    if task == "text-classification" and (place / "preprocessor_config.json").is_file():
        task = "audio-classification"  # wav2vec2's family calls its head by the same name
    if task not in TASKS:
        what = f"{names[0] or 'a model of unknown kind'}"
        raise ModelError(f"{folder} holds {what}, which is for none of the tasks {', '.join(map(repr, TASKS))}.")
    return str(task)
