"""Checks of two sets of embeddings whose distributions are compared."""

from __future__ import annotations

from torch import Tensor

from tide.devices import in_double
from tide.errors import TideError


def checked_sets(a: Tensor, b: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Both in float64. Raises :class:`~tide.errors.TideError`, in which the measure is called ``what``, unless they are
    ``[N, e]`` and ``[M, e]``, finite, with at least 2 rows each."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise TideError(f"embeddings are {list(a.shape)} and {list(b.shape)}; {what} needs [N, e] and [M, e]")
    if min(len(a), len(b)) < 2:
        raise TideError(f"{what} needs at least 2 images of each set, not {len(a)} and {len(b)}; give more")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise TideError(f"embeddings hold NaN or infinity, of which there is no {what}; check what made them")
    return in_double(a), in_double(b).to(in_double(a).device)
