"""BatchTopK with thresholds: of a whole batch the ``n_tokens k`` largest heights ``h = pre / T`` above 0 stay.

T is a threshold for each latent and group of tokens, and c the cut of the heights. What stays is what JumpReLU keeps at
the thresholds ``theta = c T``, so a step is that of `tide_kernels.jumprelu` once c is known. Heights serve to find c
alone. The gradient of T is that of straight-through estimators of ``z = pre H(pre - c T)`` with a rectangular kernel of
width ``bandwidth``, where c moves with T so that as many stay. With S and near the sums of dL/dz and of places over the
places near a threshold, by row and latent::

    G = dL/dtheta = -(theta / bandwidth) S        dL/dT = c G - near (c / sum(near T)) sum(G T)

c lies a few rounding errors below the smallest height that stays: no rounding of heights or of ``c T`` keeps out one of
the largest, and all entries of equal height stay. So a handful may stay beyond ``n_tokens k``, and more where
pre-activations of 16 bits tie. Heights are in the accumulation dtype. A backend may compute pre-activations twice, for
the cut and for the code, with sums in another order: what this moves across the cut is a handful, too.

How the heights of all entries are seen depends on the regime, as in `tide_kernels.batch_topk`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tide_kernels.batch import Batch
from tide_kernels.batch_topk import Cut, DeadCode, Passes, Selection, candidates, find_cut, likely_bound, sampled
from tide_kernels.codes import Code, Compact, DenseCode, Slopes, SparseCode, Tokens
from tide_kernels.jumprelu import DenseJump, SparseJump, Thresholds, add_to, at_places, table_of
from tide_kernels.losses import full_sum, soft_count, soft_count_gradient
from tide_kernels.reference import accumulator
from tide_kernels.thresholds import add_near

# Elements of a chunk whose heights exist at once: a part of a large chunk of a GPU.
_ELEMENTS = 2**26


def batch_topk_of_heights(batch: Batch, threshold: Tensor, wanted: bool) -> Selection:
    """The selection of ``n_tokens k`` entries. ``wanted``: whether the thresholds get a gradient."""
    units = Units(threshold, batch)
    if batch.choice.regime == "sparse" and batch.x.device.type == "cpu" and batch.all_tokens:
        found = Candidates.of(batch, units, wanted)
        if found is not None:
            return found
    return Recomputed(batch, units, wanted)


class Units:
    """T as a table: what heights are measured in."""

    def __init__(self, threshold: Tensor, batch: Batch) -> None:
        self.dtype = accumulator(batch.dtype)
        self.table = table_of(threshold, batch.n_latents, self.dtype)

    def group(self, tokens: Tokens) -> Tensor | None:
        """Each token's row of the table; None for a table of one row."""
        return tokens.group if len(self.table) > 1 else None

    def heights(self, pre: Tensor, group: Tensor | None, step: int = 1) -> Tensor:
        """Of the pre-activations of each ``step``-th latent."""
        table = self.table[:, ::step]
        return pre.to(self.dtype) / (table if group is None else table.index_select(0, group))


def _factor(cut: Cut) -> Tensor:
    """c of a cut of heights: so far below it that ``c T`` is below each pre-activation whose rounded height reaches the
    cut. Finite, since a threshold of 0 must not become NaN."""
    info = torch.finfo(cut.bound.dtype)
    return cut.bound.clamp(max=info.max) * (1 - 2 * info.eps)


def _parts(pre: Tensor) -> Iterator[slice]:
    """Rows whose heights may exist at once."""
    rows = max(1, _ELEMENTS // pre.shape[1])
    return (slice(start, start + rows) for start in range(0, len(pre), rows))


class CutThresholds(Thresholds):
    """``c T``, and the sums that the gradient of T needs."""

    def __init__(self, units: Units, factor: Tensor, batch: Batch, wanted: bool) -> None:
        super().__init__(factor * units.table, batch, batch.options.bandwidth, wanted)
        self.units, self.factor, self.ranks = units.table, factor, batch.ranks
        # Where all positive entries stay, c is 0 and T gets no gradient: what is near 0 need not be coded.
        self.bound = torch.where(factor > 0, self.bound, self.table)

    def dense(self, z: Tensor, pre: Tensor, active: Tensor, group: Tensor | None) -> Code:
        return DenseCut(self, z, pre, active, group)

    def sparse(self, u: Tensor, indices: Tensor, n_latents: int, group: Tensor | None) -> Code:
        return SparseCut(self, u, indices, n_latents, group)

    def finish(self, gradient: Tensor, penalty: Tensor | None = None) -> None:
        """Adds the gradient of T."""
        sums, near = self.totals()
        by_theta = self.table * sums / -self.bandwidth
        held, along = full_sum(near * self.units), full_sum(by_theta * self.units)
        if self.ranks.several:
            held, along = self.ranks.summed(torch.stack([held, along])).unbind()
        held = held.clamp(min=torch.finfo(sums.dtype).tiny)
        add_to(gradient, self.factor * (by_theta - near * (along / held)))


class SparseCut(SparseJump):
    """A code of the places that are above their cut or near it, whose sparsity is TopK's soft count."""

    def sums(self, paired: bool, soft_eps: float) -> tuple[Tensor, Tensor]:
        return SparseCode.sums(self, paired, soft_eps)


class DenseCut(DenseJump):
    """z of a chunk beside its pre-activations; its sparsity is TopK's soft count."""

    def sums(self, paired: bool, soft_eps: float) -> tuple[Tensor, Tensor]:
        return DenseCode.sums(self, paired, soft_eps)

    def masked_gradient(
        self, grad: Tensor, W_dec: Tensor, slopes: Slopes, grad_b_enc: Tensor | None, fired: Tensor | None
    ) -> Tensor:
        out = super().masked_gradient(grad, W_dec, slopes, grad_b_enc, fired)
        if self.of.sums is not None and slopes.soft is not None:
            self._add_soft(out, slopes.soft, slopes.soft_eps, self.of.sums[0], grad_b_enc)
        return out

    def _add_soft(self, out: Tensor, slope: Tensor, soft_eps: float, sums: Tensor, grad_b_enc: Tensor | None) -> None:
        """The part of the soft count, which `near_gradient` leaves out: it is 0 where z is. A gradient of 16 bits is
        rounded once more by it; that of b_enc adds up the part as it was before."""
        for rows in _parts(out):
            soft = soft_count_gradient(self.z[rows].to(sums.dtype), out.shape[1], soft_eps).mul_(slope)
            out[rows] += soft
            if grad_b_enc is not None:
                grad_b_enc += soft.sum(0)
            group = None if self.group is None else self.group[rows]
            add_near(soft, self.pre[rows], self.of.table, group, self.of.bandwidth, sums, None)


class HeightSelection(Selection):
    """What is common to both ways to find the cut."""

    def __init__(self, batch: Batch, units: Units, cut: Cut, wanted: bool) -> None:
        self.batch, self.units, self.cut = batch, units, cut
        self.thresholds = CutThresholds(units, _factor(cut), batch, wanted)
        self.overflow = self.thresholds.overflow  # which grows in place

    def finish(self, gradient: Tensor) -> None:
        self.thresholds.finish(gradient)


class Candidates(HeightSelection):
    """From compact codes of all entries above a bound. They serve to find the cut alone: the step's own codes also hold
    what is near a threshold, which may be many times as much and is not kept."""

    def __init__(self, batch: Batch, units: Units, kept: list[tuple[Tokens, Compact]], wanted: bool) -> None:
        ops = batch.choice.ops

        def histogram(counts: Tensor, shift: int, high: Tensor | None) -> None:
            for tokens, code in kept:
                at = at_places(units.table, code.indices, units.group(tokens))
                ops.key_histogram_(code.values.to(units.dtype) / at, counts, shift, high)

        cut = find_cut(histogram, units.dtype, batch.all_tokens * batch.options.k, batch.x.device, batch.ranks)
        super().__init__(batch, units, cut, wanted)
        self.kept, self.multiplies = kept, False

    @classmethod
    def of(cls, batch: Batch, units: Units, wanted: bool) -> Candidates | None:
        """None if the bound is above the cut or, on any rank, far below it."""
        sample = Sample.of(batch, units)
        bound = sample.bound()
        kept, _ = candidates(batch, lambda tokens: (bound * units.table, units.group(tokens)))
        (failed,) = batch.ranks.totals(kept is None)
        if kept is None or failed:
            return None
        found = cls(batch, units, kept, wanted)
        if not bool(found.thresholds.factor >= bound):
            return None
        # A code that is longer than it has places is made twice, which with pre-activations at hand costs little.
        found.multiplies = sample.above(found.thresholds.bound) > batch.options.places(batch.n_latents) / 2
        return found

    def soft_count(self, soft_eps: float) -> Tensor:
        total = torch.zeros((), dtype=self.units.dtype)
        for tokens, (values, indices) in self.kept:
            at = at_places(self.thresholds.table, indices, self.units.group(tokens))
            active = values.to(self.units.dtype).masked_fill(values <= at, 0)
            total += soft_count(active, self.batch.n_latents, soft_eps)
        return total

    def chunks(self, dead: DeadCode) -> Iterator[tuple[Tokens, Code, Code | None]]:
        for tokens, _ in self.kept:
            pre = self.batch.pre_activations(tokens) if self.multiplies else None
            dead_code = dead(tokens, pre)
            yield tokens, self.thresholds.code(self.batch, tokens, pre), dead_code


class Sample(NamedTuple):
    """Some pre-activations of a batch."""

    batch: Batch
    units: Units
    pre: Tensor
    group: Tensor | None
    step: int  # from latent to latent

    @classmethod
    def of(cls, batch: Batch, units: Units) -> Sample:
        tokens, pre, step = sampled(batch)
        return cls(batch, units, pre, units.group(tokens), step)

    def bound(self) -> Tensor:
        """A height that is likely below the cut of the batch, by a margin; 0 where too few are positive."""
        return likely_bound(self.batch, self.units.heights(self.pre, self.group, self.step))

    def above(self, table: Tensor) -> float:
        """How many entries of a token are above thresholds, on average."""
        bound = table[:, :: self.step]
        passes = self.pre > (bound if self.group is None else bound.index_select(0, self.group))
        return float(passes.sum()) / max(1, len(self.pre)) * self.step


class Recomputed(HeightSelection):
    """From pre-activations that are computed in each pass."""

    def __init__(self, batch: Batch, units: Units, wanted: bool) -> None:
        self.passes = passes = Passes(batch)
        ops, most = batch.choice.ops, max(1, batch.all_tokens) * batch.options.k
        rank_histogram_ = None if batch.ranks.several else ops.rank_histogram_  # as in `tide_kernels.batch_topk`

        def histogram(counts: Tensor, shift: int, high: Tensor | None) -> None:
            for tokens, pre in passes:
                group = units.group(tokens)
                whole = passes.single is not None and pre.numel() <= _ELEMENTS
                for rows in _parts(pre):
                    heights = units.heights(pre[rows], None if group is None else group[rows])
                    if whole and high is None and rank_histogram_ is not None:
                        rank_histogram_(heights, counts, shift, most)
                    else:
                        ops.key_histogram_(heights, counts, shift, high)

        super().__init__(batch, units, find_cut(histogram, units.dtype, most, batch.x.device, batch.ranks), wanted)

    def soft_count(self, soft_eps: float) -> Tensor:
        ops, total = self.batch.choice.ops, torch.zeros((), dtype=self.units.dtype, device=self.batch.x.device)
        for tokens, pre in self.passes:
            kept = torch.empty_like(pre)
            ops.keep_above(pre, self.thresholds.table, self.units.group(tokens), None, kept)
            total += ops.code_sums(kept, False, soft_eps)[1]
        return total

    def chunks(self, dead: DeadCode) -> Iterator[tuple[Tokens, Code, Code | None]]:
        for tokens, pre in self.passes.last():
            dead_code = dead(tokens, pre)
            code = self.thresholds.code(self.batch, tokens, pre)
            del pre  # as large as any code
            yield tokens, code, dead_code
