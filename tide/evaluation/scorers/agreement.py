"""Whether the attributes of images are read as they were before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tide.evaluation.scorers.averages import averaged
from tide.evaluation.scorers.base import Reading
from tide.tables import mean


def agreement(before: Sequence[Reading], after: Sequence[Reading], n_pairs: int) -> dict[str, Any]:
    """How the readings of two sets of images differ, of which the first ``n_pairs`` are pairs.

    Returns:
        ``invalid``: the share of images without a valid object, ``before`` and ``after``. Of the pairs that are valid
        before (of others it cannot be said what they showed) ``agree`` is the share of attributes that are read as
        before, averaged over the pairs, and ``by_attribute`` that of each; both are None without such pairs. An image
        that is invalid after agrees in nothing.
    """
    pairs = [(a, b) for a, b in zip(before[:n_pairs], after[:n_pairs], strict=True) if a.valid]
    agreeing = [
        {name: float(b.valid and value == b.attributes[name]) for name, value in a.attributes.items()} for a, b in pairs
    ]
    return {
        "invalid": {"before": _invalid(before), "after": _invalid(after)},
        "agree": averaged([mean(list(each.values())) for each in agreeing]),
        "by_attribute": {name: mean([each[name] for each in agreeing]) for name in agreeing[0]} if agreeing else None,
    }


def _invalid(readings: Sequence[Reading]) -> float:
    return mean([float(not each.valid) for each in readings])
