# Exported from nbs/20_layers.py: edit the lesson, then run `make export`.
"""Any model as an ordered list of layer groups, and a table that proves what is training and what is not."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftnb.adapter_layers import (
    adapter_layers,
    adapter_modules,
    adapter_parameters,
    remove_adapters,
    without_adapters,
)
from ftnb.devices import to_device
from ftnb.loop import Loop
from ftnb.schedule import LossFunction, restored
from ftnb.step import Learner, Phase, Strategy, set_modes, set_trainable
from ftnb.training_table import GroupRow, TrainingTable

__all__ = [
    "LayerGroup",
    "layer_groups",
    "hf_loss",
    "what_is_training",
]


@dataclass(frozen=True)
class LayerGroup:
    """An ordered slice of a model that a strategy treats as one.

    Attributes:
        name: "embeddings", "block 0" … "block L-1", "adapters" or "head".
        modules: names of the modules that make it up; none lies inside another.
        parameters: names, as `model.named_parameters()` gives them, of the parameters that belong to it.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]


_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class _Piece:
    """A module (or a parameter standing alone) in its place on the way from input to output."""

    paths: tuple[str, ...]
    nodes: tuple[nn.Module | nn.Parameter, ...]
    candidate: bool = False  # may be a block

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for n in self.nodes for p in ([n] if isinstance(n, nn.Parameter) else n.parameters())]

    @property
    def matrices(self) -> int:
        return sum(p.ndim >= 2 for p in self.parameters)

    @property
    def kind(self) -> tuple[type, ...]:
        return tuple(type(node) for node in self.nodes)


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


def _is_rich(module: nn.Module) -> bool:
    """Whether a module could be a block: it transforms at least twice (a unit such as convolution + norm only once)."""
    return sum(p.ndim >= 2 for p in module.parameters()) >= 2


def _entries(container: nn.Module) -> list[nn.Module]:
    return [child for child in container.children() if any(True for _ in child.parameters())]


def _is_stage(module: nn.Module) -> bool:
    """Whether a module is a run of blocks: it directly holds a container of rich modules, all of one class."""
    for child in module.children():
        entries = _entries(child) if isinstance(child, _CONTAINERS) else []
        one_class = len({type(entry) for entry in entries}) == 1 and not isinstance(entries[0], _CONTAINERS)
        if one_class and any(map(_is_rich, entries)):
            return True
    return False


def _is_stack(module: nn.Module) -> bool:
    """Whether a container holds blocks, directly or in stages."""
    return any(_is_stack(e) if isinstance(e, _CONTAINERS) else _is_rich(e) for e in _entries(module))


def _holds_stack(module: nn.Module) -> bool:
    """Whether there is a stack of blocks anywhere inside a module."""
    return any(isinstance(m, _CONTAINERS) and _is_stack(m) for m in module.modules())


def _rows(module: nn.Module, path: str) -> Iterator[_Piece]:
    """Own parameters, then children in order; lists of one length, side by side, are taken entry by entry."""
    for name, parameter in module.named_parameters(recurse=False):
        yield _Piece((_join(path, name),), (parameter,))
    children = dict(module.named_children())
    lists = {name: list(c) for name, c in children.items() if isinstance(c, nn.ModuleList) and len(c) > 1}
    lengths = [len(entries) for entries in lists.values()]
    parallel = {name for name, entries in lists.items() if lengths.count(len(entries)) > 1}
    if isinstance(module, _CONTAINERS) or not any(_is_stack(children[name]) for name in parallel):
        parallel = set()
    for name, child in children.items():
        if name not in parallel:
            yield _Piece((_join(path, name),), (child,))
            continue
        same = [other for other in lists if other in parallel and len(lists[other]) == len(lists[name])]
        for i in range(len(lists[name])) if name == same[0] else ():
            yield _Piece(tuple(_join(path, o, str(i)) for o in same), tuple(lists[o][i] for o in same))


def _pieces(module: nn.Module, path: str, skip: frozenset[str]) -> Iterator[_Piece]:
    """Walk from input to output: candidates for blocks, and what lies between them."""
    inside = isinstance(module, _CONTAINERS)
    alone = sum(_is_rich(entry) for entry in _entries(module) if not isinstance(entry, _CONTAINERS)) == 1
    for row in _rows(module, path):
        if skip.issuperset(row.paths):
            continue
        if not _opens(row, inside, alone):
            yield replace(row, candidate=(inside or len(row.paths) > 1) and not isinstance(row.nodes[0], _CONTAINERS))
            continue
        for p, node in zip(row.paths, row.nodes, strict=True):
            piece = _Piece((p,), (node,))
            opened = isinstance(node, nn.Module) and _opens(piece, inside, alone)
            yield from _pieces(cast(nn.Module, node), p, skip) if opened else [piece]


def _opens(row: _Piece, inside: bool, alone: bool) -> bool:
    """Whether to look inside a row rather than take it whole.

    Outside containers, whatever holds a stack is opened; inside, only stages and further containers, and an entry that
    stands alone there with a run of blocks in it (a container around a whole model).
    """
    for node in row.nodes:
        if isinstance(node, _CONTAINERS):
            if _is_stack(node):
                return True
        elif isinstance(node, nn.Module):
            chained = inside or len(row.nodes) > 1
            if _is_stage(node) or (alone and any(map(_is_stage, node.modules()))):
                return True
            if not chained and _holds_stack(node):
                return True
    return False


def _outside(module: nn.Module, path: str, backbone: set[nn.Module]) -> list[str]:
    """Paths of everything in a module that is not part of the backbone."""
    found = [_join(path, name) for name, _ in module.named_parameters(recurse=False)]
    for name, child in module.named_children():
        if child in backbone:
            continue
        inside = _join(path, name)
        found += _outside(child, inside, backbone) if backbone & set(child.modules()) else [inside]
    return found


def _output_paths(module: nn.Module, path: str) -> list[str]:
    """The output layer (the last child with parameters, and what follows the blocks) and auxiliary outputs."""
    children = dict(module.named_children())
    filled = [name for name, child in children.items() if any(True for _ in child.parameters())]
    if len(filled) < 2 or _holds_stack(children[filled[-1]]):
        return []
    outputs = {filled[-1], *(name for name in filled if name.lower().startswith("aux"))}
    body = [name for name in filled if name not in outputs]
    after = list(children)[list(children).index(body[-1]) + 1 :] if body else []
    return [_join(path, name) for name in children if name in outputs or name in after]


def _head_paths(model: nn.Module, path: str = "") -> list[str]:
    """Paths of what lies outside the backbone; empty for a bare backbone."""
    if isinstance(model, PreTrainedModel):
        if model.base_model is not model:
            return _outside(model, path, {model.base_model})
        if not re.search("For[A-Z]", type(model).__name__):  # the library's name for a model with a head
            return []
        inner: set[nn.Module] = {child for child in model.children() if isinstance(child, PreTrainedModel)}
        return _outside(model, path, inner) if inner else _output_paths(model, path)
    pretrained = {m: n for n, m in model.named_modules() if isinstance(m, PreTrainedModel)}
    nested = {inner for m in pretrained for inner in m.modules() if inner is not m}
    topmost = {m: n for m, n in pretrained.items() if m not in nested}
    if topmost:
        heads = [p for m, n in topmost.items() for p in _head_paths(m, _join(path, n))]
        return _outside(model, path, {*topmost}) + heads
    backbone = getattr(model, "backbone", None)
    return _outside(model, path, {backbone}) if isinstance(backbone, nn.Module) else _output_paths(model, path)


def _simple_pieces(pieces: list[_Piece]) -> list[_Piece]:
    """For a model without a stack of blocks: open what holds everything, and containers; every piece may be a block."""
    filled = [piece for piece in pieces if piece.parameters]
    for piece in filled:
        node = piece.nodes[0]
        if isinstance(node, nn.Module) and (len(filled) == 1 or isinstance(node, _CONTAINERS)) and _entries(node):
            at = pieces.index(piece)
            return _simple_pieces([*pieces[:at], *_rows(node, piece.paths[0]), *pieces[at + 1 :]])
    rich = any(piece.matrices > 1 for piece in pieces)
    return [replace(piece, candidate=piece.matrices > rich) for piece in pieces]


def _in_order(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Sort pieces into embeddings (first list) and blocks (the others).

    What comes before the first block is embeddings, and so is every look-up table. Between blocks, a norm belongs to
    the block before it, anything else to the block after it; what trails belongs to the last block.
    """
    kinds = {piece.kind for piece in pieces if piece.candidate and piece.matrices > 1}
    if not kinds:
        pieces = _simple_pieces(pieces)
        kinds = {piece.kind for piece in pieces if piece.candidate}
    groups: list[list[_Piece]] = [[]]
    pending: list[_Piece] = []
    for piece in pieces:
        if all(isinstance(node, nn.Embedding) for node in piece.nodes):
            groups[0].append(piece)
        elif piece.candidate and piece.kind in kinds:
            groups.append([*pending, piece])
            pending = []
        elif len(groups) == 1 or piece.matrices == 0:
            groups[-1].append(piece)
        else:
            pending.append(piece)
    groups[-1] += pending
    return groups


def _at(model: nn.Module, path: str) -> nn.Module | nn.Parameter:
    """The module or parameter at a path."""
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _named(slots: list[list[_Piece]], names: dict[nn.Parameter, str], new: set[nn.Parameter]) -> list[LayerGroup]:
    """Name the groups and give each parameter to the first that holds it, new ones to the last, which is the head."""
    owner: dict[nn.Parameter, int] = {}
    for index, slot in enumerate(slots):
        for parameter in (p for piece in slot for p in piece.parameters):
            owner.setdefault(parameter, len(slots) - 1 if parameter in new else index)
    groups = []
    for index, slot in enumerate(slots):
        name = "head" if index == len(slots) - 1 else f"block {index - 1}" if index else "embeddings"
        pairs = [pair for piece in slot for pair in zip(piece.paths, piece.nodes, strict=True)]
        modules = tuple(path for path, node in pairs if isinstance(node, nn.Module))
        parameters = tuple(name for parameter, name in names.items() if owner[parameter] == index)
        groups.append(LayerGroup(name, modules, parameters))
    return [group for group in groups if group.parameters]


def layer_groups(model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[LayerGroup]:
    """Cut a model into layer groups, ordered from input to output: embeddings, blocks, adapters, head.

    Every parameter is in exactly one group; a shared one is where the input's side uses it (a language model's output
    matrix is its embedding matrix). Newly initialised parameters and all outside the backbone are the head; a bare
    backbone has none. What adapters added is a group of its own, and the rest is cut as it would be without them. A
    group without parameters is left out.

    Args:
        model: any transformers or torchvision model, or a module built around one.
        new_parameters: names of parameters that no checkpoint filled. If nothing is pretrained, they are ignored.

    Raises:
        ValueError: if the model has no parameters, or `new_parameters` names one that it does not have.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    if unknown := sorted(new_parameters - set(names.values())):
        raise ValueError(f"new_parameters names {unknown[0]!r}, which {type(model).__name__} does not have.")
    if not names:
        raise ValueError(f"{type(model).__name__} has no parameters, so there is nothing to cut into layer groups.")
    new = {parameter for parameter, name in names.items() if name in new_parameters}
    added = adapter_parameters(model)
    adapters = [LayerGroup("adapters", tuple(adapter_layers(model)), tuple(n for p, n in names.items() if p in added))]
    names = {parameter: name for parameter, name in names.items() if parameter not in added}
    groups = _cut(without_adapters(model), names, new)
    at = len(groups) - (groups[-1].name == "head")
    return [*groups[:at], *(adapters if added else []), *groups[at:]]


def _cut(model: nn.Module, names: dict[nn.Parameter, str], new: set[nn.Parameter]) -> list[LayerGroup]:
    """The layer groups of a model without adapters."""
    heads = _head_paths(model)
    body = list(_pieces(model, "", frozenset(heads)))
    if new.issuperset(p for piece in body for p in piece.parameters):
        new = set()  # trained from scratch: the structure alone decides
    renewed = [piece for piece in body if piece.parameters and new.issuperset(piece.parameters)]
    ordered = _in_order([piece for piece in body if piece not in renewed])
    return _named([*ordered, renewed + [_Piece((path,), (_at(model, path),)) for path in heads]], names, new)


@dataclass
class _Step:
    """One probing step: what was before, which gradients came, at which rates."""

    before: dict[Tensor, Tensor]
    gradients: dict[nn.Parameter, Tensor | None]
    rates: dict[nn.Parameter, float]

    def moved(self, tensor: Tensor) -> bool:
        return not torch.equal(tensor.detach(), self.before[tensor])


def _probe(model: nn.Module, batch: Any, loss: LossFunction, rates: dict[nn.Parameter, float]) -> _Step:
    """Take one AdamW step without weight decay, so that a tensor moves only if a gradient reached it."""
    before: dict[Tensor, Tensor] = {t: t.detach().clone() for t in (*model.parameters(), *model.buffers())}
    model.zero_grad(set_to_none=True)
    value, _ = loss(model, to_device(batch, next(model.parameters()).device))
    if not torch.isfinite(value):
        raise ValueError(f"the loss of the probing step is {value.item()}. Check the batch and the model's weights.")
    value.backward()
    gradients = {p: p.grad for p in model.parameters()}
    groups = [{"params": [p], "lr": lr} for p, lr in rates.items()]
    if groups:
        torch.optim.AdamW(groups, weight_decay=0.0).step()
    return _Step(before, gradients, rates)


def _rates(
    model: nn.Module, phase: Phase | None, optimizer: torch.optim.Optimizer | None, lr: float
) -> dict[nn.Parameter, float]:
    """The learning rate of every parameter that a step would touch."""
    if optimizer is not None:
        return {p: float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    if phase is not None:
        return {p: lr * g.multiplier for g in phase.groups if g.multiplier > 0 for p in g.parameters}
    return {p: lr for p in model.parameters() if p.requires_grad}


def hf_loss(model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
    """The loss that a transformers model computes itself when the batch holds labels."""
    outputs = model(**batch)
    return outputs.loss, outputs


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _tensor_surprises(group: LayerGroup, model: nn.Module, step: _Step) -> Iterator[str]:
    """Tensors that trained although frozen, or did not although trainable, and why."""
    found: dict[str, list[str]] = {}
    for name in group.parameters:
        p = model.get_parameter(name)
        grad, moved = step.gradients[p], step.moved(p)
        if not p.requires_grad and moved:
            found.setdefault("frozen, but moved", []).append(name)
        elif p.requires_grad and p not in step.rates:
            found.setdefault("trainable, but in no optimizer group, so it will not move", []).append(name)
        elif p.requires_grad and grad is None:
            found.setdefault("trainable, but no gradient reached it", []).append(name)
        elif p.requires_grad and not moved and step.rates[p] > 0 and grad is not None:
            dtype = str(p.dtype).removeprefix("torch.")
            why = f"its update is below the precision of {dtype}" if grad.any() else "its gradient was exactly zero"
            found.setdefault(f"trainable, but did not move: {why}", []).append(name)
    yield from (f"{what} ({_first(names)})" for what, names in found.items())


def _mode_surprises(training: bool, modules: list[nn.Module], mode: str, batch_norm: str) -> Iterator[str]:
    """Modes that contradict what is frozen."""
    drops = any(isinstance(m, nn.Dropout) and m.p > 0 and m.training for m in modules)
    noisy = any((isinstance(m, nn.Dropout) and m.p > 0) or hasattr(m, "running_mean") for m in modules)
    if not training and batch_norm == "moving":
        yield "frozen, but its BatchNorm statistics moved: put its modules in eval()"
    if not training and drops:
        yield "frozen, but its dropout is on: put its modules in eval()"
    if training and noisy and mode == "eval":
        yield "trains in eval mode: no dropout, fixed BatchNorm statistics (from_pretrained leaves a model so)"


def _row(group: LayerGroup, model: nn.Module, step: _Step) -> GroupRow:
    """Sum up one layer group after the probing step."""
    parameters = [model.get_parameter(name) for name in group.parameters]
    modules = [m for name in group.modules for m in model.get_submodule(name).modules()]
    if group.name != "adapters":  # these lie inside the blocks
        modules = [m for m in modules if m not in adapter_modules(model)]
    means = [getattr(m, "running_mean", None) for m in modules]
    statistics = [mean for mean in means if isinstance(mean, Tensor)]
    batch_norm = ("moving" if any(map(step.moved, statistics)) else "fixed") if statistics else ""
    modes = {"train" if m.training else "eval" for m in modules}
    mode = modes.pop() if len(modes) == 1 else "mixed" if modes else "–"
    trainable = sum(p.requires_grad for p in parameters)
    surprises = (*_tensor_surprises(group, model, step), *_mode_surprises(trainable > 0, modules, mode, batch_norm))
    return GroupRow(
        name=group.name,
        tensors=len(parameters),
        size=sum(p.numel() for p in parameters),
        trainable=trainable,
        moved=sum(map(step.moved, parameters)),
        lrs=tuple(sorted({step.rates[p] for p in parameters if p in step.rates and p.requires_grad})),
        mode=mode,
        batch_norm=batch_norm,
        surprises=surprises,
    )


def what_is_training(
    target: Learner | Loop | nn.Module,
    batch: Any = None,
    *,
    strategy: Strategy | Phase | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    loss: LossFunction | None = None,
    lr: float = 1e-4,
    new_parameters: frozenset[str] = frozenset(),
) -> TrainingTable:
    """Take one training step, see which tensors moved, and take it back: the model is afterwards as before.

    Args:
        target: a learner; a training, for its present phase and what its cache will save; or any model with a `batch`.
        batch: what to step on; by default the learner's first training batch.
        strategy: show the model as this strategy's first phase (or this phase) trains it; by default as it stands.
        optimizer: take membership and rates from your own optimizer (its state stays untouched).
        loss: takes (model, batch), returns (loss, outputs); by default the learner's, or a transformers model's own.
        lr: the peak rate, where no optimizer says otherwise.
        new_parameters: as for `layer_groups`; by default the learner's.

    Raises:
        ValueError: if a bare model comes without a batch, or the loss is not finite or needs no gradient.
    """
    foretell = getattr(target.cache, "foretell", None) if isinstance(target, Loop) else None
    foretold = [f"cache: {saving}" for saving in foretell(target)] if foretell is not None else []
    if isinstance(target, Loop):
        strategy, lr = strategy or target.phases[max(0, target.position.phase)], target.settings.lr
        target = target.plain
    learner = target if isinstance(target, Learner) else None
    model: nn.Module = learner.model if learner else cast(nn.Module, target)
    if learner:
        new_parameters = new_parameters or learner.new_parameters
        batch = next(iter(learner.train.epoch(0))) if batch is None else batch
    if batch is None:
        raise ValueError("a model alone cannot take a step: pass a batch, or a Learner instead of the model.")
    phase = strategy if isinstance(strategy, Phase) else None
    adapted, known = bool(adapter_layers(model)), set(vars(model))
    with restored(model):  # a strategy may change the model: put adapters in, fill blocks with random numbers
        if strategy is not None and not isinstance(strategy, Phase):
            phase = strategy.phases(model, new_parameters)[0]
        notes = vars(model).keys() - known
        groups = layer_groups(model, new_parameters)
        if phase is not None:
            set_trainable(phase)
            set_modes(model, phase)
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError("nothing is training: every parameter has requires_grad=False.")
        step = _probe(model, batch, loss or (learner.loss if learner else hf_loss), _rates(model, phase, optimizer, lr))
        rows = tuple(_row(group, model, step) for group in groups)
    if not adapted:
        remove_adapters(model)
    for note in notes & vars(model).keys():
        delattr(model, note)
    return TrainingTable("What is training?" + (f" Phase {phase.name!r}" if phase else ""), rows, tuple(foretold))
