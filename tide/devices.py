"""Devices, number types and kernel backends by name, and how much memory a device has."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

from tide.errors import TideError
from tide_kernels.dispatch import backend_names, choose

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

#: Where Linux says how much memory a container may use.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def device_of(name: str | None) -> torch.device:
    """The device asked for, or the GPU if there is one, or the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise TideError(f"device {name!r} is not supported; use cpu, cuda or cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TideError(f"device {name!r} is not there: PyTorch sees {torch.cuda.device_count()} GPUs; use device cpu")
    return device


def device_memory(device: torch.device) -> int | None:
    """The memory of a device in bytes, or None where it cannot be known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory if torch.cuda.is_available() else None
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
