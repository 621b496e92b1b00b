"""Fair comparisons: edits at equal preservation and task by task, autoencoders at one L0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import Any, TypeVar

import numpy as np

from tide.studies.tasks import EditOutcome

#: Shares of images with all else kept, at which methods are compared.
LEVELS = (0.95, 0.9, 0.8, 0.7, 0.5)

Setting = TypeVar("Setting")


def best(settings: Sequence[Setting], of: Callable[[Setting], dict[str, Any]]) -> Setting:
    """The setting that most often changes to the target and keeps all else, by the figures ``of`` it; of equal ones the
    one that changes more, then the one that keeps more, then the first."""

    def merit(setting: Setting) -> tuple[float, ...]:
        found = of(setting)
        return found["both"], found["success"], found["preserved"]

    return max(settings, key=merit)


def at_preservation(curve: list[dict[str, Any]], level: float) -> dict[str, Any] | None:
    """Among the points of a curve that keep all else in at least ``level`` of the images, the one that changes most."""
    kept = [point for point in curve if point["preserved"] >= level]
    return max(kept, key=lambda point: point["success"]) if kept else None


def paired(ours: list[EditOutcome], theirs: list[EditOutcome]) -> dict[str, Any]:
    """The two methods on the same tasks: on how many only one of them changes to the target and keeps all else, and the
    p-value of the two-sided exact sign test."""
    only_ours = sum(a.changed and a.kept and not (b.changed and b.kept) for a, b in zip(ours, theirs, strict=True))
    only_theirs = sum(b.changed and b.kept and not (a.changed and a.kept) for a, b in zip(ours, theirs, strict=True))
    n = only_ours + only_theirs
    tail = sum(comb(n, i) for i in range(min(only_ours, only_theirs) + 1)) / 2**n
    return {"only_ours": only_ours, "only_theirs": only_theirs, "images": len(ours), "p": min(1.0, 2 * tail)}


def equal_preservation(
    curves: dict[str, list[dict[str, Any]]], development: dict[str, list[dict[str, Any]]] | None = None
) -> dict[str, dict[str, Any]]:
    """Level -> method -> the most changed while all else is kept in at least that share.

    With ``development``, the same strengths on development prompts, the strength is chosen there, and the figures are
    those of ``curves`` at that strength. Where no strength keeps as much, the method is left at strength 0, which keeps
    everything and changes nothing.
    """
    out: dict[str, dict[str, Any]] = {}
    for level in LEVELS:
        row: dict[str, Any] = {}
        for name, curve in curves.items():
            point = at_preservation(curve if development is None else development[name], level)
            if point is None:
                row[name] = {"success": 0.0, "factor": None}
                continue
            measured = next(each for each in curve if each["factor"] == point["factor"])
            row[name] = {
                "success": measured["success"],
                "preserved": measured["preserved"],
                "interval": measured["interval"]["success"],
                "factor": measured["factor"],
            }
        out[f"{level:g}"] = row
    return out


def at_l0(l0: Sequence[float], excess: Sequence[float], target: float) -> float | None:
    """``excess`` at ``target`` active latents, between the two runs around it.

    ``excess`` is a figure that falls to zero as latents are added, about as a power of their number: an error, the loss
    above that of the untouched model, the share not recovered. The interpolation is linear in ln L0 and ln ``excess``,
    so that a model with a run at the target has no advantage over one with runs on either side; where a value is not
    positive, it is linear in ln L0 alone.

    None outside the range of ``l0``: nothing is extrapolated.
    """
    kept = [(x, y) for x, y in zip(l0, excess, strict=True) if x > 0 and np.isfinite(y)]
    if not kept or not min(x for x, _ in kept) <= target <= max(x for x, _ in kept):
        return None
    xs, ys = (np.array(each) for each in zip(*sorted(kept), strict=True))
    at = np.log(target), np.log(xs)
    return float(np.exp(np.interp(*at, np.log(ys)))) if ys.min() > 0 else float(np.interp(*at, ys))
