"""CMMD: the maximum mean discrepancy of two sets of CLIP embeddings (Jayasumana et al., arXiv 2401.09603)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.evaluation.embeddings import checked_sets

#: The distance is multiplied by it, as in the paper.
SCALE = 1000.0
#: Rows of each set that are compared at once: 32 MB of kernel values.
BLOCK = 2048


class Estimates(NamedTuple):
    """Both estimates of :func:`cmmd`."""

    biased: float
    unbiased: float


def cmmd(a: Tensor, b: Tensor, sigma: float = 10.0, *, unbiased: bool = False) -> float:
    """1000 times the squared maximum mean discrepancy of ``a [N, e]`` and ``b [M, e]``, in float64.

    The rows x and y are divided by their norms; the kernel is ``k(x, y) = exp(-|x - y|^2 / (2 sigma^2))``.

    By default the biased estimator of least variance, which the authors' code computes (equation 5 of Gretton et al.,
    JMLR 13, 2012)::

        1000 (mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j))

    It is at least 0, and 0 if the sets are equal; two samples of one distribution have about
    ``1000 (1 - mean k) (1 / N + 1 / M)``. ``unbiased`` leaves out the pairs i = j of the first two means (equation 3
    there): 0 is expected of two samples of one distribution, and single values may be negative.

    The kernel is summed in blocks, so that memory does not grow with N M.

    Raises :class:`~tide.errors.TideError` if the shapes do not fit, a set has fewer than 2 rows, or values are not
    finite.
    """
    found = cmmd_estimates(a, b, sigma)
    return found.unbiased if unbiased else found.biased


@torch.no_grad()
def cmmd_estimates(a: Tensor, b: Tensor, sigma: float = 10.0) -> Estimates:
    """:func:`cmmd` by both estimators, in one pass over the pairs."""
    a, b = (F.normalize(each, dim=1) for each in checked_sets(a, b, "CMMD"))
    n, m, gamma = len(a), len(b), 1 / (2 * sigma**2)
    in_a, in_b, between = _summed_within(a, gamma), _summed_within(b, gamma), _summed(a, b, gamma) / (n * m)
    return Estimates(
        max(0.0, SCALE * (in_a / n**2 + in_b / m**2 - 2 * between)),
        SCALE * (in_a / (n * (n - 1)) + in_b / (m * (m - 1)) - 2 * between),
    )


def _summed(a: Tensor, b: Tensor, gamma: float) -> float:
    """The sum of ``k(a_i, b_j) - 1`` over all pairs of rows. The ones cancel in the distance, whose digits
    they would take."""
    return sum(_summed_block(rows, columns, gamma) for rows in a.split(BLOCK) for columns in b.split(BLOCK))


def _summed_within(a: Tensor, gamma: float) -> float:
    """As :func:`_summed` of ``a`` and itself, each pair of blocks once. A row with itself adds nothing, so that the
    pairs i = j need no leaving out."""
    blocks = a.split(BLOCK)
    return sum(
        (1 if i == j else 2) * _summed_block(blocks[i], blocks[j], gamma)
        for i in range(len(blocks))
        for j in range(i + 1)
    )


def _summed_block(rows: Tensor, columns: Tensor, gamma: float) -> float:
    lengths = rows.square().sum(1)[:, None] + columns.square().sum(1)  # 2, but for embeddings of zeros
    squared = (lengths - 2 * rows @ columns.T).clamp(min=0)
    return float(torch.expm1(-gamma * squared).sum())
