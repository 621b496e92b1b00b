"""Devices, number types and kernel backends by name, and how much memory a device has."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

from tide.errors import TideError
from tide.ranks import launched
from tide_kernels.dispatch import backend_names, choose

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

#: Where Linux says how much memory a container may use.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def device_of(name: str | None) -> torch.device:
    """The device asked for; without a name the CUDA GPU if there is one, else the CPU.

    Raises :class:`~tide.errors.TideError` for a device that this torch cannot use here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.type != "cpu" and not hasattr(_module(device.type), "is_available")):
        raise TideError(f"device {name!r} is not supported; {_use_one()}")
    if (device.index or 0) >= _count(device.type):
        raise TideError(f"device {name!r} is not there; {_use_one()}")
    return device


def use_own_gpu() -> None:
    """Makes ``cuda`` the GPU of this process's own among those that torchrun started on this machine."""
    found = launched()
    if found is not None and torch.cuda.is_available():
        torch.cuda.set_device(found.local % torch.cuda.device_count())


def _module(kind: str) -> Any:
    """What torch has for a kind of device: ``torch.cuda``, ``torch.mps``, ``torch.xpu``, that of an extension."""
    return torch.backends.mps if kind == "mps" else getattr(torch, kind, None)


def _count(kind: str) -> int:
    """How many devices of a kind can be used."""
    module = _module(kind)
    if kind == "cpu":
        return 1
    if not hasattr(module, "is_available") or not module.is_available():
        return 0
    return 1 if kind == "mps" else int(module.device_count())


def device_names() -> list[str]:
    """Every device that can be used here, by its name."""
    kinds = ["cuda", "mps", "xpu"]
    found = torch.accelerator.current_accelerator()
    if found is not None and found.type not in kinds:  # that of an extension
        kinds.append(found.type)
    names = ["cpu"]
    for kind in kinds:
        n = _count(kind)
        names += [kind] if n == 1 else [f"{kind}:{i}" for i in range(n)]
    return names


def _use_one() -> str:
    names = device_names()
    return f"use {names[0]}" if len(names) == 1 else f"use {', '.join(names[:-1])} or {names[-1]}"


def default_dtype(device: torch.device) -> torch.dtype:
    """What a pipeline computes in unless told otherwise: bfloat16 where it is fast and always there."""
    return torch.bfloat16 if device.type in ("cuda", "xpu") else torch.float32


def in_double(x: torch.Tensor) -> torch.Tensor:
    """``x`` in float64: on its device, or on the CPU where the device has no float64 (Apple's, some of Intel's)."""
    return (x if has_float64(x.device) else x.cpu()).double()


def has_float64(device: torch.device) -> bool:
    """Whether tensors of float64 can be on the device."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type != "mps"


def device_memory(device: torch.device) -> int | None:
    """The memory of a device in bytes, or None where it cannot be known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory if torch.cuda.is_available() else None
    if device.type == "mps" and torch.backends.mps.is_available():
        return torch.mps.recommended_max_memory()
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    known = []
    with contextlib.suppress(OSError, ValueError):
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):
            known.append(int(limit.read_text()))
    return min((size for size in known if size > 0), default=None)


def check_backend(name: str, device: torch.device, n_latents: int = 64, k: int = 4) -> None:
    """Raises before any work is done if a backend asked for by name is unknown or cannot serve."""
    if name not in backend_names():
        raise TideError(f"backend {name!r} is unknown: use one of {', '.join(backend_names())}")
    choose(name, "auto", device=device, dtype=torch.float32, n_latents=n_latents, k=k)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
