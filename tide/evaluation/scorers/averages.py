"""The mean of scores of single images, and how well it is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from tide.evaluation.statistics import mean_interval
from tide.tables import mean


class Average(TypedDict):
    """``interval``: the 95 % interval of the ``mean`` over so many ``images`` (or pairs of them), by Student's t, as if
    they were independent; None for a single one."""

    mean: float
    interval: list[float] | None
    images: int


def averaged(values: Sequence[float]) -> Average | None:
    """None of no values."""
    if not values:
        return None
    interval = None if len(values) == 1 else list(mean_interval(values))
    return {"mean": mean(values), "interval": interval, "images": len(values)}
