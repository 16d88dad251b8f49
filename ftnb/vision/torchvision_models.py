"""torchvision's models by name, with weights from the network or from a file, and folders that hold a trained one.

A name is "torchvision:resnet18", with other weights than the default ones "torchvision:resnet18@IMAGENET1K_V1", or with
a file "torchvision:resnet18@/path/to/weights.pth" (a state dictionary, as .safetensors, or as .pth and read without
running what is in it).
"""

import inspect
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn
from torchvision import models

from ftnb.adapters import merged
from ftnb.pretrained import ModelError, read_config

PREFIX = "torchvision:"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def parse_name(name: str) -> tuple[str, str]:
    """Split "torchvision:architecture@weights" into architecture and weights ("DEFAULT" where none are named).

    Raises:
        ModelError: if torchvision has no such architecture; the nearest one is suggested.
    """
    architecture, _, weights = name.removeprefix(PREFIX).partition("@")
    known = models.list_models()
    if architecture not in known:
        near = get_close_matches(architecture, known, n=3)
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else " See torchvision.models.list_models()."
        raise ModelError(f"torchvision has no model {architecture!r}.{hint}")
    return architecture, weights or "DEFAULT"


def read_weights(architecture: str, weights: str) -> tuple[dict[str, Tensor], Any]:
    """The state dictionary for an architecture, in float32, and torchvision's record of it (None for a file).

    Args:
        architecture: torchvision's name, for example "resnet18".
        weights: "DEFAULT" or another name of torchvision's weights for it, which are downloaded once; or a file.

    Raises:
        ModelError: if there are no such weights, they cannot be downloaded, or the file holds something else.
    """
    if weights.endswith((".pth", ".pt", ".th", ".safetensors")) or "/" in weights or "\\" in weights:
        return read_state_file(Path(weights).expanduser()), None
    known = models.get_model_weights(architecture)
    if weights not in known.__members__:
        there = ", ".join(known.__members__) or "none"
        raise ModelError(f"torchvision has no weights {weights!r} for {architecture}; there are: {there}.")
    record = known[weights]
    try:
        state = record.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError) as error:
        raise ModelError(
            f"the weights of {architecture} cannot be downloaded from {record.url} ({error}). Without a network give a "
            f"file, '{PREFIX}{architecture}@/path/to/weights.pth', or a built-in model."
        ) from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, record


def read_state_file(path: Path) -> dict[str, Tensor]:
    """A state dictionary from a file, in float32; a wrapping "state_dict" and the prefix "module." are taken off.

    Raises:
        ModelError: if there is no such file, or it holds anything but tensors.
    """
    if not path.is_file():
        raise ModelError(f"there is no file of weights {path} (looked for {path.absolute()}).")
    try:
        safe = path.suffix == ".safetensors"
        loaded: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged or no safetensors file: {error}.") from None
    except Exception as error:  # noqa: BLE001  # torch names many kinds; each means that the file is not plain tensors
        reason = str(error).splitlines()[0][:200]
        raise ModelError(
            f"{path} cannot be read as plain tensors ({reason}). A file that needs code to open it is not opened; save "
            "model.state_dict(), best with safetensors."
        ) from None
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise ModelError(f"{path} holds no state dictionary (a mapping from names to tensors).")
    return {re.sub(r"^module\.", "", name): t.float() if t.is_floating_point() else t for name, t in loaded.items()}


def make_model(architecture: str, **settings: Any) -> nn.Module:
    """An untrained torchvision model, on the CPU; nothing is downloaded.

    Args:
        architecture: torchvision's name.
        **settings: what its builder takes, such as `num_classes`.
    """
    if architecture in ("googlenet", "inception_v3"):  # their auxiliary outputs belong to training from scratch
        settings |= {"aux_logits": False, "init_weights": True}
    if not architecture.startswith(("quantized", "raft")) and "backbone" in _parameters(architecture):
        settings.setdefault("weights_backbone", None)
    return models.get_model(architecture, weights=None, **settings)


def _parameters(architecture: str) -> str:
    return " ".join(inspect.signature(models.get_model_builder(architecture)).parameters)


def output_layer(model: nn.Module, num_outputs: int) -> str:
    """The name of the last layer with so many outputs: a classifier's own head.

    Raises:
        ModelError: if there is none.
    """
    sizes = {n: getattr(m, "out_features", getattr(m, "out_channels", None)) for n, m in model.named_modules()}
    found = [name for name, size in sizes.items() if size == num_outputs]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no layer with {num_outputs} outputs, so it has no head to replace."
        )
    return found[-1]


def replace_output(model: nn.Module, layer: str, num_outputs: int) -> frozenset[str]:
    """Put a new linear or 1 × 1 convolution layer in the place of another; returns the names of its parameters."""
    old = model.get_submodule(layer)
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, num_outputs)
    elif isinstance(old, nn.Conv2d):
        new = nn.Conv2d(old.in_channels, num_outputs, old.kernel_size, old.stride, old.padding)  # type: ignore[arg-type]
    else:
        raise ModelError(f"the head {layer!r} is a {type(old).__name__}, which cannot be replaced.")
    parent, _, name = layer.rpartition(".")
    setattr(model.get_submodule(parent), name, new)
    return frozenset(f"{layer}.{name}" for name, _ in new.named_parameters())


def load_backbone(model: nn.Module, state: Mapping[str, Tensor], head: frozenset[str], source: str) -> None:
    """Load all tensors but the head's into a model.

    Raises:
        ModelError: if tensors are missing, have another shape, or belong to no module.
    """
    head_modules = {name.rpartition(".")[0] for name in head}
    wanted = {n: t for n, t in model.state_dict().items() if n.rpartition(".")[0] not in head_modules}
    missing = [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")]
    shapes = [n for n in wanted if n in state and state[n].shape != wanted[n].shape]
    if missing or shapes:
        what = (
            f"{len(missing)} of {len(wanted)} tensors are missing" if missing else f"{len(shapes)} have another shape"
        )
        example = (missing or shapes)[0]
        raise ModelError(f"{source} does not fit {type(model).__name__}: {what}, for example {example!r}.")
    model.load_state_dict({n: state.get(n, t) for n, t in wanted.items()}, strict=False)


def is_saved_folder(folder: Path) -> bool:
    """Whether a folder holds a torchvision model that `save_folder` wrote."""
    return folder.is_dir() and (folder / CONFIG).is_file() and read_config(folder).get("library_name") == "torchvision"


def save_folder(folder: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Write a torchvision model as `model.safetensors` and `config.json`.

    Args:
        folder: made if it is not there.
        model: the model.
        config: "architecture", "task", "id2label", and whatever else the task needs to make it again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with merged(model):
        save_model(model, str(folder / WEIGHTS))  # tied tensors are written once
    text = json.dumps({"library_name": "torchvision", **config}, indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8", newline="\n")
