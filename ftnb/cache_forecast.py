"""What a trunk cache will hold and save in a training that has not begun, found out on a copy of its model."""

import shutil
from dataclasses import replace

import torch

from ftnb.devices import choose_device, free_memory
from ftnb.ledger import with_numbers
from ftnb.plan import Settings
from ftnb.step import Learner, Phase, Strategy
from ftnb.train import Training
from ftnb.trunk_cache import Saving, TrunkCache, savings
from ftnb.trunk_fill import in_words


def savings_of(
    learner: Learner, strategy: Strategy, settings: Settings, cache: TrunkCache
) -> list[tuple[Phase, Saving]]:
    """What a cache will do for each phase, tried on three examples with a copy of the model; nothing is kept.

    A model without numbers gets random ones: what is saved depends on shapes.
    """
    device = choose_device(settings.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        training = Training(replace(learner, model=with_numbers(learner.model, device)), strategy, settings)
        rows = savings(training, low=cache.low)
    return [(phase, _within(cache, saving)) for phase, saving in zip(training.phases, rows, strict=True)]


def _within(cache: TrunkCache, saving: Saving) -> Saving:
    """A saving, unless there is no room for it: then why not."""
    if saving.reason:
        return saving
    if cache.where == "disk":
        place = next(folder for folder in (cache.folder, *cache.folder.parents) if folder.exists())
        free = shutil.disk_usage(place).free
    else:
        free = free_memory(torch.device("cpu")) or 2**40
    room = int(cache.max_gb * 1e9) if cache.max_gb is not None else free // 2
    room = min(room, free) if cache.where == "disk" else room  # as `prepare_folder` and the cache itself have it
    if saving.num_bytes <= room:
        return saving
    where = "on the disk" if cache.where == "disk" else "of memory"
    reason = f"it would need {in_words(saving.num_bytes)} {where} and may take {in_words(room)}."
    return Saving(saving.phase, reason=reason)
