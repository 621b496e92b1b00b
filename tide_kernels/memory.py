"""Large tensors on a CPU, for gradients and all else of their size in a training, in memory that is kept when freed.

A step's weight gradients would be fresh memory each time, which the system maps and clears: that takes longer than the
kernels need to fill it. So the memory of a freed gradient is kept, and the next request of its size gets it. A request
that finds none of its size first gives everything that is kept back to the system, so a process never holds more of
this memory than was in use at one time. `empty_cache` gives back what is kept.

A block belongs to the storage that was made of it, so tensors that share the storage keep it in use; the end of the
storage returns it. Threads share what is kept, and a forked process has a copy of it. There is no lock: a storage may
end inside a request, or a fork may come, while it is taken. Each change is one operation on a dict or a list instead.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

_LARGE_PAGE = 2**21
_kept: dict[int, list[mmap.mmap]] = {}  # by size


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As `torch.zeros` on the CPU."""
    if _is_small(shape, dtype):
        return torch.zeros(tuple(shape), dtype=dtype)
    tensor, clear = _large(shape, dtype)
    return tensor if clear else tensor.zero_()


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As `torch.empty` on the CPU."""
    return torch.empty(tuple(shape), dtype=dtype) if _is_small(shape, dtype) else _large(shape, dtype)[0]


def empty_cache() -> None:
    """Gives back to the system the memory of freed gradients, and of other tensors of a training, that is kept for the
    next ones on a CPU."""
    _kept.clear()


def _is_small(shape: Sequence[int], dtype: torch.dtype) -> bool:
    return math.prod(shape) * dtype.itemsize < 2 * _LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE")


def _large(shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, bool]:
    """A tensor from large pages, where the system has them, and whether it is clear."""
    size = math.prod(shape) * dtype.itemsize
    block, clear = _block(size + _LARGE_PAGE)
    view = memoryview(block)  # which only the storage holds
    weakref.finalize(view, _keep, block).atexit = False
    whole = torch.frombuffer(view, dtype=torch.uint8)
    start = -whole.data_ptr() % _LARGE_PAGE
    return whole[start : start + size].view(dtype).view(tuple(shape)), clear


def _block(size: int) -> tuple[mmap.mmap, bool]:
    """Memory of so many bytes, and whether it is clear, as it is if nobody had it before."""
    try:
        return _kept[size].pop(), False
    except (KeyError, IndexError):
        empty_cache()
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without large pages
        block.madvise(mmap.MADV_HUGEPAGE)
    return block, True


def _keep(block: mmap.mmap) -> None:
    _kept.setdefault(len(block), []).append(block)
