"""Small statistics for reports."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tide.devices import in_double
from tide.errors import TideError


def wilson_interval(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion (95 % by default); without trials, all of [0, 1].

    Of ``n`` trials ``successes`` succeeded; ``z`` is the normal quantile, 1.96 for 95 %.
    """
    if not 0 <= successes <= n:
        raise TideError(f"{successes:g} successes of {n} trials are not a proportion; give 0..{n}")
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


#: The 97.5 % quantiles of Student's t with 1 to 9 degrees of freedom.
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; above 9 degrees of freedom by the expansion in their inverse (Abramowitz and
    Stegun 26.7.5), right to 2e-4."""
    if freedom < 1:
        raise TideError(f"{freedom} degrees of freedom are too few; give at least 1")
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return z + (z**3 + z) / (4 * freedom) + second + third


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of independent ``values`` by Student's t; infinite for a single one."""
    n, centre = len(values), math.fsum(values) / max(1, len(values))
    if n < 2:
        return -math.inf, math.inf
    deviation = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return centre - half, centre + half


def auroc(scores: Tensor, masks: Tensor, columns_at_once: int = 128) -> Tensor:
    """Area under the ROC curve of every score for every mask, ties counted half.

    ``scores [rows, features]``, ``masks [rows, concepts]`` bool, on one device; returns float64 ``[features,
    concepts]``, NaN for a mask of all rows or none and for a score that is NaN. From rank sums: AUROC = (sum of the
    positives' ranks - P (P + 1) / 2) / (P N), tied values sharing their mean rank.

    ``columns_at_once`` features are ranked at a time, which bounds the memory.
    """
    if scores.ndim != 2 or masks.ndim != 2 or len(scores) != len(masks):
        raise TideError(
            f"scores {list(scores.shape)} and masks {list(masks.shape)} must be [rows, features] and [rows, concepts] "
            "with the same rows"
        )
    positive = in_double(masks)
    positives = positive.sum(0)
    negatives = len(masks) - positives
    parts = []
    for part in scores.float().split(columns_at_once, dim=1):
        columns = part.T.contiguous()
        ordered = columns.sort(dim=1).values
        below = torch.searchsorted(ordered, columns, right=False)
        upto = torch.searchsorted(ordered, columns, right=True)
        mean_rank = in_double(below + upto + 1) / 2
        mean_rank.masked_fill_(columns.isnan().any(1, keepdim=True).to(mean_rank.device), torch.nan)
        parts.append(mean_rank @ positive)
    rank_sums = torch.cat(parts)
    return (rank_sums - positives * (positives + 1) / 2) / (positives * negatives)


def auroc_interval(area: float, n_positives: int, n_negatives: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of an AUROC (95 % by default) of independent positives and negatives; [0, 1] without either.

    The areas t at which ``area`` lies within ``z`` standard errors, ``|area - t| <= z sqrt(V(t))``, with the variance
    of Hanley and McNeil and n = (P + N) / 2 - 1::

        V(t) = t (1 - t) (1 + n (1 - t) / (2 - t) + n t / (1 + t)) / (P N)

    This is method 5 of Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic",
    part 2, Statistics in Medicine 25 (2006) 559-573. An area of 1 does not get an interval of no width, as it does from
    Hanley and McNeil's standard error.

    Args:
        area: the AUROC.
        n_positives, n_negatives: P and N.
        z: the normal quantile.
    """
    if not 0 <= area <= 1:
        raise TideError(f"{area:g} is not an area under a curve; give 0..1")
    if n_positives < 1 or n_negatives < 1:
        return 0.0, 1.0
    return (
        1 - _farthest(1 - area, n_positives, n_negatives, z),
        _farthest(area, n_positives, n_negatives, z),
    )


def _farthest(area: float, n_positives: int, n_negatives: int, z: float) -> float:
    """The largest t of :func:`auroc_interval`, by bisection: V(t) falls to 0 at t = 1, where only an area of 1 is."""
    n = (n_positives + n_negatives) / 2 - 1

    def reached(t: float) -> bool:
        variance = t * (1 - t) * (1 + n * (1 - t) / (2 - t) + n * t / (1 + t)) / (n_positives * n_negatives)
        return t - area <= z * math.sqrt(variance)

    low, high = area, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) else (low, middle)
    return low
