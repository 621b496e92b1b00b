"""The errors that bad input, an interruption and a machine that is too small raise."""

from __future__ import annotations

import signal
import sys


class TideError(ValueError):
    """Bad input. The message is one line that names the thing and the remedy."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, once what was to be kept has been kept; the message says what that is.

    ``signal`` is the signal's number, to which a shell's exit code adds 128.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = int(number)


#: What PyTorch's allocators for the CPU say, and its arithmetic of sizes; for a GPU they have an error of their own.
_NO_MEMORY = (
    *("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "Cannot allocate memory"),
    "Storage size calculation overflowed",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the memory of the CPU or of a GPU does not suffice."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
