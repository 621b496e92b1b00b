"""safetensors files: written with the mode of other files, read with every tensor checked. Pickles are never read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tide.errors import TideError
from tide.files.writing import Write
from tide.messages import one_line

#: What :func:`what_is_wrong` says of a pickle.
PICKLE = "a pickle, which is never loaded"
#: Types that may be cast into each other; torch hardly computes with its floats of 8 and 4 bits.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def tensors_writer(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Write:
    """A function that writes ``tensors``, copied to the CPU, for :func:`~tide.files.replace_files`.

    ``metadata`` goes into the file's header.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return lambda path: save_file(plain, path, metadata=metadata)


def read_tensors(path: Path, what: str = "the file") -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises :class:`~tide.errors.TideError` for any other file.

    ``what`` is what the message calls incomplete if the file is missing.

    ``path`` is the file.
    """
    if not path.is_file():
        raise TideError(f"{path} does not exist; {what} is incomplete")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise TideError(
            f"{path} is not a readable safetensors file ({what_is_wrong(path)}: {one_line(error)}); make it again"
        ) from None


def open_tensors(path: Path, what: str = "the file") -> Any:
    """A safetensors file opened without reading it (``safetensors.safe_open``); errors as :func:`read_tensors`.

    ``path`` is the file, and messages call it ``what``.
    """
    if not path.is_file():
        raise TideError(f"{path} does not exist; {what} is incomplete")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise TideError(
            f"{path} is not a readable safetensors file ({what_is_wrong(path)}: {one_line(error)}); make it again"
        ) from None


def check_tensors(
    path: Path, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], *, remedy: str, any_float: bool = False
) -> None:
    """Raises :class:`~tide.errors.TideError` unless ``tensors`` have the names, shapes and dtypes of ``like``, and are
    finite.

    Args:
        path: the file they are of, for the message.
        tensors: what was read.
        like: what it must be like; they may be on the meta device.
        remedy: the end of the message.
        any_float: accept another precision where a floating point tensor is expected.
    """
    if missing := sorted(like.keys() - tensors.keys()):
        raise TideError(f"{path} lacks {one_line(', '.join(missing))}; {remedy}")
    if further := sorted(tensors.keys() - like.keys()):
        raise TideError(f"{path} holds {one_line(', '.join(further))}, which nothing asks for; {remedy}")
    for name, wanted in like.items():
        value = tensors[name]
        if value.shape != wanted.shape:
            raise TideError(f"{path}: {name} has shape {list(value.shape)}, not {list(wanted.shape)}; {remedy}")
        cast = any_float and value.dtype in FLOATS and wanted.dtype in FLOATS
        if value.dtype != wanted.dtype and not cast:
            raise TideError(f"{path}: {name} is {_dtype(value)}, not {_dtype(wanted)}; {remedy}")
        if not is_finite(value.to(wanted.dtype)):
            raise TideError(f"{path}: {name} holds NaN or inf; {remedy}")


def is_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises :class:`OSError` if it cannot be read.

    ``path`` is read in pieces.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def what_is_wrong(path: Path) -> str:
    """Why a file is not a safetensors file: it is a pickle (bare, or torch.save's zip), truncated or foreign.

    ``path`` is a file that could not be read as one.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return "unreadable"
    # A safetensors file starts with the length of its header, whose first byte may be 0x80 too; its last ones are 0.
    bare = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[3:8] != bytes(5)
    return PICKLE if bare or start[:2] == b"PK" else "truncated or foreign"


def halved(value: Tensor) -> Tensor:
    """``value`` in float16, or in float32 where some of it is beyond float16's largest number, 65504."""
    half = value.half()
    return half if is_finite(half) or not is_finite(value) else value.float()
