"""k-sparse probing: how well a linear probe that reads few features tells a concept (Gurnee et al., arXiv 2305.01610).

Unlike the AUROC of a single latent, a probe on several does not suffer from the many tokens on which a sparse latent is
0 and which therefore all tie.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tide.devices import in_double
from tide.errors import TideError
from tide.evaluation.statistics import auroc

#: Weight of |w|^2 / 2 in a probe's loss, whose other part is the mean log loss: separable concepts stay finite.
RIDGE = 1e-3
#: Newton steps of a fit at most, and halvings of each.
STEPS, HALVINGS = 50, 12
#: A fit ends where no gradient is larger.
SETTLED = 1e-8
#: The least share of a standardised feature's variance that those chosen before must leave for it to be chosen.
LEAST_LEFT = 1e-3


def choose_features(features: Tensor, masks: Tensor, n: int) -> Tensor:
    """The ``n`` features, one after the other, on which a linear regression on each concept's mask has the least
    squared error, given those before (orthogonal least squares); of equal ones the first.

    ``features [rows, n_features]`` and ``masks [rows, concepts]`` bool; returns int64 ``[concepts, n]``. A feature that
    those before it determine is taken only where nothing else is left. Raises :class:`~tide.errors.TideError` for more
    features than there are.
    """
    if not 1 <= n <= features.shape[1]:
        raise TideError(f"{n} features of a probe are asked for; there are {features.shape[1]}")
    x, y = _standardised(features.float())[0], masks.float() - masks.float().mean(0)
    left = x.T @ y / len(x)  # [features, concepts]
    norms = x.square().mean(0)[:, None].repeat(1, masks.shape[1])
    before: list[Tensor] = []
    chosen: list[Tensor] = []
    for _ in range(n):
        merit = torch.where(norms > LEAST_LEFT, left.square() / norms, -1.0)
        for index in chosen:
            merit.scatter_(0, index, -2.0)
        index = merit.argmax(0, keepdim=True)
        length = norms.gather(0, index).clamp(min=LEAST_LEFT).sqrt()
        # What this feature adds to those before it, as every other feature sees it.
        seen = x.T @ x[:, index[0]] / len(x)
        for each in before:
            seen = seen - each * each.gather(0, index)
        seen = seen / length
        left = left - seen * (left.gather(0, index) / length)
        norms = norms - seen.square()
        before.append(seen)
        chosen.append(index)
    return torch.cat(chosen).T


@dataclass(frozen=True)
class Probes:
    """A logistic regression for each concept on features of its own: ``features [concepts, m]``, and ``weights
    [concepts, m]`` of their values. A bias would not change an AUROC and is left out."""

    features: Tensor
    weights: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """``[rows, concepts]`` of ``features [rows, n_features]``."""
        return torch.einsum("rcm,cm->rc", features[:, self.features], self.weights.to(features.dtype))

    def auroc(self, features: Tensor, masks: Tensor) -> Tensor:
        """The AUROC of each concept's score for its mask, float64 ``[concepts]``; NaN for a mask of all rows or none.

        ``features [rows, n_features]``, ``masks [rows, concepts]`` bool.
        """
        return auroc(self.scores(features), masks).diagonal()


def fit_probes(features: Tensor, masks: Tensor, chosen: Tensor) -> Probes:
    """Probes on the features ``chosen [concepts, m]``, fitted by Newton's method in float64 to the mean log loss plus
    :data:`RIDGE` |w|^2 / 2, where a weight w is of its feature in units of the standard deviation.

    ``features [rows, n_features]``, ``masks [rows, concepts]`` bool.
    """
    x = in_double(features[:, chosen]).permute(1, 0, 2)  # [concepts, rows, m]
    x, deviation = _standardised(x, dim=1)
    y = in_double(masks).T.to(x.device)
    weights = _logistic(torch.cat([x, torch.ones_like(x[..., :1])], dim=2), y)[:, :-1]
    return Probes(chosen, (weights / deviation[:, 0]).to(features.device))


def _standardised(x: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """``x`` with mean 0 and standard deviation 1 along ``dim``, and that deviation; constants become 0."""
    centred = x - x.mean(dim, keepdim=True)
    deviation = centred.square().mean(dim, keepdim=True).sqrt()
    constant = deviation <= 1e-6 * x.abs().amax(dim, keepdim=True)
    deviation = deviation.masked_fill(constant, 1.0)
    return centred.masked_fill(constant, 0.0) / deviation, deviation


def _logistic(x: Tensor, y: Tensor) -> Tensor:
    """``[problems, m]``: the minimum of :func:`_loss` for each of ``x [problems, rows, m]``, ``y [problems, rows]``."""
    weights = x.new_zeros(len(x), x.shape[2])
    ridge = _ridge(x)
    loss = _loss(weights, x, y)
    for _ in range(STEPS):
        share = torch.einsum("prm,pm->pr", x, weights).sigmoid()
        gradient = torch.einsum("prm,pr->pm", x, share - y) / x.shape[1] + ridge * weights
        if float(gradient.abs().max()) < SETTLED:
            break
        curvature = (x * (share * (1 - share))[..., None]).mT @ x / x.shape[1] + torch.diag(ridge)
        step = torch.linalg.solve(curvature, gradient)
        rate = torch.ones_like(loss)
        for _ in range(HALVINGS):
            reached = _loss(weights - rate[:, None] * step, x, y)
            rate = torch.where(reached <= loss, rate, rate / 2)
        weights = weights - rate[:, None] * step
        loss = _loss(weights, x, y)
    return weights


def _loss(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``[problems]``: the mean log loss plus the penalty."""
    logits = torch.einsum("prm,pm->pr", x, weights)
    log_loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(1)
    return log_loss + (_ridge(x) * weights.square()).sum(1) / 2


def _ridge(x: Tensor) -> Tensor:
    """``[m]``: the weight of each parameter's square; that of the bias, the last one, only keeps the system regular."""
    return torch.tensor([RIDGE] * (x.shape[2] - 1) + [1e-9], dtype=x.dtype, device=x.device)
