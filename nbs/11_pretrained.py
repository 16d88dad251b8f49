# %% [markdown]
# # Pretrained models
#
# > A checkpoint is a configuration, named tensors and a tokenizer; what it lacks starts from random numbers.
#
# At the end you can load a built-in checkpoint, a local folder or a model from the Hub with a head for your labels, say which parameters are new, and measure what the pretrained part already knows. Runs in about 15 s on a CPU.

# %%
#| default_exp pretrained

# %%
#| export
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

# %%
import builtins
import json
import os
import pickle
import tempfile

import matplotlib.pyplot as plt
from safetensors.torch import load_file

from ftnb.builtin.reviews import polar_words

# %% [markdown]
# ## What a checkpoint is
#
# A folder with three things. `config.json` says which architecture and how large; `model.safetensors` holds the tensors by name; the tokenizer's files say which number stands for which piece of text. None of the three is of use without the other two. Here is the one that comes with this project:

# %%
folder = Path(str(files("ftnb"))) / "weights" / "bert-reviews"
{path.name: f"{path.stat().st_size / 1000:.0f} kB" for path in sorted(folder.iterdir()) if path.suffix != ".md"}

# %%
config = json.loads((folder / "config.json").read_text())
{key: config[key] for key in ("model_type", "architectures", "num_hidden_layers", "hidden_size", "vocab_size")}

# %%
shapes = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()}
list(shapes.items())[:3], f"{len(shapes)} tensors"

# %% [markdown]
# There is no tensor for *your* labels among them. What comes next is to put a model together from this folder, and to know exactly which part of it is new.

# %%
#| export
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

# %% [markdown]
# ## Where a model is
#
# A name is one of three things: a checkpoint that comes with this project (`builtin:bert-reviews`), a folder laid out as the Hub's, or an id on the Hub (`google-bert/bert-base-uncased`). The folder needs `config.json`, `model.safetensors` and the tokenizer's files.

# %%
#| export
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

# %%
find_model("builtin:bert-reviews")[1], find_model("google-bert/bert-base-uncased")

# %% [markdown]
# ## A head for your labels
#
# The backbone's tensors are in the checkpoint; a head for your labels usually is not and starts from random numbers. There is a trap in the other case: a checkpoint that was fine-tuned for *other* labels brings a head of the same shape whose outputs mean something else. So a head is kept only if it was made for the same labels (then in the checkpoint's order); otherwise it starts new, and a notice says so.

# %%
#| export
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

# %% [markdown]
# What is not in the checkpoint is found out from the library's own report on loading. New parameters in the head are expected, a missing pooler is worth a notice, and a backbone that is mostly missing is not this model at all: training would start from random numbers and nobody would know.

# %%
#| export
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

# %% [markdown]
# Errors of the libraries below are turned into one sentence that says what to do. The random numbers of a new head come from a seed of their own, so that loading neither depends on what ran before nor disturbs it.

# %%
#| export
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

# %%
#| export
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

# %% [markdown]
# The smallest use. Two parameters are new, the head's; everything else comes from the checkpoint:

# %%
loaded = load_pretrained("builtin:bert-reviews", "text-classification", ["negative", "positive"])
sorted(loaded.new_parameters), loaded.source, loaded.notices

# %%
count = {name: p.numel() for name, p in loaded.model.named_parameters()}
new = sum(count[name] for name in loaded.new_parameters)
f"{sum(count.values()):,} parameters, {new:,} of them new ({new / sum(count.values()):.2%})"

# %%
assert loaded.new_parameters == {"classifier.weight", "classifier.bias"}

# %% [markdown]
# ### The mode it comes in
#
# `from_pretrained` leaves a model in *eval* mode: dropout does nothing. That is right for predicting, and a loop that forgets `model.train()` fine-tunes without dropout and never says so. In eval mode the same text gives the same logits twice, in training mode it does not:

# %%
inputs = loaded.processor(["the film was lovely ."], return_tensors="pt")
with torch.no_grad():
    loaded_mode = loaded.model.training
    twice_eval = [loaded.model(**inputs).logits for _ in range(2)]
    loaded.model.train()
    twice_train = [loaded.model(**inputs).logits for _ in range(2)]
    loaded.model.eval()
loaded_mode, twice_eval, twice_train

# %%
assert not loaded_mode and torch.equal(*twice_eval) and not torch.equal(*twice_train)

# %% [markdown]
# ### A head for other labels
#
# Save the model as it is and load it for two *other* labels: the shapes fit, so nothing would complain. The head starts new all the same, and a notice says why. For the same labels in another order the head stays, and so does its order:

# %%
saved = tempfile.mkdtemp()
with quiet_transformers():
    loaded.model.save_pretrained(saved)
    loaded.processor.save_pretrained(saved)
other = load_pretrained(saved, "text-classification", ["sport", "politics"])
same = load_pretrained(saved, "text-classification", ["positive", "negative"])
other.notices, sorted(other.new_parameters), same.model.config.id2label, sorted(same.new_parameters)

# %%
assert other.new_parameters == {"classifier.weight", "classifier.bias"} and not same.new_parameters

# %% [markdown]
# ### When it does not work
#
# An error says what to do. Without a network, a model on the Hub:

# %%
os.environ["HF_HUB_OFFLINE"] = "1"
try:
    load_pretrained("google-bert/bert-base-uncased-of-nobody", "text-classification", ["no", "yes"])
except ModelError as error:
    message = str(error)
message

# %% [markdown]
# One mistake is silent in the library below: for a folder without tokenizer files it makes up a tokenizer that knows five special tokens and nothing else, and every word becomes `[UNK]`. Here that is an error too.

# %%
(Path(saved) / "tokenizer.json").unlink()
with quiet_transformers():
    made_up = transformers.AutoTokenizer.from_pretrained(saved)
try:
    load_pretrained(saved, "text-classification", ["no", "yes"])
except ModelError as error:
    message = str(error).replace(saved, "the folder")
len(made_up), made_up.tokenize("the film was lovely ."), message

# %%
assert len(made_up) <= 5 and "no tokenizer" in message

# %% [markdown]
# ## The experiment: what does it know before fine-tuning?
#
# **Claim.** The built-in BERT, which never saw a label, already keeps praising and complaining words apart; the same architecture with random weights does not. We put each polar word into one neutral sentence, take the mean of the last hidden states, and ask for the side of each word by the nearer of the two class means, computed without that word. Chance is 0.5. The claim would be refuted if it were not at least 0.2 above the best of five random ones.

# %%
words = [(word, side) for side in ("negative", "positive") for word in polar_words(side)]
sides = torch.tensor([side == "positive" for _, side in words])

@torch.no_grad()
def hidden_states(loaded: Pretrained) -> torch.Tensor:
    """The mean last hidden state of one sentence per word, shape (words, hidden)."""
    sentences = [f"the film was {word} ." for word, _ in words]
    inputs = loaded.processor(sentences, return_tensors="pt", padding=True)
    states = loaded.model.base_model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    return (states * mask).sum(1) / mask.sum(1)

def nearer_mean_accuracy(states: torch.Tensor) -> float:
    right = 0
    for i, state in enumerate(states):
        others = torch.arange(len(states)) != i
        means = [states[others & (sides == side)].mean(0) for side in (False, True)]
        right += ((state - means[1]).norm() < (state - means[0]).norm()) == sides[i]
    return float(right) / len(states)

# %%
pretrained_states = hidden_states(loaded)
random_states = [
    hidden_states(load_pretrained("builtin:bert-reviews", "text-classification", ["negative", "positive"], scratch=True, seed=seed))
    for seed in range(5)
]
accuracy = nearer_mean_accuracy(pretrained_states)
random_accuracy = [nearer_mean_accuracy(states) for states in random_states]
len(words), accuracy, [round(a, 2) for a in random_accuracy]

# %% [markdown]
# The same as a picture: each word at its two main directions of variation.

# %%
def plane(states: torch.Tensor) -> torch.Tensor:
    centred = states - states.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T  # (words, 2)

fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), dpi=80, layout="constrained")
for ax, states, title in zip(axes, (pretrained_states, random_states[0]), ("pretrained", "random weights"), strict=True):
    points = plane(states)
    for side, name, colour in ((True, "praising", "tab:blue"), (False, "complaining", "tab:orange")):
        ax.scatter(*points[sides == side].T, s=14, label=name, color=colour)
    ax.set(title=title, xticks=[], yticks=[])
axes[0].legend(frameon=False)
plt.show()

# %%
assert accuracy > max(random_accuracy) + 0.2

# %% [markdown]
# Fine-tuning has to find that direction, not to make it. That is why a few labels can be enough.
#
# ## The story: weights that run code
#
# For years a checkpoint was a *pickle*, Python's format for any object. A pickle is a small program, and opening it runs it: whoever publishes weights can run code on your machine. In February 2024 JFrog reported about a hundred such models on the Hub, one of which opened a shell to its author. Here is a harmless one: opening it sets a flag.

# %%
class Harmless:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.was_here = True",))

builtins.was_here = False
pickle.loads(pickle.dumps({"weights": Harmless()}))
builtins.was_here

# %%
assert builtins.was_here

# %% [markdown]
# PyTorch has since made `torch.load` refuse all but tensors, and safetensors can hold nothing else. We read safetensors only, and never code that a checkpoint brings along.
#
# ## Exercises
#
# **1 (easy).** Write `new_share`: the share of a loaded model's parameters (counted by numbers, not by names) that start random.

# %% tags=["exercise"]
def new_share(loaded: Pretrained) -> float:
    ...  # your code here

# %% tags=["solution"]
def new_share(loaded: Pretrained) -> float:
    sizes = {name: p.numel() for name, p in loaded.model.named_parameters()}
    return sum(sizes[name] for name in loaded.new_parameters) / sum(sizes.values())

# %%
scratch = load_pretrained("builtin:bert-reviews", "text-classification", ["no", "yes"], scratch=True)
assert new_share(scratch) == 1.0 and new_share(loaded) == new / sum(count.values())

# %% [markdown]
# **2 (medium).** Does context matter, or is it all in the word embeddings? Write `word_embeddings_only`: as `hidden_states`, but the rows of the embedding table for each word's tokens, averaged.

# %% tags=["exercise"]
def word_embeddings_only(loaded: Pretrained) -> torch.Tensor:
    ...  # your code here

# %% tags=["solution"]
@torch.no_grad()
def word_embeddings_only(loaded: Pretrained) -> torch.Tensor:
    table = loaded.model.get_input_embeddings().weight
    ids = [loaded.processor(word, add_special_tokens=False)["input_ids"] for word, _ in words]
    return torch.stack([table[i].mean(0) for i in ids])

# %%
from_table = word_embeddings_only(loaded)
assert from_table.shape == pretrained_states.shape
nearer_mean_accuracy(from_table), accuracy

# %% [markdown]
# ## Summary
# - A checkpoint is a configuration, named tensors and a tokenizer; the head for your labels is new, and you can name its parameters.
# - It comes in eval mode.
# - A head made for other labels is not used, even where its shape fits.
# - Only safetensors are read, and no code from a checkpoint runs.
#
# **What next:** how to measure what such a model does. With a network, try `load_pretrained("google-bert/bert-base-uncased", ...)`; the notice will name what is new. **Sources:** the documentation of transformers and safetensors; JFrog (2024), "Data scientists targeted by malicious Hugging Face ML models with silent backdoor".
