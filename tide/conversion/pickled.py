"""A state dict that ``torch.save`` wrote: the one kind of foreign file that is a pickle.

dictionary_learning saves nothing else. The file is read with ``torch.load(weights_only=True)``, an unpickler that makes
tensors and containers and calls nothing that the file names. All other files here are JSON and safetensors.
"""

from __future__ import annotations

import pickle
import struct
import warnings
from pathlib import Path

import torch
from torch import Tensor

from tide.errors import TideError
from tide.messages import one_line

#: What torch's restricted unpickler raises for a damaged or hostile file, each seen with one.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict on the CPU.

    Raises :class:`~tide.errors.TideError` for a missing or damaged file, and for one that holds more than tensors by
    name: nothing of it is run.
    """
    if not path.is_file():
        raise TideError(f"{path} does not exist; the SAE is incomplete")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, of versions of pickle
            found = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise TideError(
            f"{path} is not a state dict of tensors alone ({one_line(error, 120)}); nothing in it was run, save "
            "ae.state_dict() again"
        ) from None
    if not isinstance(found, dict) or not all(_is_plain(each, path) for each in found.values()):
        raise TideError(f"{path} holds something else than tensors by name; save ae.state_dict()")
    return {str(name): value.detach() for name, value in found.items()}


def _is_plain(value: object, path: Path) -> bool:
    """Whether it is a dense tensor on the CPU, no larger than its file: a view can repeat one number without end."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.itemsize <= path.stat().st_size
    )
