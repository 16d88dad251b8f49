# %% [markdown]
# # Learning-rate schedules
#
# > Warm-up and decay as one pure function, and a test that suggests the learning rate from your own data.
#
# At the end you can say what warm-up buys and when it is needed, draw any schedule before using it, and find a learning rate for a new model in a minute. Runs in about 30 s on a CPU.

# %%
#| default_exp schedule

# %%
#| export
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

Schedule = Literal["linear", "cosine", "constant"]
SCHEDULES: tuple[Schedule, ...] = ("linear", "cosine", "constant")

# %%
import matplotlib.pyplot as plt

# %% [markdown]
# ## One number per step
#
# A schedule multiplies the learning rate you set (the *peak*) by a factor between 0 and 1. The factor depends only on how far training has come, $t \in [0, 1]$, so it can be drawn before the first step, needs no state to save, and goes on unchanged when somebody moves the peak while the run is alive. With a warm-up of length $w$:
#
# $$f(t) = \begin{cases} s + (1 - s)\,t / w & t < w \\ g\!\left(\dfrac{t - w}{1 - w}\right) & t \ge w \end{cases} \qquad g(u) = \begin{cases} 1 - u & \text{linear} \\ \tfrac12\,(1 + \cos \pi u) & \text{cosine} \\ 1 & \text{constant.}\end{cases}$$
#
# The warm-up starts at $s = 0.01$, not at 0: a step with rate zero costs as much as any other and changes nothing.

# %%
#| export
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
