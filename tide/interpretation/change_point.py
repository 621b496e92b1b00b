"""Where a curve breaks: the step after which it follows another line (Fig. 5's "abrupt change")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tide.errors import TideError

#: Points on each side of a break; two always lie on a line.
SHORTEST = 3


@dataclass(frozen=True)
class ChangePoint:
    """``index`` is the first point of the second line. ``strength`` is the share of the squared error about one line
    that two lines remove: 0 of a curve that is a line, 1 of a curve that is two."""

    index: int
    strength: float


def change_point(values: Sequence[float]) -> ChangePoint:
    """The break of ``values`` (equally spaced) with the least squared error about a line on either side of it.

    Raises :class:`~tide.errors.TideError` for fewer than six values or one that is not finite.
    """
    y = np.asarray(values, dtype=float)
    if len(y) < 2 * SHORTEST or not np.isfinite(y).all():
        raise TideError(f"a break needs {2 * SHORTEST} finite values or more, not {len(y)}; draw with more steps")
    splits = range(SHORTEST, len(y) - SHORTEST + 1)
    errors = [_error(y[:i]) + _error(y[i:]) for i in splits]
    best = int(np.argmin(errors))
    whole = _error(y)
    # Rounding leaves a trace of an error about a line that fits.
    negligible = 1e-18 * max(1.0, float(np.square(y).sum()))
    return ChangePoint(splits[best], 0.0 if whole <= negligible else float(1 - errors[best] / whole))


def _error(y: np.ndarray) -> float:
    """Squared error about the best line."""
    x = np.arange(len(y)) - (len(y) - 1) / 2
    residual = y - y.mean()
    spread = float(np.square(x).sum())
    slope = float((x * residual).sum()) / spread if spread else 0.0
    return float(np.square(residual - slope * x).sum())


def settles_at(matches: Sequence[bool]) -> int | None:
    """The first index from which on all ``matches`` hold; None if the last does not."""
    held = None
    for i, match in enumerate(matches):
        held = (i if held is None else held) if match else None
    return held
