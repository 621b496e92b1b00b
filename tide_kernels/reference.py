"""Every primitive in plain PyTorch, for any device and float dtype: the standard for the other backends.

Conventions shared by all backends:

* ``values [n_tokens, k]`` and ``indices [n_tokens, k]`` int32 are the compact code of a token. An unused
  place has index -1, and its value is ignored.
* ``z [n_tokens, n_latents]``, in the compute dtype, is the same code written out; a latent is selected
  where z is not 0 (NaN included).
* Products are summed and returned in the accumulation dtype (`accumulator`: float32, or float64 for float64
  operands); rounding to a narrower dtype is left to the caller.
* Every result is the same, bit for bit, from run to run on one machine, with one version of PyTorch and one number of
  CPU threads. All but PyTorch's matrix products is the same for any number of threads.
* No primitive holds a tensor ``[n_tokens, k, d_model]``.

The primitives of threshold activations are in `tide_kernels.thresholds`.

A backend may also bring fusions of primitives: ``encode``, ``backward_latents``, ``encoder_gradients`` and
``keep_top_with_sums_``. The reference has none, since `tide_kernels.codes` composes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tide_kernels.losses import cosine_distance, full_sum, soft_count, soft_count_gradient, squared_error
from tide_kernels.thresholds import KEYS
from tide_kernels.thresholds import count_equal as count_equal
from tide_kernels.thresholds import keep_above as keep_above
from tide_kernels.thresholds import key_histogram_ as key_histogram_
from tide_kernels.thresholds import near_gradient as near_gradient
from tide_kernels.thresholds import select_above as select_above

LAYER_NORM_EPS = 1e-6  # that of the norms inside a DiT block


class Transposed(NamedTuple):
    """The places of a code ordered by latent, as `scatter` walks them."""

    order: Tensor  # [n_tokens * k] int64: flat places, ascending by (latent, token); unused places last
    tokens: Tensor  # [n_tokens * k] int64: the token of each of them
    offsets: Tensor  # [n_latents + 1] int64: latent l owns the places offsets[l]:offsets[l + 1] of both


class Reconstruction(NamedTuple):
    """What `reconstruction_loss` returns, in the accumulation dtype unless stated otherwise."""

    squared: Tensor  # the sum over elements of (x_hat - x)^2
    distance: Tensor  # the sum over tokens of 1 - cos(x, x_hat)
    gradient: Tensor | None  # [n_tokens, d_model], in the dtype asked for
    error: Tensor | None  # [n_tokens, d_model]: x_hat - x


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over operands of ``dtype``."""
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
    # Elsewhere this is an estimate, not a measurement, from an H200's bandwidth and rate of matrix products.
    return 0.15 if device.type == "cpu" else 0.006


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for gradients as large as the weights."""
    return torch.zeros(tuple(shape), dtype=dtype, device=device)


def modulate(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    group: Tensor | None,
    layer_norm: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """``u * (1 + scale[group]) + shift[group]`` with u = x or LayerNorm(x), rounded once at the end."""
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
    """Each token's row of ``table [groups, d_model]``; without ``group`` the single row, to be broadcast."""
    return table if group is None else table.index_select(0, group)


def pre_activations(x_mod: Tensor, W_enc: Tensor, b_enc: Tensor | None) -> Tensor:
    """``x_mod W_enc^T + b_enc``, all in one dtype. The ReLU of eq. 1 is part of the selection; a
    backend may apply it here as well."""
    return F.linear(x_mod, W_enc, b_enc)


def reconstruction_loss(
    x: Tensor,
    x_hat: Tensor,
    b_dec: Tensor | None,
    mse_factor: float,
    cosine_factor: float,
    grad_dtype: torch.dtype | None,
    want_error: bool,
) -> Reconstruction:
    """The sums of eqs 13 and 14 over tokens, with ``b_dec`` still to be added to x_hat, and the gradient in x_hat,
    ``mse_factor (x_hat - x) + cosine_factor d(1 - cos)/d(x_hat)``; no gradient if ``grad_dtype`` is None."""
    x = x.to(x_hat.dtype)
    if b_dec is not None:
        x_hat = x_hat + b_dec.to(x_hat.dtype)
    error, squared = squared_error(x, x_hat)
    distance, gradient = cosine_distance(x, x_hat, cosine_factor if grad_dtype is not None else 0.0)
    if grad_dtype is not None:
        gradient = error * mse_factor if gradient is None else gradient.add_(error, alpha=mse_factor)
        gradient = gradient.to(grad_dtype)
    return Reconstruction(squared, distance, gradient, error if want_error else None)


def select(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest strictly positive entries of each row, ascending by index.

    Ties at the k-th value go to the lowest index; 0 and -0.0 are never taken; NaN, of either sign, counts as
    largest. Rows with fewer positives leave their last places unused: value 0, index -1.
    """
    n_tokens = pre.shape[0]
    candidates, columns = _candidates(pre, k)
    # As integers, the bits of non-negative floats keep their order and NaN comes last; all NaNs get one key.
    # Negative floats are negative integers, so `> 0` is the ReLU.
    keys = candidates.view(KEYS[pre.dtype])
    keys = keys.masked_fill(candidates.isnan(), torch.iinfo(keys.dtype).max)
    threshold = keys.kthvalue(keys.shape[1] - k + 1, dim=1, keepdim=True).values
    above, tied = keys > threshold, keys == threshold
    room = k - above.sum(1, keepdim=True, dtype=torch.int32)
    keep = (above | (tied & (tied.cumsum(1, dtype=torch.int32) <= room))) & (keys > 0)
    place = torch.where(keep, keep.cumsum(1) - 1, k)  # all that is not kept goes to a spare last column
    values = candidates.new_zeros(n_tokens, k + 1).scatter_(1, place, candidates)
    indices = columns.new_full((n_tokens, k + 1), -1).scatter_(1, place, columns)
    return values[:, :k].contiguous(), indices[:, :k].contiguous()


def _candidates(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A superset of each row's top k that keeps their order, [n_tokens, at least k], and its columns, int32.

    The columns are divided into groups of n // (2 k). The k-th largest of the groups' maxima is cheap to find, and it
    bounds the k-th largest entry from below, since k distinct entries reach it; about 1.3 k entries pass. On a CPU
    this takes two thirds of the time of `torch.topk` and a sort. Elsewhere the row itself is returned: the number
    of candidates would have to be read back from the device.
    """
    n_tokens, n_latents = pre.shape
    width = n_latents // (2 * k)
    if pre.device.type != "cpu" or width < 2 or not n_tokens:
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
    n_tokens, k = indices.shape
    # PyTorch's own kernel for the derivative of `gather` in its values.
    bag = torch.arange(n_tokens, dtype=indices.dtype, device=indices.device)
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows.to(dtype), W.to(dtype), indices.clamp(min=0).flatten(), bag * k, bag.repeat_interleave(k), mode=0
    )
    return products.view(n_tokens, k).masked_fill_(indices < 0, 0)


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
    # The bag after the last offset holds the unused places.
    bags = F.embedding_bag(tokens, rows.to(out.dtype), offsets, mode="sum", per_sample_weights=weights)
    out += bags[:-1]


def keep_top_(pre: Tensor, k: int) -> None:
    """Keeps what `select` takes of ``pre`` and sets everything else to 0."""
    values, indices = select(pre, k)
    # Adds rather than writes: unused places put their 0 on latent 0.
    pre.zero_().scatter_add_(1, indices.clamp_(min=0).long(), values)


def decode_dense(z: Tensor, W: Tensor) -> Tensor:
    """``z W``, [n_tokens, d_model]."""
    return (z @ W).to(accumulator(z.dtype))


def code_sums(z: Tensor, paired: bool, soft_eps: float) -> tuple[Tensor, Tensor]:
    """The sum over pairs of rows of |z_2i - z_2i+1|^2 (eq. 15; 0 unless ``paired``) and the sum over tokens
    of the soft count (eq. 16)."""
    dtype = accumulator(z.dtype)
    z = z.to(dtype)
    temporal = full_sum((z[0::2] - z[1::2]).square()) if paired else z.new_zeros(())
    return temporal, soft_count(z, z.shape[1], soft_eps)


def masked_gradient(
    grad: Tensor,
    W_dec: Tensor,
    z: Tensor,
    pair_factor: float,
    soft_factor: Tensor | None,
    soft_eps: float,
    grad_b_enc: Tensor | None,
    fired: Tensor | None,
) -> Tensor:
    """The gradient of the pre-activations, [n_tokens, n_latents] in the dtype of z: where z is not 0,
    ``grad W_dec^T + pair_factor (z_i - z_partner(i)) + soft_factor d(soft count)/dz``, else 0.

    Rows 2i and 2i + 1 are partners; A ``pair_factor`` of 0 or a ``soft_factor`` of None leaves its term out. Adds the
    column sums of the result to ``grad_b_enc`` and those of z != 0 to ``fired``.
    """
    selected = z != 0
    out = grad.to(z.dtype) @ W_dec.T
    if pair_factor or soft_factor is not None:
        out, wide = out.to(accumulator(z.dtype)), z.to(accumulator(z.dtype))
        if pair_factor:
            partner = wide.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
            out = out.add_(wide - partner, alpha=pair_factor)
        if soft_factor is not None:
            out = out.addcmul_(soft_count_gradient(wide, z.shape[1], soft_eps), soft_factor)
        out = out.to(z.dtype)
    out.masked_fill_(~selected, 0)
    if grad_b_enc is not None:
        grad_b_enc += out.sum(0, dtype=grad_b_enc.dtype)
    if fired is not None:
        fired += selected.sum(0, dtype=torch.int32)
    return out


def add_product_(out: Tensor, z: Tensor, rows: Tensor) -> None:
    """``out += z^T rows``; out is [n_latents, d_model] in the accumulation dtype; rows are rounded to z.dtype."""
    rows = rows.to(z.dtype)
    if out.dtype == z.dtype:
        out.addmm_(z.T, rows)
    else:
        out += z.T @ rows
