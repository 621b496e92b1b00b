"""JumpReLU in the fused step: ``z = pre H(pre - theta)``, trained through its jump by straight-through estimators.

With a rectangular kernel of width ``bandwidth`` (Rajamanoharan et al., arXiv 2407.14435), at places near the threshold,
``|pre - theta| < bandwidth / 2``::

    dz/dtheta = -theta / bandwidth        dH/dtheta = -1 / bandwidth

and 0 elsewhere. The penalty is ``(L0 / k - 1)^2``, L0 the number of active latents in the mean over tokens. So the
gradient of the thresholds needs two sums over tokens for each of them: of dL/dz near it, and of the places near it. The
factor of the latter depends on the whole batch, and the sum does not: chunks are not kept for it.

A sparse code holds the places near the threshold beside the active ones, with value 0. A dense one keeps the
pre-activations beside z.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from tide_kernels.batch import Batch, overflowing
from tide_kernels.codes import Code, DenseCode, Slopes, SparseCode, Tokens, places_of
from tide_kernels.reference import accumulator


class Thresholds:
    """The thresholds of a step as a table, and the sums that their gradient needs."""

    def __init__(self, threshold: Tensor, batch: Batch, bandwidth: float, wanted: bool) -> None:
        self.ops, self.bandwidth = batch.choice.ops, bandwidth
        self.table = table_of(threshold, batch.n_latents, accumulator(batch.dtype))
        # The lowest pre-activations that are near. What is near by the rounded difference is above this by far less
        # than a rounding error, and some places above it are not near.
        lowest = torch.nextafter(self.table - bandwidth / 2, torch.full_like(self.table, -torch.inf))
        self.bound = lowest if wanted else self.table
        # Of dL/dz at the places near a threshold, and of these places.
        shape, device = self.table.shape, self.table.device
        zeros = torch.zeros(shape, dtype=self.table.dtype, device=device)
        self.sums = (zeros, torch.zeros(shape, dtype=torch.int64, device=device)) if wanted else None
        self.overflow = torch.zeros((), dtype=torch.int64, device=threshold.device)
        self.parts: dict[tuple[int, int], Thresholds] = {}

    def part(self, low: int, high: int) -> Thresholds:
        """Those of the latents from ``low`` up to ``high``, with sums of their own, which `totals` collects."""
        if (low, high) not in self.parts:
            part = copy(self)
            part.table = self.table[:, low:high]
            if self.sums is not None:
                sums, near = (each.new_zeros(part.table.shape) for each in self.sums)
                part.sums = sums, near
            self.parts[low, high] = part
        return self.parts[low, high]

    def totals(self) -> tuple[Tensor, Tensor]:
        """The sums, with those of the parts; to be asked for once, when all codes are used up."""
        assert self.sums is not None
        for (low, high), part in self.parts.items():
            for total, own in zip(self.sums, part.sums or (), strict=True):
                total[:, low:high] += own
        return self.sums

    def group(self, tokens: Tokens) -> Tensor | None:
        """Each token's row of the table; None for a table of one row."""
        return tokens.group if len(self.table) > 1 else None

    def code(self, batch: Batch, tokens: Tokens, pre: Tensor | None) -> Code:
        """The code of a chunk. The dense regime keeps ``pre``, or overwrites it if no gradient of thresholds is
        wanted."""
        group = self.group(tokens)
        if pre is not None and batch.choice.regime == "dense":
            z = pre if self.sums is None else torch.empty_like(pre)
            active = self.ops.keep_above(pre, self.table, group, None, z)
            return self.dense(z, pre, active.sum(), group)
        u, indices, count = batch.above(tokens, pre, self.bound, group)
        self.overflow += overflowing(count, u.shape[1])
        return self.sparse(u, indices, batch.n_latents, group)

    def dense(self, z: Tensor, pre: Tensor, active: Tensor, group: Tensor | None) -> Code:
        return DenseJump(self, z, pre, active, group)

    def sparse(self, u: Tensor, indices: Tensor, n_latents: int, group: Tensor | None) -> Code:
        return SparseJump(self, u, indices, n_latents, group)

    def finish(self, gradient: Tensor, penalty: Tensor | None) -> None:
        """Adds the gradient of the thresholds. ``penalty`` is the loss's derivative in the number of active places, a
        scalar; None for a penalty without weight."""
        sums, near = self.totals()
        total = self.table * sums
        if penalty is not None:
            total = total + penalty * near
        add_to(gradient, total / -self.bandwidth)


def add_to(gradient: Tensor, of_table: Tensor) -> None:
    """Adds the gradient of a table of thresholds to that of the thresholds which `table_of` made it of."""
    total = of_table.sum(0) if gradient.dim() < 2 else of_table
    gradient += total.sum() if gradient.dim() == 0 else total


def table_of(threshold: Tensor, n_latents: int, dtype: torch.dtype) -> Tensor:
    """Thresholds ``[]``, ``[n_latents]`` or ``[groups, n_latents]`` as ``[rows, n_latents]``."""
    rows = threshold.detach().to(dtype)
    return rows if rows.dim() == 2 else rows.expand(1, n_latents)


def at_places(table: Tensor, indices: Tensor, group: Tensor | None) -> Tensor:
    """The entry of a table ``[rows, n_latents]`` at each place of a code; any at unused places."""
    flat = indices.clamp(min=0)
    if group is not None:
        flat = flat + (group * table.shape[1]).unsqueeze(1)
    return table.flatten().index_select(0, flat.flatten()).view(indices.shape)


class SparseJump(SparseCode):
    """A code of the places that are active or near their threshold."""

    def __init__(self, of: Thresholds, u: Tensor, indices: Tensor, n_latents: int, group: Tensor | None) -> None:
        self.of, self.u, self.group = of, u, group
        self.bound = at_places(of.table, indices, group)
        used = indices >= 0
        # Not `>`: NaN is active.
        self.active = (u <= self.bound).logical_not_().logical_and_(used)
        super().__init__(of.ops, u.masked_fill(~self.active, 0), indices, n_latents)

    def sums(self, paired: bool, soft_eps: float) -> tuple[Tensor, Tensor]:
        """The second is L0 times the tokens, in place of the soft count."""
        count = self.active.sum(1).sum().to(self.sum_dtype)
        return self._pairs[0] if paired else torch.zeros_like(count), count

    def count(self, fired: Tensor) -> None:
        ones = torch.ones(len(self.values), 1, dtype=self.sum_dtype, device=fired.device)
        active, out = self.active.to(self.sum_dtype), ones.new_zeros(self.n_latents, 1)
        self.ops.scatter(active, self.transposed, ones, out)
        fired += out.squeeze(1).long()

    def part(self, low: int, high: int) -> Code:
        return self.of.part(low, high).sparse(*places_of(self.u, self.indices, low, high), high - low, self.group)

    def passed_on(self, grad_values: Tensor) -> Tensor:
        """As in `SparseCode`, after adding to the sums of the thresholds."""
        if self.of.sums is not None:
            add = self.ops.add_near_places or self._add_near_places
            thresholds = (self.of.table, self.group, self.of.bandwidth)
            add(grad_values, self.u, self.indices, self.transposed, *thresholds, *self.of.sums)
        return grad_values.masked_fill(~self.active, 0)

    def _add_near_places(
        self,
        grad_values: Tensor,
        u: Tensor,
        indices: Tensor,
        transposed: object,
        threshold: Tensor,
        group: Tensor | None,
        bandwidth: float,
        sums: Tensor,
        near: Tensor,
    ) -> None:
        """What a backend may do in one pass: see `tide_kernels.dispatch.Primitives`."""
        close = ((u - self.bound).abs() < bandwidth / 2) & (indices >= 0)
        rows = _members(group, len(threshold), len(u), sums)
        for values, out in ((grad_values.masked_fill(~close, 0), sums), (close.to(sums.dtype), near)):
            total = sums.new_zeros(self.n_latents, len(threshold))
            self.ops.scatter(values, transposed, rows, total)
            out += total.T.to(out.dtype)


def _members(group: Tensor | None, groups: int, n_tokens: int, like: Tensor) -> Tensor:
    """Whether each token is in each group, as [n_tokens, groups] of 1 and 0: rows that `scatter` adds up by group."""
    if group is None:
        return like.new_ones(n_tokens, 1)
    return (group.unsqueeze(1) == torch.arange(groups, device=group.device)).to(like.dtype)


class DenseJump(DenseCode):
    """z of a chunk beside its pre-activations."""

    def __init__(self, of: Thresholds, z: Tensor, pre: Tensor, active: Tensor, group: Tensor | None) -> None:
        super().__init__(of.ops, z)
        self.of, self.pre, self.active, self.group = of, pre, active, group

    def sums(self, paired: bool, soft_eps: float) -> tuple[Tensor, Tensor]:
        """The second is L0 times the tokens, in place of the soft count."""
        count = self.active.to(self.of.table.dtype)
        return self.ops.code_sums(self.z, True, soft_eps)[0] if paired else torch.zeros_like(count), count

    def part(self, low: int, high: int) -> Code:
        latents = slice(low, high)
        return self.of.part(low, high).dense(self.z[:, latents], self.pre[:, latents], self.active, self.group)

    def masked_gradient(
        self, grad: Tensor, W_dec: Tensor, slopes: Slopes, grad_b_enc: Tensor | None, fired: Tensor | None
    ) -> Tensor:
        if self.of.sums is None:
            return super().masked_gradient(grad, W_dec, slopes, grad_b_enc, fired)
        thresholds = (self.pre, self.of.table, self.group, self.of.bandwidth, *self.of.sums)
        return self.ops.near_gradient(grad, W_dec, self.z, slopes.pair, grad_b_enc, fired, *thresholds)
