"""Identifies the samples of a collection, so that it is not resumed on other data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """One image with its caption as read: its name, and digests of 16 hexadecimal digits (or empty)."""

    name: str
    image: str
    caption: str


def digest(content: bytes | str | Tensor) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of bytes, a text or a tensor's values."""
    data: Any = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    if isinstance(content, Tensor):
        data = content.detach().cpu().flatten().view(torch.uint8).numpy()  # NumPy has no bfloat16
    return hashlib.sha256(data).hexdigest()[:16]


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
