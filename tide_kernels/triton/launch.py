"""What all launches share: the device, its architecture, the layout of operands and the precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from tide_kernels.triton.configs import INTERPRETER, OPTIONS, Config, lookup

_FARTHEST = 2**24  # elements of a stride: offsets within a tile of 128 rows are 32 bits wide

# Triton decides it when a kernel is defined, by TRITON_INTERPRET.
INTERPRETED = bool(triton.knobs.runtime.interpret)

_compiling: ContextVar[bool] = ContextVar("compiling", default=False)


@cache
def architecture(device: torch.device) -> str:
    """``sm_90`` for a Hopper GPU, ``gfx942`` for an MI300, ``interpreter`` where kernels are interpreted."""
    if INTERPRETED:
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@cache
def processors(device: torch.device) -> int:
    """The number of multiprocessors of the device; a few in the interpreter."""
    return 2 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def config(kernel: str, tensor: Tensor, size: int) -> Config:
    """The launch configuration of ``kernel`` for operands like ``tensor``; `configs` says which size it goes by."""
    return lookup(kernel, architecture(tensor.device), tensor.dtype, size)


def options(config: Config) -> dict[str, int]:
    """The compiler's options of a configuration."""
    return {name: config[name] for name in OPTIONS if name in config}


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **keywords: Any) -> None:
    """``kernel[grid](...)`` on ``device``; an empty grid launches nothing.

    Raises:
        ValueError: a tensor has strides that the kernel does not support. Inputs pass through `contiguous`,
            `rows_contiguous` or `strided` first; outputs have to be as the kernel expects them.
    """
    if 0 in grid:
        return
    for (name, strides), value in zip(_arguments(tuple(kernel.arg_names)), arguments, strict=False):
        if isinstance(value, Tensor) and not _lies_well(value, strides):
            raise ValueError(f"{name} of {kernel.__name__} is not contiguous: pass memory of its own")
    elsewhere = device.type == "cuda" and device.index not in (None, torch.cuda.current_device())
    with torch.cuda.device(device) if elsewhere else nullcontext():
        if _compiling.get():
            kernel.warmup(*arguments, grid=grid, **keywords)
        else:
            kernel[grid](*arguments, **keywords)


@contextmanager
def compiling(threads: int | None = None) -> Iterator[None]:
    """Inside, a launch only starts to compile its kernel, on one of ``threads`` (by default, one a core).

    Everything is compiled when it ends. A kernel that does not compile raises at its first real launch, not here.
    """
    token = _compiling.set(True)
    try:
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
            yield
    finally:
        _compiling.reset(token)


@cache
def _arguments(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each argument's name, and which of its strides the kernel takes: "none", "row" or "all"."""

    def told(name: str) -> str:
        return "row" if f"stride_{name}" in names else "all" if f"{name}_inner" in names else "none"

    return [(name, told(name)) for name in names]


def _lies_well(tensor: Tensor, strides: str) -> bool:
    if tensor.is_neg():
        return False
    return strides == "all" or tensor.is_contiguous() or (strides == "row" and _has_whole_rows(tensor))


def empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a result, all of which a kernel writes. Tests fill it with NaN."""
    # Where nothing is launched, zeros: whatever is done with the result must not fail.
    return (torch.zeros if _compiling.get() else torch.empty)(shape, dtype=dtype, device=device)


def contiguous(tensor: Tensor) -> Tensor:
    """For a kernel that takes no strides: the tensor itself if it is contiguous, else a copy."""
    return tensor.resolve_neg().contiguous()


def rows_contiguous(tensor: Tensor) -> Tensor:
    """For a kernel that takes the stride of rows: the tensor itself if each row is contiguous, else a copy."""
    tensor = strided(tensor)
    return tensor if _has_whole_rows(tensor) else tensor.contiguous()


def strided(tensor: Tensor) -> Tensor:
    """For a kernel that takes all strides: a copy only if a stride is too long for it."""
    tensor = tensor.resolve_neg()
    return tensor.contiguous() if max(tensor.stride()) > _FARTHEST else tensor


def _has_whole_rows(tensor: Tensor) -> bool:
    return tensor.stride(-1) == 1 or tensor.shape[-1] == 1


def cdiv(size: int, block: int) -> int:
    """The number of blocks that cover ``size``. `triton.cdiv` does the same, but takes microseconds on the host."""
    return -(-size // block)


@cache
def cover(size: int, largest: int) -> int:
    """The block, at most ``largest`` (a power of two), that pads ``size`` the least; of equals the larger."""
    blocks = [largest >> i for i in range(4)]
    return min(blocks, key=lambda block: (cdiv(size, block) * block, -block))


def dot_precision(dtype: torch.dtype) -> str:
    """How float32 products are computed: as PyTorch computes its own."""
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"
