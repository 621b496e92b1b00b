"""Where a curve changes: the abrupt change of a sampling run (Fig. 5), and when something settles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tide.errors import TideError

#: The fewest values with an inner one.
SHORTEST = 3


@dataclass(frozen=True)
class AbruptChange:
    """``index`` is the place of the dip, ``strength`` its depth as a share of the curve's whole range."""

    index: int
    strength: float


def abrupt_change(similarity: Sequence[float]) -> AbruptChange | None:
    """The deepest dip of ``similarity``, of each step with the next: where the run changes and then settles again.

    A dip's depth is its prominence: how far the curve rises on both sides before it falls below the dip again. A fall
    up to the end, as similarity shows when the last steps remove the last noise, is not a dip. Returns None without a
    dip.

    Raises :class:`~tide.errors.TideError` for fewer than three values or one that is not finite.
    """
    y = np.asarray(similarity, dtype=float)
    if len(y) < SHORTEST or not np.isfinite(y).all():
        raise TideError(f"a change needs {SHORTEST} finite values or more, not {len(y)}; draw with more steps")
    depths = [min(_rise(y[i::-1]), _rise(y[i:])) for i in range(1, len(y) - 1)]
    deepest = int(np.argmax(depths))
    if depths[deepest] <= 0:
        return None
    return AbruptChange(deepest + 1, float(depths[deepest] / (y.max() - y.min())))


def _rise(y: np.ndarray) -> float:
    """How far ``y`` rises above its first value before it falls below it."""
    below = np.flatnonzero(y < y[0])
    return float(y[: below[0] if len(below) else None].max() - y[0])


def settles_at(matches: Sequence[bool]) -> int | None:
    """The first index from which on all ``matches`` hold; None if the last does not."""
    held = None
    for i, match in enumerate(matches):
        held = (i if held is None else held) if match else None
    return held
