# Exported from nbs/15_schedule.py: edit the lesson, then run `make export`.
"""Warm-up and decay as one pure function, and a test that suggests the learning rate from your own data."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ftnb.devices import to_device

__all__ = [
    "Schedule",
    "SCHEDULES",
    "WARMUP_START",
    "lr_factor",
]


Schedule = Literal["linear", "cosine", "constant"]
SCHEDULES: tuple[Schedule, ...] = ("linear", "cosine", "constant")


WARMUP_START = 0.01


def lr_factor(progress: float, *, warmup: float = 0.1, schedule: Schedule = "linear") -> float:
    """What to multiply the peak learning rate by at one point of training.

    Args:
        progress: steps done before this one over all steps of the phase, from 0 to 1; the first step's is 0.
        warmup: share of the steps spent rising from `WARMUP_START` to 1, from 0 up to (not including) 1.
        schedule: what follows: a straight line to 0, half a cosine to 0, or constant 1.

    Returns:
        A factor from 0 to 1; above 0 everywhere but at `progress` 1, which no step has.

    Raises:
        ValueError: if an argument is outside its range.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of the steps, from 0 up to but not including 1, got {warmup}.")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is steps done over all steps, from 0 to 1, got {progress}.")
    if progress < warmup:
        return WARMUP_START + (1 - WARMUP_START) * progress / warmup
    u = (progress - warmup) / (1 - warmup)
    return {"linear": 1 - u, "cosine": (1 + math.cos(math.pi * u)) / 2, "constant": 1.0}[schedule]
