"""Whether the attributes of images are read as they were before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tide.evaluation.scorers.base import Reading
from tide.tables import mean


def agreement(before: Sequence[Reading], after: Sequence[Reading], n_pairs: int) -> dict[str, Any]:
    """How the readings of two sets of images differ, of which the first ``n_pairs`` are pairs.

    Returns:
        ``invalid``: the share of images without a valid object, ``before`` and ``after``. ``pairs``: how many pairs
        are valid before; of others it cannot be said what they showed. ``agree``: the share of the attributes of these
        pairs that are read as before, and ``by_attribute`` that of each; None without such pairs. An image that is
        invalid after agrees in nothing.
    """
    pairs = [(a, b) for a, b in zip(before[:n_pairs], after[:n_pairs], strict=True) if a.valid]
    shares = {
        name: mean([float(b.valid and a.attributes[name] == b.attributes[name]) for a, b in pairs])
        for name in (pairs[0][0].attributes if pairs else ())
    }
    return {
        "invalid": {"before": _invalid(before), "after": _invalid(after)},
        "pairs": len(pairs),
        "agree": mean(list(shares.values())) if pairs else None,
        "by_attribute": shares if pairs else None,
    }


def _invalid(readings: Sequence[Reading]) -> float:
    return mean([float(not each.valid) for each in readings])
