"""Whether what was read from a disk can be the state of a training.

A hash says that a file is what was written; it does not say that a training wrote it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from ftnb.train import Training

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # what AdamW keeps for a parameter


def impossible(training: Training, names: set[str]) -> Iterator[str]:
    """What in a training that has just loaded a state no training could have come to.

    Args:
        training: has loaded the state.
        names: the parameters and buffers that it changes, which the best weights must name.
    """
    yield from _position(training)
    own: Any = training.rates.own  # read from a file: of any type
    best, peaks = training.best, [training.rates.lr, *(own.values() if isinstance(own, dict) else [None])]
    if not all(_number(peak) and 0 < peak < 1e9 for peak in peaks):
        yield "a learning rate"
    kinds = type(best.value) in (int, float, type(None)) and type(best.step) in (int, type(None))
    if not kinds or (best.value is None) != (best.step is None) or not _count(best.misses):
        yield "the best value so far"
    if best.higher_is_better is not training.learner.metrics.higher_is_better:
        yield "the direction of the metric"
    wrong = unlike(best.weights, training.state_dict(copied=False)["model"], names if best.value is not None else set())
    if wrong is not None:
        yield f"the best weights ({wrong})"
    if not all(_moments(p, kept) for p, kept in (training.optimizer.state if training.optimizer else {}).items()):
        yield "what the optimizer keeps"
    groups = {None, *(group.name for phase in training.phases for group in phase.groups)}
    if not all(
        _count(r.at) and type(r.by) is str and getattr(r.command, "group", None) in groups for r in training._later
    ):
        yield "what is planned"
    if not math.isfinite(training.clock()):
        yield "the time"


def unlike(tensors: Any, own: Mapping[str, Tensor], names: set[str]) -> str | None:
    """The first of some names whose tensor is missing or of another shape or type, or a foreign name; None if none."""
    if not isinstance(tensors, dict):
        return "none"
    for name in sorted(names | {str(key) for key in tensors}):
        one, other = tensors.get(name), own.get(name)
        if name not in names or not isinstance(one, Tensor) or other is None:
            return name
        if one.shape != other.shape or one.dtype != other.dtype:
            return name
    return None


def _position(training: Training) -> Iterator[str]:
    p = training.position
    counts = {name: value for name, value in asdict(p).items() if name != "phase"}
    yield from (f"position.{name}" for name, value in counts.items() if not _count(value))
    begun = training.optimizer is not None
    if type(p.phase) is not int or not (0 <= p.phase < len(training.phases) if begun else p.phase == -1):
        yield "position.phase"
    if _count(p.batch) and p.batch >= len(training.plain.train):
        yield "position.batch"


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _moments(parameter: Any, kept: Any) -> bool:
    if not isinstance(parameter, Tensor) or not isinstance(kept, dict) or set(kept) != MOMENTS:
        return False
    if not all(isinstance(value, Tensor) for value in kept.values()):
        return False
    same = all(
        kept[name].shape == parameter.shape and kept[name].dtype == parameter.dtype for name in MOMENTS - {"step"}
    )
    return same and kept["step"].numel() == 1 and 0 <= kept["step"].item() < 2**53
