# Exported from nbs/11_pretrained.py: edit the lesson, then run `make export`.
"""A checkpoint is a configuration, named tensors and a tokenizer; what it lacks starts from random numbers."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

__all__ = [
    "ModelError",
    "Pretrained",
    "AUTO_CLASSES",
    "BUILTIN_MODELS",
    "TOKENIZER_FILES",
    "PROCESSOR_FILES",
    "NO_WEIGHTS",
    "find_model",
    "quiet_transformers",
    "loading",
    "load_pretrained",
    "read_checkpoint",
    "read_config",
    "trained_labels",
    "refuse_untrained",
]


class ModelError(ValueError):
    """A model was named wrongly, is damaged or does not fit the task; raised before any training."""


@dataclass(frozen=True)
class Pretrained:
    """A model with a head for the task, and what belongs to it.

    Args:
        model: in eval mode, as `from_pretrained` leaves it: dropout is off until a training loop switches it on.
        processor: makes model inputs of raw data: a tokenizer, or an image processor.
        new_parameters: names of the parameters that start from random numbers.
        name: what the model was asked for by.
        source: "builtin", "local" or "hub".
        notices: what happened while loading that a reader of the result should know.
    """

    model: PreTrainedModel
    processor: Any
    new_parameters: frozenset[str]
    name: str
    source: str
    notices: list[str] = field(default_factory=list)


# Per task: the class that puts a head on a backbone, and the class of what prepares its inputs.
AUTO_CLASSES: dict[str, tuple[str, str]] = {
    "text-classification": ("AutoModelForSequenceClassification", "AutoTokenizer"),
    "token-classification": ("AutoModelForTokenClassification", "AutoTokenizer"),
    "image-classification": ("AutoModelForImageClassification", "AutoImageProcessor"),
    "audio-classification": ("AutoModelForAudioClassification", "AutoFeatureExtractor"),
    "text-generation": ("AutoModelForCausalLM", "AutoTokenizer"),
}
BUILTIN_MODELS = ("bert-reviews", "resnet-glyphs", "vit-glyphs", "wav2vec2-babble", "lm-stories")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
NO_WEIGHTS = "random weights: nothing is pretrained."


def find_model(name: str) -> tuple[str, str]:
    """Where a model is: (folder or Hub id, source) with source "builtin", "local" or "hub".

    Raises:
        ModelError: if it is no built-in name, no folder that holds a model, and cannot be a Hub id.
    """
    if name.startswith("builtin:"):
        short = name.removeprefix("builtin:")
        if short not in BUILTIN_MODELS:
            known = ", ".join(repr(f"builtin:{model}") for model in BUILTIN_MODELS)
            raise ModelError(f"{name!r} is unknown; the built-in models are {known}.")
        folder, source = Path(str(files("ftnb") / "weights" / short)), "builtin"
    else:
        folder, source = Path(name).expanduser(), "local"
    if folder.is_dir():
        _check_folder(folder)
        return str(folder), source
    if source == "builtin" or name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelError(f"{name!r} is no folder (looked for {folder.absolute()}) and no Hub id such as 'owner/name'.")
    return name, "hub"


def _check_folder(folder: Path) -> None:
    held = {path.name for path in folder.iterdir()}
    if "config.json" not in held:
        raise ModelError(f"{folder} holds no config.json, so it is not a model folder; it holds {sorted(held)[:8]}.")
    if not any(name.endswith(".safetensors") for name in held):
        pickled = sorted(name for name in held if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        hint = f" {pickled[0]} is a pickle, which can run code when opened; convert it." if pickled else ""
        raise ModelError(f"{folder} holds no .safetensors file, so it has no weights to load.{hint}")


def _check_processor_files(folder: Path, processor_class: str) -> None:
    held = {path.name for path in folder.iterdir()}
    kinds = {"AutoTokenizer": "tokenizer", "AutoImageProcessor": "image processor"}
    what = kinds.get(processor_class, "feature extractor")
    files = TOKENIZER_FILES if what == "tokenizer" else PROCESSOR_FILES
    if not held.intersection(files):
        raise ModelError(f"{folder} has no {what} (one of {', '.join(files)}); copy it from the original model.")


def _config_for(place: str, labels: Sequence[str]) -> tuple[PretrainedConfig, bool]:
    # The configuration for our labels, and whether the checkpoint's own labels are the same. A task may have no labels.
    if not labels:
        return AutoConfig.from_pretrained(place), True
    own = AutoConfig.from_pretrained(place).id2label or {}
    same = set(own.values()) == set(labels)
    id2label = dict(own) if same else dict(enumerate(labels))
    label2id = {label: i for i, label in id2label.items()}
    config = AutoConfig.from_pretrained(place, num_labels=len(labels), id2label=id2label, label2id=label2id)
    config.problem_type = "single_label_classification"  # else a pipeline may apply a sigmoid
    return config, same


def _renew_head(model: PreTrainedModel, auto_class: Any, config: PretrainedConfig) -> set[str]:
    # Give every parameter outside the backbone fresh random numbers; returns their names.
    prefix = model.base_model_prefix + "."
    fresh = dict(auto_class.from_config(config).named_parameters())
    head = {name: p for name, p in model.named_parameters() if not name.startswith(prefix)}
    with torch.no_grad():
        for name, parameter in head.items():
            parameter.copy_(fresh[name])
    return set(head)


def _check_backbone(model: PreTrainedModel, new: set[str], mismatched: set[str]) -> list[str]:
    prefix = model.base_model_prefix + "."
    backbone = {name for name, _ in model.named_parameters() if name.startswith(prefix)}
    wrong = sorted(mismatched & backbone)
    if wrong:
        raise ModelError(f"{len(wrong)} tensors have another shape than config.json says, for example {wrong[0]}.")
    missing = sorted(new & backbone)
    if len(missing) > len(backbone) / 2:
        raise ModelError(
            f"{len(missing)} of the {len(backbone)} backbone tensors are not in the checkpoint, for example "
            f"{missing[0]}; its tensors belong to another architecture."
        )
    return [f"not in the checkpoint, so they start random: {', '.join(missing)}"] if missing else []


def _check_tokenizer(tokenizer: Any, model: PreTrainedModel) -> list[str]:
    size, rows = len(tokenizer), model.config.vocab_size
    if size <= len(tokenizer.all_special_ids):
        raise ModelError("the checkpoint has no tokenizer (its vocabulary holds special tokens only).")
    if size > rows:
        raise ModelError(f"the tokenizer has {size} tokens but the model embeds {rows}; they do not belong together.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        model.config.pad_token_id = tokenizer.pad_token_id
        return [f"the tokenizer has no padding token; {tokenizer.pad_token!r} is used."]
    return []


@contextmanager
def quiet_transformers(progress: bool = False) -> Iterator[None]:
    """Keep transformers from logging anything below an error, and from drawing bars unless `progress` is set."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if not progress:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def loading(name: str, source: str, seed: int) -> Iterator[None]:
    """Load quietly, with random numbers that the seed decides; whatever goes wrong becomes a ModelError with advice."""
    try:
        with quiet_transformers(progress=source == "hub"), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # a model is made on the CPU; no other device is touched
            yield
    except Exception as error:
        raise ModelError(f"cannot load {name!r}: {_advice(error, source)}") from error


def _advice(error: Exception, source: str) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it brings its own Python code, which is never run here. Choose a model that transformers knows itself."
    if source == "hub" and ("connect" in text or "offline" in text.lower()):
        return (
            "the Hub cannot be reached and the model is not in the local cache. Without a network give a local folder "
            "or a built-in model; behind a mirror set HF_ENDPOINT to its address before Python starts."
        )
    if "Unrecognized configuration class" in text:
        kind = re.search(r"configuration_(\w+)\.", text)
        return f"it is a {kind[1] if kind else 'different'} model, and transformers has no head of this task for it."
    return text[:500]


def load_pretrained(
    name: str, task: str, labels: Sequence[str], *, scratch: bool = False, seed: int = 0
) -> Pretrained:
    """Load a model with a head for a task's labels, and the processor that belongs to it.

    Only safetensors are read and no code from a checkpoint is run. Weights are in float32. The model comes in eval
    mode, as `from_pretrained` leaves it.

    Args:
        name: "builtin:bert-reviews" (or another built-in model), a local folder laid out as the Hub's, or a Hub id.
        task: a Hugging Face task name, for example "text-classification".
        labels: the classes. The order in `model.config.id2label` counts: it is the checkpoint's own if it has the
            same classes. None for a task without classes, such as "text-generation".
        scratch: the same architecture and tokenizer with random weights, for comparisons.
        seed: of the new parameters' random numbers.

    Raises:
        ModelError: if the model is not there, damaged, has no tokenizer, or does not fit the task.
    """
    if task not in AUTO_CLASSES:
        raise ModelError(f"task {task!r} is unknown; there are {', '.join(map(repr, AUTO_CLASSES))}.")
    auto_class, processor_class = (getattr(transformers, c) for c in AUTO_CLASSES[task])
    place, source = find_model(name)
    if source != "hub":
        _check_processor_files(Path(place), AUTO_CLASSES[task][1])
    with loading(name, source, seed):
        config, same_labels = _config_for(place, labels)
        processor = processor_class.from_pretrained(place)
        if scratch:
            model = auto_class.from_config(config).eval()
            new = {parameter for parameter, _ in model.named_parameters()}
            notices = [NO_WEIGHTS]
        else:
            model, new, notices = _load_weights(place, auto_class, config, same_labels)
        notices += _check_tokenizer(processor, model) if processor_class is transformers.AutoTokenizer else []
    return Pretrained(model, processor, frozenset(new), name, source, notices)


def _load_weights(
    place: str, auto_class: Any, config: PretrainedConfig, same_labels: bool
) -> tuple[PreTrainedModel, set[str], list[str]]:
    model, new, mismatched = read_checkpoint(place, auto_class, config)
    notices = _check_backbone(model, new, mismatched)
    prefix = model.base_model_prefix + "."
    brought = {name for name, _ in model.named_parameters() if not name.startswith(prefix)} - new
    if (brought or mismatched) and not same_labels:
        new |= _renew_head(model, auto_class, config)
        notices.append("the checkpoint's head was made for other labels; the head starts new.")
    return model, new, notices


def read_checkpoint(
    place: str, auto_class: Any, config: PretrainedConfig
) -> tuple[PreTrainedModel, set[str], set[str]]:
    """Load a checkpoint's tensors, in float32 and from safetensors only, into the model that a configuration makes.

    Returns:
        The model, the names of the parameters that no tensor filled, and the names of tensors of another shape.
    """
    model, info = auto_class.from_pretrained(
        place,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    mismatched = {key[0] for key in info["mismatched_keys"]}
    new = (set(info["missing_keys"]) | mismatched) & {name for name, _ in model.named_parameters()}
    return model, new, mismatched


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json.

    Raises:
        ModelError: if it is not there or no JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{folder / 'config.json'} holds no settings.")
    return config


def trained_labels(folder: str | Path) -> list[str]:
    """The classes of a saved model, whichever library made it, in the order of its outputs.

    Raises:
        ModelError: if there is no such model.
    """
    place, source = find_model(str(folder))
    names = read_config(Path(place)).get("id2label") if source != "hub" else None
    names = names or AutoConfig.from_pretrained(place).id2label  # transformers leaves its default names out of the file
    return [names[key] for key in sorted(names, key=int)]


def refuse_untrained(folder: str | Path, new_parameters: frozenset[str]) -> None:
    """Raise if a model that should be ready to predict has parameters that no checkpoint filled.

    Raises:
        ModelError: naming them.
    """
    if new_parameters:
        raise ModelError(
            f"{folder} is a model without a trained head ({', '.join(sorted(new_parameters))} would be random "
            "numbers), so it has nothing to predict. Fine-tune it first."
        )
