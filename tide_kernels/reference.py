"""Every primitive in plain PyTorch, for any device and float dtype: what the other backends are held to.

Conventions shared by all backends:

* ``values [n_tokens, k]`` and ``indices [n_tokens, k]`` int32 are the compact code of a token. An unused
  place has index -1; whatever value stands there is ignored.
* ``gather``, ``sampled`` and ``scatter`` add up in the accumulation dtype (`accumulator`: float32, or
  float64 for float64 operands) and return it; rounding to a narrower dtype is the caller's business.
* Every result is the same, bit for bit, from run to run.
* No primitive holds ``[n_tokens, k, d_model]``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LAYER_NORM_EPS = 1e-6  # that of the norms inside a DiT block

_KEYS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


class Transposed(NamedTuple):
    """The places of a code ordered by latent, as `scatter` walks them."""

    order: Tensor  # [n_tokens * k] int64: flat places, ascending by (latent, token); unused places last
    tokens: Tensor  # [n_tokens * k] int64: the token of each of them
    offsets: Tensor  # [n_latents + 1] int64: latent l owns the places offsets[l]:offsets[l + 1] of both


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are held in for operands of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unavailable() -> str | None:
    """Why this backend cannot run on this machine at all, or None."""
    return None


def refuses(device: torch.device, dtype: torch.dtype, n_latents: int, k: int) -> str | None:
    """Why this backend cannot serve such a problem, or None."""
    return None


def dense_above(device: torch.device) -> float:
    """The density k / n_latents above which dense products beat gathers, by the kind of device alone."""
    # CPU: whole `tide_loss` steps, float32, one thread of an AVX-512 EPYC, torch 2.13, break even at a
    # density of 0.22 for d_model = 192, n_latents = 3072 and of 0.10 for d_model = 1152, n_latents = 18432.
    # Elsewhere an estimate, not a measurement: an H200's gather bandwidth against its matrix products.
    return 0.15 if device.type == "cpu" else 0.006


def modulate(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    group: Tensor | None,
    layer_norm: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """``u * (1 + scale[group]) + shift[group]`` with u = x or LayerNorm(x), rounded once, at the end."""
    out = normalised(x, layer_norm)
    if scale is not None:
        out = out * (1 + rows_of(scale, group).to(out.dtype))
    if shift is not None:
        out = out + rows_of(shift, group).to(out.dtype)
    return out.to(out_dtype)


def normalised(x: Tensor, layer_norm: bool) -> Tensor:
    """x, or LayerNorm(x) without affine, in the accumulation dtype."""
    x = x.to(accumulator(x.dtype))
    return F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS) if layer_norm else x


def rows_of(table: Tensor, group: Tensor | None) -> Tensor:
    """Each token's row of ``table [groups, d_model]``; without groups the single row, to be broadcast."""
    return table if group is None else table.index_select(0, group)


def select(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest strictly positive entries of each row, ascending by index.

    Ties at the k-th value go to the lowest index; 0 and -0.0 are never taken; NaN, of either sign, counts as
    largest. Rows with fewer positives leave their last places unused: value 0, index -1.
    """
    n_tokens = pre.shape[0]
    candidates, columns = _candidates(pre, k)
    # The bits of non-negative floats are ordered as integers, which puts NaN where the contract wants it as
    # soon as all NaNs share one key; negative floats are negative integers, so `> 0` is the ReLU.
    keys = candidates.view(_KEYS[pre.dtype])
    keys = keys.masked_fill(candidates.isnan(), torch.iinfo(keys.dtype).max)
    threshold = keys.kthvalue(keys.shape[1] - k + 1, dim=1, keepdim=True).values
    above, tied = keys > threshold, keys == threshold
    room = k - above.sum(1, keepdim=True, dtype=torch.int32)
    keep = (above | (tied & (tied.cumsum(1, dtype=torch.int32) <= room))) & (keys > 0)
    place = torch.where(keep, keep.cumsum(1) - 1, k)  # what is not kept meets in a spare last column
    values = candidates.new_zeros(n_tokens, k + 1).scatter_(1, place, candidates)
    indices = columns.new_full((n_tokens, k + 1), -1).scatter_(1, place, columns)
    return values[:, :k].contiguous(), indices[:, :k].contiguous()


def _candidates(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A superset of each row's top k that keeps their order, [n_tokens, at least k], and its columns, int32.

    Of the maxima of n // (2 k) wide column groups the k-th largest bounds the k-th largest entry from below,
    since k distinct entries reach it, and it is cheap to find; about 1.3 k entries pass. On a CPU that takes
    two thirds of the time of `torch.topk` and a sort. Elsewhere the row itself is returned: the number of
    candidates would have to be read back from the device.
    """
    n_tokens, n_latents = pre.shape
    width = n_latents // (2 * k)
    if pre.device.type != "cpu" or width < 2:
        return pre, torch.arange(n_latents, dtype=torch.int32, device=pre.device).expand(n_tokens, -1)
    pre = pre.contiguous()
    n_groups = n_latents // width
    maxima = pre[:, : n_groups * width].unflatten(1, (width, n_groups)).amax(1)
    bound = maxima.kthvalue(n_groups - k + 1, dim=1, keepdim=True).values
    info = torch.finfo(pre.dtype)
    bound.clamp_(min=info.smallest_normal * info.eps)  # the least positive number: the ReLU
    places = pre.lt(bound).logical_not_().view(-1).nonzero().squeeze(1)  # not `ge`: NaN has to pass
    row = places // n_latents
    count = torch.bincount(row, minlength=n_tokens)
    room = max(k, int(count.max()))
    start = torch.arange(0, n_tokens * room, room) - (count.cumsum(0) - count)
    slot = torch.arange(len(places)) + start.index_select(0, row)
    candidates = pre.new_zeros(n_tokens * room)
    candidates[slot] = pre.view(-1).index_select(0, places)
    columns = torch.full((n_tokens * room,), -1, dtype=torch.int32)
    columns[slot] = (places - row * n_latents).to(torch.int32)
    return candidates.view(n_tokens, room), columns.view(n_tokens, room)


def gather(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """``out_i = sum_j values_ij W[indices_ij]``, [n_tokens, d_model]."""
    dtype = accumulator(W.dtype)
    weights = values.to(dtype).masked_fill(indices < 0, 0)
    return F.embedding_bag(indices.clamp(min=0), W.to(dtype), mode="sum", per_sample_weights=weights)


def sampled(rows: Tensor, W: Tensor, indices: Tensor) -> Tensor:
    """``out_ij = <rows_i, W[indices_ij]>``, [n_tokens, k]; 0 at unused places."""
    dtype = accumulator(W.dtype)
    # The derivative of `gather` in its values; asking autograd for it runs PyTorch's own kernel.
    with torch.enable_grad():
        weights = torch.zeros(indices.shape, dtype=dtype, device=indices.device, requires_grad=True)
        table = W.detach().to(dtype)
        out = F.embedding_bag(indices.clamp(min=0), table, mode="sum", per_sample_weights=weights)
    (products,) = torch.autograd.grad(out, weights, rows.to(dtype))
    return products.masked_fill_(indices < 0, 0)


def transpose(indices: Tensor, n_latents: int) -> Transposed:
    """Orders the places of a code by latent, tokens ascending within each."""
    latents = torch.where(indices < 0, n_latents, indices).flatten()
    latents, order = latents.sort(stable=True)
    bounds = torch.arange(n_latents + 1, dtype=latents.dtype, device=latents.device)
    return Transposed(order, order // indices.shape[1], torch.searchsorted(latents, bounds))


def scatter(values: Tensor, transposed: Transposed, rows: Tensor, out: Tensor) -> None:
    """``out_l += sum over the tokens i that hold l of values_i rows_i``; out is [n_latents, d_model]."""
    order, tokens, offsets = transposed
    weights = values.to(out.dtype).flatten().index_select(0, order)
    # The bag behind the last offset holds the unused places.
    bags = F.embedding_bag(tokens, rows.to(out.dtype), offsets, mode="sum", per_sample_weights=weights)
    out += bags[:-1]
