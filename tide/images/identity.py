"""Identifies the samples of a collection, so that it is not resumed on other data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tide.errors import TideError
from tide.files import file_digest
from tide.messages import one_line

#: In front of the digest of an image's pixels, which tells nothing about the file's that it may come from.
PIXELS = "pixels "


class Sample(NamedTuple):
    """One image with its caption as read: its name, and digests of 16 hexadecimal digits (or empty). That of an image
    is of its file's bytes, or after :data:`PIXELS` of the pixels of one that was given decoded."""

    name: str
    image: str
    caption: str


#: Stands for an image whose file was not read.
UNREAD = Sample("", "", "")


def digest(content: bytes | str | Tensor) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of bytes, a text or a tensor's values."""
    data: Any = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    if isinstance(content, Tensor):
        data = content.detach().cpu().flatten().view(torch.uint8).numpy()  # NumPy has no bfloat16
    return hashlib.sha256(data).hexdigest()[:16]


def file_digest_of(path: Path, name: str) -> str:
    """The digest of a file's bytes. Raises :class:`~tide.errors.TideError`, which calls it ``name``, if it cannot be
    read."""
    try:
        return file_digest(path)[:16]
    except OSError as error:
        raise TideError(f"{name} cannot be read ({error.strerror or one_line(error)}); check the path") from None


def digest_of(samples: Iterable[Sample]) -> str:
    """One digest of many samples in their order."""
    return digest(json.dumps([list(sample) for sample in samples]))


def what_changed(before: Mapping[int, Sample], now: Sequence[Sample]) -> str | None:
    """How the samples ``now`` differ from those recorded ``before`` (place in the data -> sample), or None.

    Places beyond the end of ``now`` are not compared.
    """
    for place in sorted(before):
        if place < len(now) and now[place] != before[place]:
            return _difference(before[place], now[place], {sample.name for sample in now})
    return None


def _difference(was: Sample, found: Sample, names: set[str]) -> str:
    if was.name != found.name:
        return f"{found.name} was added before {was.name}" if was.name in names else f"{was.name} is gone"
    if was.image != found.image:
        return f"{was.name} is another image"
    return f"the caption of {was.name} is another one"
