"""The latents nearest to each, by where they fire and by what they write."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

#: Products of a block of latents with all of them that are held at a time (256 MB).
BLOCK = 2**26


def nearest(vectors: Tensor, m: int, on_block: Callable[[int], None] | None = None) -> tuple[Tensor, Tensor]:
    """The ``m`` rows of ``vectors [n, d]`` of the highest cosine with each, itself left out: their numbers ``[n, m]``
    int32 and cosines, the highest first; -1 and 0 where fewer rows are not zero. ``on_block`` gets the number of rows
    that are done."""
    return matched(vectors, vectors, m, itself=False, on_block=on_block)


def matched(
    rows: Tensor, others: Tensor, m: int, *, itself: bool = True, on_block: Callable[[int], None] | None = None
) -> tuple[Tensor, Tensor]:
    """For each of ``rows [n, d]`` the ``m`` of ``others [k, d]`` of the highest cosine; ``itself`` False leaves out the
    one of the same number."""
    a, b = F.normalize(rows.float(), dim=1), F.normalize(others.float(), dim=1)
    n, size = len(a), max(1, BLOCK // len(b))
    numbers = torch.full((n, m), -1, dtype=torch.int32)
    cosines = torch.zeros(n, m)
    silent = (b == 0).all(1)
    for first in range(0, n, size):
        product = a[first : first + size] @ b.T
        product[:, silent] = -torch.inf
        if not itself:
            product[torch.arange(len(product)), torch.arange(first, first + len(product))] = -torch.inf
        found = product.topk(min(m, len(b)), dim=1)
        part, k = slice(first, first + len(product)), found.values.shape[1]
        there = found.values.isfinite() & (a[part] != 0).any(1, keepdim=True)
        numbers[part, :k] = torch.where(there, found.indices.int(), -1)
        cosines[part, :k] = torch.where(there, found.values, 0.0)
        if on_block is not None:
            on_block(part.stop)
    return numbers, cosines
