"""The terms of the training loss on one chunk of tokens: sums, and gradients on request.

A chunk contributes plain sums; `tide_kernels.fused` divides by the counts of the whole batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SERIAL = 2**15  # PyTorch sums fewer elements than this on one thread
_ROW = 2**8


class LossWeights(NamedTuple):
    """The factors of the terms in ``total`` (eqs 7, 13-16). A term of weight 0 has no gradient.

    Attributes:
        mse, cosine: of the reconstruction (eqs 13, 14).
        temporal: of the differences within pairs (eq. 15).
        sparsity: of the soft count (eq. 16).
        auxk: of the auxiliary term on dead latents.
    """

    mse: float = 1.0
    cosine: float = 1.0
    temporal: float = 0.0
    sparsity: float = 0.0
    auxk: float = 0.0


class LossTerms(NamedTuple):
    """What `tide_loss` returns. Only ``total`` carries gradient; the other terms are unweighted. ``whole`` is the mse
    of the reconstruction by all latents, which ``mse`` is as well unless there are prefixes.

    Attributes:
        total: the weighted sum.
        mse, cosine, temporal, sparsity, auxk: the terms (eqs 13 to 16, and that of dead latents).
        fired: ``[n_latents]`` int64, on how many tokens each latent is active.
        whole: the mse by all latents.
        least: the smallest value or height that "batch_topk" kept.
        overflow: int64, tokens whose code had too few places.
    """

    total: Tensor
    mse: Tensor
    cosine: Tensor
    temporal: Tensor
    sparsity: Tensor
    fired: Tensor
    auxk: Tensor
    whole: Tensor
    least: Tensor
    overflow: Tensor


def full_sum(values: Tensor) -> Tensor:
    """The sum of all elements of a tensor of at least one dimension: the same bits for any number of CPU threads.

    PyTorch splits a long sum among threads. It does not split sums of rows: each row goes to one thread.
    """
    if values.device.type != "cpu":
        return values.sum()
    while values.dim() > 1:
        values = values.sum(-1)
    while len(values) >= _SERIAL:
        values = F.pad(values, (0, -len(values) % _ROW)).view(-1, _ROW).sum(1)
    return values.sum()


def squared_error(x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
    """The error x_hat - x, and the sum of its squares (eq. 13)."""
    error = x_hat - x
    return error, full_sum(error.square())


def misfit(
    rebuilt: Tensor, error: Tensor, factor: float, grad_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """The sum of the squares of ``rebuilt + error``, with error = x_hat - x: how far a reconstruction of the residual
    x - x_hat is off. Also ``factor`` times that sum's argument, in ``grad_dtype`` (None: no gradient). Overwrites
    ``rebuilt``."""
    difference = rebuilt.add_(error)
    squared = full_sum(difference.square())
    return squared, None if grad_dtype is None else difference.mul_(factor).to(grad_dtype)


def cosine_distance(x: Tensor, x_hat: Tensor, factor: float) -> tuple[Tensor, Tensor | None]:
    """The sum over tokens of 1 - cos(x, x_hat) (eq. 14), and ``factor`` times its gradient in x_hat.

    A token where x or x_hat is zero has cosine 0, so it counts 1, and has no gradient. The gradient is None for a
    factor of 0.
    """
    norm_x, norm_hat = (torch.linalg.vector_norm(t, dim=1, keepdim=True) for t in (x, x_hat))
    norms = norm_x * norm_hat
    defined = norms != 0  # and not `> 0`: NaN has to show
    inverse = torch.where(defined, norms.reciprocal(), 0)
    cosine = (x * x_hat).sum(1, keepdim=True) * inverse
    gradient = None
    if factor:
        pull = torch.where(defined, cosine / norm_hat.square(), 0)
        gradient = (x_hat * pull).sub_(x * inverse).mul_(factor)
    return full_sum(1 - cosine), gradient


def pair_differences(values: Tensor, indices: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """Compares compact latents with those of the other row of the pair (2i, 2i + 1) (eq. 15).

    Returns the sum over pairs of |F_2i - F_2i+1|^2, and for each active latent its value minus the partner's
    value of that latent (0 if it is not active there): half the sum's gradient in ``values``. The
    rows of ``indices`` have to ascend, unused places last with value 0, as `select` leaves them.
    """
    keys = torch.where(indices < 0, n_latents, indices)
    first, second = values[0::2], values[1::2]
    first_keys, second_keys = keys[0::2].contiguous(), keys[1::2].contiguous()
    place = torch.searchsorted(second_keys, first_keys).clamp_(max=keys.shape[1] - 1)
    shared = (second_keys.gather(1, place) == first_keys) & (first_keys < n_latents)
    differences = torch.empty_like(values)
    differences[0::2] = first - second.gather(1, place).masked_fill_(~shared, 0)
    # For each place of the second row, the first row's value of that latent. No two write to the same place.
    facing = torch.zeros_like(second).scatter_add_(1, place, first.masked_fill(~shared, 0))
    differences[1::2] = second - facing
    # A value may be 0: whether the first row has the latent does not show in `facing`.
    faced = torch.zeros_like(place).scatter_add_(1, place, shared.long())
    alone = second.masked_fill(faced != 0, 0)
    return full_sum(differences[0::2].square()) + full_sum(alone.square()), differences


def soft_count(values: Tensor, n_latents: int, soft_eps: float) -> Tensor:
    """The sum over tokens of S = (1/n) sum_j v_j^2 / (v_j^2 + e^2), the S of eq. 16."""
    squares = values.square()
    return full_sum(squares / (squares + soft_eps**2)) / n_latents


def soft_count_gradient(values: Tensor, n_latents: int, soft_eps: float) -> Tensor:
    """The gradient of `soft_count` in ``values``."""
    return values * (2 * soft_eps**2 / n_latents) / (values.square() + soft_eps**2).square()


def code_slopes(
    values: Tensor, differences: Tensor | None, pair: float, soft: Tensor | None, soft_eps: float, n_latents: int
) -> Tensor:
    """``pair`` times the differences of `pair_differences`, plus ``soft`` times `soft_count_gradient`; one of both may
    be None, which leaves its term out."""
    slopes = None if differences is None else differences * pair
    if soft is None:
        return torch.zeros_like(values) if slopes is None else slopes
    counted = soft_count_gradient(values, n_latents, soft_eps) * soft
    return counted if slopes is None else slopes + counted


def huber(difference: Tensor, delta: float) -> Tensor:
    """Huber's function (eq. 16): quadratic up to ``delta``, linear beyond. Its derivative is a clamp."""
    size = difference.abs()
    return torch.where(size <= delta, 0.5 * size.square(), delta * size - 0.5 * delta**2)
