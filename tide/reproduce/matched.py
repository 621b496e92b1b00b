"""Models of different sparsity knobs compared at one L0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def at_l0(l0: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """``values`` at ``target`` active latents, linear in ln L0 between the two runs around it.

    None outside of the range of ``l0``: nothing is extrapolated.
    """
    kept = [(x, y) for x, y in zip(l0, values, strict=True) if x > 0 and np.isfinite(y)]
    if not kept or not min(x for x, _ in kept) <= target <= max(x for x, _ in kept):
        return None
    xs, ys = zip(*sorted(kept), strict=True)
    return float(np.interp(np.log(target), np.log(xs), ys))
