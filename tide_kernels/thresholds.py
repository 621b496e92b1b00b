"""The primitives of threshold activations in plain PyTorch: a part of `tide_kernels.reference`, the standard for all.

Conventions, beside those of `tide_kernels.reference`:

* ``threshold [rows, n_latents]``, of any layout, in the accumulation dtype of ``pre``, in which entries are compared
  with it. Token i has the row ``group[i]`` (int64), or, with a ``group`` of None, the only row. Thresholds may be
  negative and are not NaN.
* An entry passes if it is above its threshold (strictly) or NaN. ``cut [n_tokens]`` int32 adds ties: in row i, entries
  equal to their threshold pass as well up to the latent ``cut[i]``, that one included. None passes for a cut of -1.
* ``key`` of an entry: its bits as an integer if it is above 0, the largest integer if it is NaN. Keys of the entries
  of one dtype keep their order.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: The integers that hold the keys of a dtype.
KEYS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def select_above(
    pre: Tensor, threshold: Tensor, group: Tensor | None, cut: Tensor | None, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of each row that pass, ascending by index, in ``capacity <= n_latents`` places.

    A row of which more pass keeps its largest; ties go to the lowest index, and NaN, of either sign, counts as largest.
    Returns ``values [n_tokens, capacity]`` in the dtype of ``pre``, ``indices`` int32 of the same shape (unused places
    last: value 0, index -1), and ``count [n_tokens]`` int32: how many entries pass, kept or not.
    """
    n_tokens, n_latents = pre.shape
    kept = _passes(pre, threshold, group, cut)
    count = kept.sum(1, dtype=torch.int32)
    if capacity < n_latents:
        order = pre.masked_fill(~kept, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        kept &= torch.zeros_like(kept).scatter_(1, order[:, :capacity], True)
    place = torch.where(kept, kept.cumsum(1) - 1, capacity)  # all that is not kept goes to a spare last column
    columns = torch.arange(n_latents, dtype=torch.int32, device=pre.device).expand(n_tokens, -1)
    values = pre.new_zeros(n_tokens, capacity + 1).scatter_(1, place, pre)
    indices = columns.new_full((n_tokens, capacity + 1), -1).scatter_(1, place, columns)
    return values[:, :capacity].contiguous(), indices[:, :capacity].contiguous(), count


def keep_above(pre: Tensor, threshold: Tensor, group: Tensor | None, cut: Tensor | None, out: Tensor) -> Tensor:
    """Writes the entries of ``pre`` that pass to ``out``, which may be ``pre`` itself, and 0 to all other places.

    Returns ``count [n_tokens]`` int32, how many entries of each row pass.
    """
    passes = _passes(pre, threshold, group, cut)
    out.copy_(pre.masked_fill(~passes, 0))
    return passes.sum(1, dtype=torch.int32)


def _passes(pre: Tensor, threshold: Tensor, group: Tensor | None, cut: Tensor | None) -> Tensor:
    bound = threshold if group is None else threshold.index_select(0, group)
    passes = ~(pre <= bound)  # not `>`: NaN has to pass
    if cut is not None:
        columns = torch.arange(pre.shape[1], dtype=torch.int32, device=pre.device)
        passes |= (pre == bound) & (columns <= cut.unsqueeze(1))
    return passes


def keys_of(pre: Tensor) -> Tensor:
    """The key of each entry; 0 where an entry is neither above 0 nor NaN."""
    keys = pre.resolve_neg().contiguous().view(KEYS[pre.dtype])
    # Negative floats are negative integers, those of NaN included.
    return keys.masked_fill(pre.isnan(), torch.iinfo(keys.dtype).max).clamp_(min=0)


def key_histogram_(pre: Tensor, counts: Tensor, shift: int, high: Tensor | None) -> None:
    """Adds to ``counts [2^b]`` int64 how often each part of b bits, above the lowest ``shift``, occurs among the keys
    of the entries that are above 0 or NaN: ``counts[(key >> shift) % 2^b]``. With ``high`` (int64, no dimension) only
    of keys whose still higher bits, ``key >> (shift + b)``, are ``high``."""
    keys = keys_of(pre).flatten()
    bits = (len(counts) - 1).bit_length()
    counted = keys > 0
    if high is not None:
        counted &= (keys >> (shift + bits)) == high
    part = ((keys >> shift) & (len(counts) - 1)).long()
    counts.scatter_add_(0, part, counted.long())


def count_equal(pre: Tensor, value: Tensor) -> Tensor:
    """How many entries of each row are ``value`` (in the dtype of ``pre``, no dimension): [n_tokens] int32."""
    return (pre == value).sum(1, dtype=torch.int32)


def near_gradient(
    grad: Tensor,
    W_dec: Tensor,
    z: Tensor,
    pair_factor: float,
    grad_b_enc: Tensor | None,
    fired: Tensor | None,
    pre: Tensor,
    threshold: Tensor,
    group: Tensor | None,
    bandwidth: float,
    sums: Tensor,
    near: Tensor,
) -> Tensor:
    """`tide_kernels.reference.masked_gradient` of a code that follows from thresholds, without a soft count, which also
    adds up what the thresholds' own gradient needs.

    With ``dz = grad W_dec^T + pair_factor (z_i - z_partner(i))`` at all latents, adds dz to ``sums [rows, n_latents]``
    and 1 to ``near [rows, n_latents]`` int64, in the row of the token's threshold, where
    ``|pre - threshold| < bandwidth / 2``. Returns dz where z is not 0, else 0, in the dtype of z.
    """
    selected = z != 0
    dz = (grad.to(z.dtype) @ W_dec.T).to(threshold.dtype)
    if pair_factor:
        wide = z.to(dz.dtype)
        dz.add_(wide - wide.unflatten(0, (-1, 2)).flip(1).flatten(0, 1), alpha=pair_factor)
    add_near(dz, pre, threshold, group, bandwidth, sums, near)
    out = dz.to(z.dtype).masked_fill_(~selected, 0)
    if grad_b_enc is not None:
        grad_b_enc += out.sum(0, dtype=grad_b_enc.dtype)
    if fired is not None:
        fired += selected.sum(0, dtype=torch.int32)
    return out


def add_near(
    dz: Tensor,
    pre: Tensor,
    threshold: Tensor,
    group: Tensor | None,
    bandwidth: float,
    sums: Tensor,
    near: Tensor | None,
) -> None:
    """Adds up dz and, unless ``near`` is None, places where ``pre`` is within half a bandwidth of its threshold, by row
    of the thresholds."""
    bound = threshold if group is None else threshold.index_select(0, group)
    close = (pre - bound).abs() < bandwidth / 2
    if group is None:
        sums += torch.where(close, dz, 0).sum(0)
        if near is not None:
            near += close.sum(0)
        return
    sums += _by_group(torch.where(close, dz, 0), group, len(threshold))
    if near is not None:
        near += _by_group(close.to(dz.dtype), group, len(threshold)).round().long()


def _by_group(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """The sums of the rows of each group, by a product: the same bits on every run."""
    members = group == torch.arange(groups, device=group.device).unsqueeze(1)
    return members.to(values.dtype) @ values
