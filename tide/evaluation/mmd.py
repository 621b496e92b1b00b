"""CMMD: the maximum mean discrepancy of two sets of CLIP embeddings (Jayasumana et al., arXiv 2401.09603)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.evaluation.embeddings import checked_sets

#: The distance is multiplied by it, as in the paper.
SCALE = 1000.0
#: Rows of each set that are compared at once: 32 MB of kernel values.
BLOCK = 2048


@torch.no_grad()
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
    a, b = (F.normalize(each, dim=1) for each in checked_sets(a, b, "CMMD"))
    n, m = (len(each) - unbiased for each in (a, b))
    gamma = 1 / (2 * sigma**2)
    within = _summed(a, a, gamma) / (len(a) * n) + _summed(b, b, gamma) / (len(b) * m)
    found = SCALE * (within - 2 * _summed(a, b, gamma) / (len(a) * len(b)))
    return found if unbiased else max(0.0, found)


def _summed(a: Tensor, b: Tensor, gamma: float) -> float:
    """The sum of ``k(a_i, b_j) - 1`` over all pairs of rows of norm 1. The ones cancel in the distance, whose digits
    they would take; of a row with itself nothing is left, so that pairs i = j need no leaving out."""
    total = 0.0
    for rows in a.split(BLOCK):
        for columns in b.split(BLOCK):
            squared = (2 - 2 * rows @ columns.T).clamp(min=0)
            total += float(torch.expm1(-gamma * squared).sum())
    return total
