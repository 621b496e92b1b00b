"""Models of different sparsity knobs compared at one L0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def at_l0(l0: Sequence[float], excess: Sequence[float], target: float) -> float | None:
    """``excess`` at ``target`` active latents, between the two runs around it.

    ``excess`` is what falls to zero as latents are added, about as a power of their number: an error, a loss above that
    of the untouched model, the share not recovered. It is interpolated linear in ln L0 and ln ``excess``, so that a
    model with a run at the target has no advantage over one with runs on either side; where a value is not positive,
    linear in ln L0 alone.

    None outside of the range of ``l0``: nothing is extrapolated.
    """
    kept = [(x, y) for x, y in zip(l0, excess, strict=True) if x > 0 and np.isfinite(y)]
    if not kept or not min(x for x, _ in kept) <= target <= max(x for x, _ in kept):
        return None
    xs, ys = (np.array(each) for each in zip(*sorted(kept), strict=True))
    at = np.log(target), np.log(xs)
    return float(np.exp(np.interp(*at, np.log(ys)))) if ys.min() > 0 else float(np.interp(*at, ys))
