"""The Fréchet distance of two sets of embeddings, in float64 (Heusel et al., arXiv 1706.08500)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tide.evaluation.embeddings import checked_sets


@torch.no_grad()
def frechet_distance(a: Tensor, b: Tensor) -> float:
    """``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` of Gaussians fitted to ``a [N, e]`` and ``b [M, e]``.

    The means m and unbiased covariances C are float64. With the centred rows ``A = (a - m_a) / sqrt(N - 1)`` it is
    ``C_a = A^T A``, and the eigenvalues of ``C_a C_b`` are the squared singular values of ``A B^T``; so the trace of
    the square root is their sum. No covariance is squared or inverted: sets with fewer images than dimensions, whose
    covariances are singular, lose no digits.

    Returns:
        The distance, at least 0. It is biased upwards for few images; compare sets of one size.

    Raises:
        TideError: the shapes do not fit, a set has fewer than 2 rows, or values are not finite.
    """
    a, b = checked_sets(a, b, "the Fréchet distance")
    left, right = _factor(a), _factor(b)
    between = (a.mean(0) - b.mean(0)).square().sum()
    spread = left.square().sum() + right.square().sum() - 2 * torch.linalg.svdvals(left @ right.T).sum()
    return max(0.0, float(between + spread))


def _factor(rows: Tensor) -> Tensor:
    """``F [at most e, e]`` with ``F^T F`` the covariance of ``rows [N, e]``."""
    centred = (rows - rows.mean(0)) / math.sqrt(len(rows) - 1)
    return centred if len(rows) <= rows.shape[1] else torch.linalg.qr(centred, mode="r").R
