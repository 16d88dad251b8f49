"""A saved model as a task object without data: for predictions, long after the training."""

from pathlib import Path

from datasets import Dataset
from transformers import AutoConfig

from ftnb.data import Splits
from ftnb.pretrained import ModelError, find_model, load_pretrained
from ftnb.tasks.text_classification import TextClassification, length_limit


def load_task(folder: str | Path) -> TextClassification:
    """Load a model folder that a run or `task.save` wrote, or any trained text classifier of that layout.

    Returns:
        A task object that predicts and has no data.

    Raises:
        ModelError: if there is no such model, or its head was never trained.
    """
    place, _ = find_model(str(folder))
    names: dict[int, str] = AutoConfig.from_pretrained(place).id2label
    labels = [names[i] for i in sorted(names)]
    found = load_pretrained(str(folder), TextClassification.name, labels)
    if found.new_parameters:
        raise ModelError(
            f"{folder} is a model without a trained head ({', '.join(sorted(found.new_parameters))} would be random "
            "numbers), so it has nothing to predict. Fine-tune it first."
        )
    nothing = Dataset.from_dict({})
    limit = length_limit(found.model, found.processor)
    return TextClassification(found.model, found.processor, Splits(nothing, nothing), labels, limit)
