"""Where a training computes and in which precision; what "auto" means, said in words."""

from __future__ import annotations

import gc
import os
from typing import Any

import torch
from torch import nn

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# Below this size a step on a CPU is bookkeeping, not arithmetic, and casting costs more than it saves.
AUTOCAST_MIN_PARAMETERS = 5_000_000


class DeviceError(ValueError):
    """The device or precision asked for does not exist here."""


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device to train on; "auto" takes a CUDA GPU, else Apple's mps, else the CPU.

    Raises:
        DeviceError: if the name is unknown or that device is not available here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"unknown device {name!r}; expected one of {', '.join(DEVICES)} or 'cuda:1'.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device 'cuda' was asked for, but torch sees no CUDA GPU here. Use device='auto' or 'cpu'.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r} was asked for; there are {torch.cuda.device_count()} GPUs, counted from 0.")
    if device.type == "mps" and not _has_mps():
        raise DeviceError("device 'mps' was asked for, but this is no Apple GPU. Use device='auto' or 'cpu'.")
    return device


def _cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 instructions (AVX-512 BF16 or AMX); without them bf16 is emulated, and slow."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def choose_precision(name: str, device: torch.device, model: nn.Module | None = None) -> str:
    """The arithmetic to train in: "fp32", "bf16" (autocast) or "fp16" (autocast with a gradient scaler).

    "auto" takes bf16 on a GPU that has it natively, fp16 on an older one, and fp32 elsewhere, except that a model of
    5 million parameters or more takes bf16 on a CPU with bf16 instructions.

    Raises:
        DeviceError: if the name is unknown, or fp16 is asked for where there is no scaler (CPU, mps).
    """
    if name not in PRECISIONS:
        raise DeviceError(f"unknown precision {name!r}; expected one of {', '.join(PRECISIONS)}.")
    if name == "fp16" and device.type != "cuda":
        raise DeviceError(f"precision 'fp16' needs a CUDA GPU, the device is {device.type!r}. Use 'bf16' or 'fp32'.")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu" and model is not None and _cpu_multiplies_bf16():
        size = sum(p.numel() for p in model.parameters())
        return "bf16" if size >= AUTOCAST_MIN_PARAMETERS else "fp32"
    return "fp32"


def free_memory(device: torch.device) -> int | None:
    """Free memory of the device in bytes; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory is full; a CPU and mps say it in a RuntimeError's words."""
    words = ("DefaultCPUAllocator", "MPS backend out of memory", "CUDA out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def free_cached_memory(device: torch.device) -> None:
    """Give back what Python no longer holds, and what the device's allocator keeps for later."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def describe_device(device: torch.device, precision: str) -> str:
    """One line for people: "CPU, 2 threads, bf16, 20.1 GB free"."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "mps":
        name = "Apple GPU (mps)"
    else:
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'s' if threads != 1 else ''}"
    free = free_memory(device)
    return f"{name}, {precision}" + (f", {free / 1e9:.1f} GB free" if free is not None else "")


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor inside a batch (dicts, lists, tuples, anything with `.to`) to the device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [to_device(value, device) for value in batch]
        return moved if isinstance(batch, list) else tuple(moved)
    return batch.to(device) if hasattr(batch, "to") else batch
