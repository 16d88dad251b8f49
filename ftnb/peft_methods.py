"""A config of peft as plain data and back, and which methods can be put into a model and taken out again."""

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ftnb.strategies import StrategyError, nearest

UNSAID = ("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode", "task_type")
NOT_HERE = ("modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters")


def method_of(config: Any) -> str:
    """The name that peft gives to the method of a config, such as "LORA"."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def config_as_data(config: Any) -> dict[str, Any]:
    """What a peft config says beyond its defaults, as plain data."""
    said: dict[str, Any] = {"peft_type": method_of(config)}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if f.name not in (*UNSAID, "peft_type") and value is not None and value != default:
            said[f.name] = sorted(value) if isinstance(value, set) else value
    return said


def config_from_data(data: Mapping[str, Any]) -> Any:
    """The peft config that says what `data` says.

    Raises:
        StrategyError: if peft does not know the method or one of its settings.
    """
    known = {str(kind.value): of for kind, of in import_module("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    method = str(data.get("peft_type", "")).upper()
    if method not in known:
        raise StrategyError(f"peft knows no method {method!r}. {nearest(method, known)}")
    try:
        return known[method](**{key: value for key, value in data.items() if key != "peft_type"})
    except (TypeError, ValueError) as error:
        raise StrategyError(f"{method} cannot be set up: {error}") from None


def refuse(config: Any) -> None:
    """Refuse a config that is no adapter around layers, or that would train or change more than those.

    Raises:
        StrategyError: saying why, and what to do.
    """
    method = method_of(config)
    tuner = import_module("peft.mapping").PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
    if method in ("POLY", "XLORA", "SHADOW") or config.is_prompt_learning or config.is_adaption_prompt or not tuner:
        raise StrategyError(f"{method} adds inputs or a forward pass, not weights to layers; use peft itself.")
    if hasattr(tuner, "update_and_allocate"):
        raise StrategyError(f"{method} must be told after every step which ranks to keep; use peft itself, or 'lora'.")
    if tuner.uses_shared_state:
        raise StrategyError(f"{method} shares weights between layers outside of them; use peft itself, or 'lora'.")
    for name in NOT_HERE:
        if getattr(config, name, None):
            raise StrategyError(f"{name} is not for here: beside the adapters the head trains, and nothing else does.")
    if getattr(config, "bias", "none") not in ("none", False):
        raise StrategyError(f"bias={config.bias!r} would train biases of the backbone, which stays as it is: 'none'.")
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start not in ("gaussian", "orthogonal"):
        raise StrategyError(f"init_lora_weights={start!r} changes the backbone's own weights. Leave it out.")
