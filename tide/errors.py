"""The error that bad input raises, and how an allocator that is out of memory is told from a bug."""

from __future__ import annotations

import sys

#: How torch's CPU allocator, its size arithmetic and CUDA's older errors say that memory is used up.
_ALLOCATOR = ("can't allocate memory", "Storage size calculation overflowed", "not enough memory", "out of memory")


class TideError(ValueError):
    """Bad input. The message is one line that names the thing and the remedy."""


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory is used up: ``MemoryError``, torch's on a GPU, or its allocator's on a CPU."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return type(error) is RuntimeError and any(said in str(error) for said in _ALLOCATOR)
