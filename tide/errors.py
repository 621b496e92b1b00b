"""Errors for bad input, interruptions and too little memory, and the package's warning."""

from __future__ import annotations

import signal
import sys


class TideError(ValueError):
    """Bad input. The message is one line that names the thing and the remedy."""


class TideWarning(UserWarning):
    """Something was asked for and had no effect. The message is one line with the likely reason."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, raised after everything worth keeping was saved; the message says what that is.

    ``signal`` is the signal's number, to which a shell's exit code adds 128.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = int(number)


#: Messages of PyTorch's CPU allocators and of its size arithmetic; a GPU's allocator has its own error type.
_NO_MEMORY = (
    *("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "Cannot allocate memory"),
    *("Storage size calculation overflowed", "MPS backend out of memory"),
)


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that a CPU or GPU ran out of memory."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
