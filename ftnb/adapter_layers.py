"""Which modules of a model are adapters around other modules, and the model as it is without them.

peft puts an adapter around a module: it takes the module's place, keeps it as `base_layer` and adds small modules of
its own. What is said here needs no peft, which takes seconds to import.
"""

from typing import Any

from torch import nn


def is_adapter_layer(module: nn.Module) -> bool:
    """Whether a module is an adapter around another one, made by peft."""
    return hasattr(module, "adapter_layer_names") and isinstance(getattr(module, "base_layer", None), nn.Module)


def adapter_layers(model: nn.Module) -> dict[str, Any]:
    """The outermost adapter layers of a model by their paths; empty if it has none."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if is_adapter_layer(module) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def adapter_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that adapters added to a model."""
    layers = adapter_layers(model).values()
    return {p for layer in layers for p in layer.parameters()} - {p for m in layers for p in m.base_layer.parameters()}


def adapter_modules(model: nn.Module) -> set[nn.Module]:
    """The adapter layers of a model with everything in them."""
    return {module for layer in adapter_layers(model).values() for module in layer.modules()}


def without_adapters(model: nn.Module) -> nn.Module:
    """A view of the model's structure without adapters, for looking only: the parameters are the model's own.

    Modules around an adapter are stand-ins; all others, and the model itself, stay as they are.
    """
    inside = set(adapter_layers(model).values())
    made: dict[nn.Module, nn.Module] = {}

    def view(module: nn.Module) -> nn.Module:
        if module in inside:
            return module.base_layer  # type: ignore[return-value]  # an adapter layer has one
        if module not in made and inside.isdisjoint(module.modules()):
            made[module] = module
        if module not in made:
            made[module] = twin = object.__new__(type(module))
            children = {name: child and view(child) for name, child in module._modules.items()}
            twin.__dict__.update(module.__dict__ | {"_modules": children})
        return made[module]

    return view(model) if inside else model


def remove_adapters(model: nn.Module) -> None:
    """Put the modules that the adapters were put around back into their places; their weights are not touched."""
    while layers := adapter_layers(model):  # peft puts some inside others
        for name, layer in layers.items():
            model.set_submodule(name, layer.base_layer)
    for note in ("peft_config", "adapter_settings"):
        if note in vars(model):
            delattr(model, note)
