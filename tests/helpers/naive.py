"""The equations as written in the paper, with plain autograd: the standard for the kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class NaiveLoss(NamedTuple):
    total: Tensor
    mse: Tensor
    cosine: Tensor
    temporal: Tensor
    sparsity: Tensor
    auxk: Tensor
    whole: Tensor
    fired: Tensor


def modulate(x, scale, shift, group=None, layer_norm=False):
    """Eq. 8."""
    if layer_norm:
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    group = torch.zeros(len(x), dtype=torch.long, device=x.device) if group is None else group.long()
    if scale is not None:
        x = x * (1 + scale[group])
    return x if shift is None else x + shift[group]


def topk(pre: Tensor, k: int) -> Tensor:
    """Eqs 1, 2: the k largest of ReLU(pre) in a dense matrix. The sort is stable: ties keep their order."""
    latents = torch.where(pre > 0, pre, torch.where(pre.isnan(), pre, torch.zeros_like(pre)))
    order = latents.detach().sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.where(torch.zeros_like(pre).scatter(1, order, 1.0) > 0, latents, torch.zeros_like(pre))


def batch_topk(pre: Tensor, kept: int) -> Tensor:
    """The ``kept`` largest of all of ReLU(pre), ties to the lowest (row, latent), and every NaN."""
    return torch.where(pre.isnan(), pre, topk(pre.reshape(1, -1), kept).view_as(pre))


def jump(pre: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """JumpReLU and H(pre - threshold), both with the straight-through derivatives in the threshold alone."""
    near = ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype).detach()
    moved = (threshold - threshold.detach()) / -bandwidth * near  # 0, with the derivative of H
    active = ~(pre <= threshold)
    return torch.where(active, pre, 0) + threshold.detach() * moved, active.to(pre.dtype) + moved


def height_topk(pre: Tensor, threshold: Tensor, kept: int, bandwidth: float) -> Tensor:
    """The ``kept`` entries of all of ReLU(pre) whose ``pre / threshold`` is largest: ``pre H(pre - c threshold)``.
    The straight-through derivatives in the threshold hold as many above c: ``dc = -c sum(K dT) / sum(K T)``."""
    heights = (pre / threshold).detach()
    z = torch.where(batch_topk(heights, kept) > 0, pre, 0)
    if (z > 0).sum() < kept:
        return z
    least = heights[z > 0].min()
    near = ((pre - least * threshold).abs() < bandwidth / 2).to(pre.dtype).detach()
    kernel = (near * threshold.expand_as(pre)).sum()
    theta = least * (2 - kernel / kernel.detach()) * threshold
    return z + theta.detach() * (theta - theta.detach()) / -bandwidth * near


def rows_above(pre: Tensor, threshold: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values, indices and counts of the entries above their threshold, row by row; NaN is above and largest."""
    values, indices = pre.new_zeros(len(pre), capacity), torch.full((len(pre), capacity), -1, dtype=torch.int32)
    counts = torch.zeros(len(pre), dtype=torch.int32)
    for i, (row, bound) in enumerate(zip(pre, threshold.expand_as(pre), strict=True)):
        above = [j for j, entry in enumerate(row.tolist()) if not entry <= bound[j]]
        largest = sorted(above, key=lambda j: (not row[j].isnan(), -row[j].nan_to_num().double(), j))
        kept = torch.tensor(sorted(largest[:capacity]), dtype=torch.int64)
        counts[i], values[i, : len(kept)], indices[i, : len(kept)] = len(above), row[kept], kept.to(torch.int32)
    return values, indices, counts


def compact(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The code of a dense matrix: its nonzero entries by ascending index, then value 0 and index -1."""
    values, indices = z.new_zeros(len(z), k), torch.full((len(z), k), -1, dtype=torch.int32, device=z.device)
    for row, (out, place) in enumerate(zip(values, indices, strict=True)):
        used = (z[row] != 0).nonzero().flatten()
        out[: len(used)], place[: len(used)] = z[row, used], used.to(torch.int32)
    return values, indices


def latents(x, W_enc, b_enc, k, scale=None, shift=None, group=None, layer_norm=False) -> Tensor:
    pre = modulate(x, scale, shift, group, layer_norm) @ W_enc.T
    return topk(pre if b_enc is None else pre + b_enc, k)


def decode(values, indices, W_dec, b_dec=None):
    used = (indices >= 0).unsqueeze(-1)
    terms = torch.where(used, values.unsqueeze(-1) * W_dec[indices.clamp(min=0).long()], 0)
    return terms.sum(1) if b_dec is None else terms.sum(1) + b_dec


def misfit(x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
    """The squared error and the cosine distance (eqs 13, 14), means over elements and over tokens."""
    norms = x.norm(dim=1) * x_hat.norm(dim=1)
    defined = norms > 0
    distance = (1 - (x * x_hat).sum(1)[defined] / norms[defined]).sum() / len(x) + (~defined).to(x.dtype).mean()
    return (x - x_hat).square().mean(), distance


def tide_loss(
    x,
    W_enc,
    b_enc,
    W_dec,
    b_dec,
    k,
    *,
    scale=None,
    shift=None,
    group=None,
    target=None,
    layer_norm=False,
    paired=False,
    weights=(1.0, 1.0, 0.0, 0.0, 0.0),
    s_target=None,
    delta=0.01,
    soft_eps=0.1,
    dead=None,
    k_aux=0,
    activation="topk",
    threshold=None,
    bandwidth=0.3,
    prefixes=(),
) -> NaiveLoss:
    n_latents = len(W_enc)
    pre = modulate(x, scale, shift, group, layer_norm) @ W_enc.T
    pre = pre if b_enc is None else pre + b_enc
    if threshold is not None:
        rows = threshold[group.long()] if threshold.dim() == 2 and group is not None else threshold
    if activation == "jumprelu":
        z, active = jump(pre, rows, bandwidth)
    elif threshold is not None:
        z = height_topk(pre, rows, k * len(x), bandwidth)
    else:
        z = topk(pre, k) if activation == "topk" else batch_topk(pre, k * len(x))
    y = x if target is None else target
    misfits = []
    for m in (*prefixes, n_latents):
        x_hat = z[:, :m] @ W_dec[:m] if b_dec is None else z[:, :m] @ W_dec[:m] + b_dec
        misfits.append(torch.stack(misfit(y, x_hat)))
    mse, cosine = torch.stack(misfits).mean(0)
    zero = mse.new_zeros(())
    temporal = (z[0::2] - z[1::2]).square().sum(1).mean() if paired else zero
    s = (z.square() / (z.square() + soft_eps**2)).sum(1).mean() / n_latents
    s_target = torch.as_tensor(0.8 * k / n_latents if s_target is None else s_target, dtype=s.dtype, device=s.device)
    sparsity = torch.nn.functional.huber_loss(s, s_target, delta=delta)
    if activation == "jumprelu":
        sparsity = (active.sum(1).mean() / k - 1).square()
    auxk = zero
    if dead is not None and k_aux and dead.any():
        missing = (y - x_hat).detach()
        revived = topk(torch.where(dead, pre, torch.zeros_like(pre)), k_aux)
        auxk = (missing - revived @ W_dec).square().mean()
    terms = (mse, cosine, temporal, sparsity, auxk)
    total = sum((weight * term for weight, term in zip(weights, terms, strict=True)), zero)
    return NaiveLoss(total, *terms, misfits[-1][0], (z != 0).sum(0))
