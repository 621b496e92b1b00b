"""BatchTopK: the ``n_tokens k`` largest positive entries of a whole batch, exactly, over all its chunks.

The entries that stay are those above one value, and of those equal to it the first by (row, latent). That value, the
`Cut`, follows from a histogram of the entries' keys (`tide_kernels.thresholds`), taken in one pass for 16 bits and in
two for float32. How the histogram sees all entries depends on the regime:

* `Candidates`, the sparse regime on a CPU: a bound that is likely a little below the cut comes from a sample of the
  batch. All chunks are coded above it, once; the histogram and the selection read these short codes alone.
* `Recomputed`, everything else, and where the bound turns out to be too high: each pass computes the pre-activations of
  each chunk again. A single chunk's are computed once. Nothing waits for a GPU.

Ranks add up their histograms, so that all find the same cut. Ties at it go to the lowest (token, latent) of all ranks:
those that share the tokens know how many ties the ranks below them hold, those that share the latents how many each
token has on the ranks below.

With thresholds the largest heights stay instead: `tide_kernels.heights`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tide_kernels.batch import Batch, overflowing
from tide_kernels.codes import Code, Compact, DenseCode, SparseCode, Tokens
from tide_kernels.dispatch import Primitives
from tide_kernels.losses import soft_count
from tide_kernels.ranks import ALONE, Group, Ranks
from tide_kernels.reference import accumulator
from tide_kernels.thresholds import KEYS

#: The parts of a key that are counted one after the other: the bits below each, and its own.
_ROUNDS = {
    torch.float16: ((0, 15),),
    torch.bfloat16: ((0, 15),),
    torch.float32: ((15, 16), (0, 15)),
    torch.float64: ((47, 16), (31, 16), (15, 16), (0, 15)),
}
# The sample: tokens and latents. Its rank is off by a few percent, less than the candidates' margin. A bound that is
# too high nevertheless costs time alone.
_SAMPLE_TOKENS, _SAMPLE_LATENTS, _MARGIN = 64, 2048, 1.25
# Candidates for each entry that stays, above which they take more memory than they save time.
MOST_CANDIDATES = 4

#: Adds the keys of all entries to counts: the arguments of `key_histogram_` after its first.
Histogram = Callable[[Tensor, int, Tensor | None], None]

#: The code of a chunk's dead latents, from its tokens and, if they exist, its pre-activations.
DeadCode = Callable[[Tokens, Tensor | None], Code | None]


class Cut(NamedTuple):
    """Which entries of a batch stay."""

    least: Tensor  # the smallest value that stays, a scalar in the dtype of pre-activations; 0 if all positive ones do
    bound: Tensor  # what is above it stays, a scalar in the accumulation dtype
    ties: Tensor  # how many entries of this rank's tokens equal to the bound stay as well, a scalar int64

    def table(self, n_latents: int) -> Tensor:
        """The bound as a threshold of the primitives."""
        return self.bound.expand(1, n_latents)


def find_cut(histogram: Histogram, dtype: torch.dtype, wanted: int, device: torch.device, ranks: Ranks = ALONE) -> Cut:
    """The cut that leaves the ``wanted`` (at least 1) largest entries of all ranks above 0, and all NaN. ``histogram``
    counts this rank's."""
    need = torch.full((1,), wanted, dtype=torch.int64, device=device)
    high: Tensor | None = None
    enough = found = own = need
    for shift, bits in _ROUNDS[dtype]:
        own_counts = torch.zeros(2**bits, dtype=torch.int64, device=device)
        histogram(own_counts, shift, None if high is None else high.squeeze(0))
        own_counts = ranks.latents.summed(own_counts)
        counts = ranks.tokens.summed(own_counts)
        reached = counts.flip(0).cumsum(0)
        place = (reached >= need).int().argmax().view(1)
        part = len(counts) - 1 - place
        if high is None:
            high, enough = part, reached[-1:] >= need
        else:
            high = (high << bits) + part
        found, own = counts.gather(0, part), own_counts.gather(0, part)
        need = need - (reached.gather(0, place) - found)
    assert high is not None
    least = torch.where(enough, high, 0).to(KEYS[dtype]).view(dtype)
    bound = least.to(accumulator(dtype))
    # Where all entries equal to the least stay, none of them has to be counted.
    whole = need == found
    below = torch.nextafter(bound, torch.zeros_like(bound))
    bound = torch.where(enough & whole, below, bound)
    bound = torch.where(bound.isnan(), torch.inf, bound)
    if ranks.tokens.several:
        need = (need - ranks.tokens.of_lower(own)).clamp(min=0).minimum(own)
    ties = torch.where(enough & ~whole & ~least.isnan(), need, 0)
    return Cut(least.squeeze(0), bound.squeeze(0), ties.squeeze(0))


class _Ties:
    """Deals the ties of a cut to the rows of all chunks in turn."""

    def __init__(self, ops: Primitives, cut: Cut, latents: Group = ALONE.latents) -> None:
        self.ops, self.value, self.left, self.latents = ops, cut.least, cut.ties, latents
        self.none = cut.ties.device.type == "cpu" and not int(cut.ties)

    def columns(self, pre: Tensor) -> Tensor | None:
        """The last column of each row of which a tie stays, as the primitives' ``cut``."""
        if self.none:
            return None
        ties = self.ops.count_equal(pre, self.value).long()
        stays = self._dealt(ties)
        parted = ((stays > 0) & (stays < ties)).int().argmax().view(1)  # of one row at most some stay and some do not
        places = (pre.index_select(0, parted).squeeze(0) == self.value).cumsum(0)
        last = (places >= stays.gather(0, parted)).int().argmax()
        columns = torch.where(stays == ties, pre.shape[1] - 1, last)
        return torch.where(stays == 0, -1, columns).to(torch.int32)

    def _dealt(self, ties: Tensor) -> Tensor:
        """How many of the ties in each row stay."""
        if not self.latents.several:
            stays = (self.left - (ties.cumsum(0) - ties)).clamp(min=0).minimum(ties)
            self.left = self.left - stays.sum()
            return stays
        each = self.latents.gathered(ties)
        before = each.sum(0).cumsum(0) - each[self.latents.number :].sum(0)
        stays = (self.left - before).clamp(min=0).minimum(ties)
        self.left = (self.left - each.sum()).clamp(min=0)
        return stays


class Selection:
    """The codes of a batch, chunk by chunk."""

    cut: Cut
    overflow: Tensor  # rows with more entries than places, of the chunks so far

    def soft_count(self, soft_eps: float) -> Tensor:
        """The sum of the soft counts of this rank's codes."""
        raise NotImplementedError

    def chunks(self, dead: DeadCode) -> Iterator[tuple[Tokens, Code, Code | None]]:
        """For each chunk its tokens, its code and that of its dead latents."""
        raise NotImplementedError

    def finish(self, gradient: Tensor) -> None:
        """Adds the gradient of the thresholds, once all chunks' codes are used up; only of a selection by heights."""
        raise NotImplementedError


def batch_topk(batch: Batch) -> Selection:
    """The selection of ``n_tokens k`` entries."""
    if batch.choice.regime == "sparse" and batch.x.device.type == "cpu" and batch.all_tokens:
        candidates = Candidates.of(batch)
        if candidates is not None:
            return candidates
    return Recomputed(batch)


class Candidates(Selection):
    """From compact codes of all entries above a bound."""

    def __init__(self, batch: Batch, kept: list[tuple[Tokens, Compact]]) -> None:
        self.batch, wanted = batch, batch.all_tokens * batch.options.k
        ops, device = batch.choice.ops, batch.x.device

        def histogram(counts: Tensor, shift: int, high: Tensor | None) -> None:
            for _, code in kept:
                ops.key_histogram_(code.values, counts, shift, high)

        self.cut = find_cut(histogram, batch.dtype, wanted, device, batch.ranks)
        ties = _Ties(ops, self.cut, batch.ranks.latents)
        for place, (tokens, code) in enumerate(kept):
            kept[place] = tokens, self._selected(code, ties)
        self.kept = kept
        self.overflow = torch.zeros((), dtype=torch.int64, device=device)

    @classmethod
    def of(cls, batch: Batch) -> Candidates | None:
        """None if the bound is above the cut or, on any rank, far below it."""
        bound = sampled_bound(batch)
        kept, found = candidates(batch, lambda tokens: (bound.expand(1, batch.n_latents), None))
        found, failed = batch.ranks.totals(found, kept is None)
        if kept is None or failed or (found < batch.all_tokens * batch.options.k and float(bound)):
            return None
        return cls(batch, kept)

    def _selected(self, code: Compact, ties: _Ties) -> Compact:
        """What stays of a chunk's candidates, in places for the longest row."""
        ops, width = self.batch.choice.ops, code.values.shape[1]
        places = (self.cut.table(width), None, ties.columns(code.values), width)
        values, columns, count = ops.select_above(code.values, *places)
        longest = max(1, int(count.max()))
        values, columns = values[:, :longest].contiguous(), columns[:, :longest]
        indices = code.indices.gather(1, columns.clamp(min=0).long()).masked_fill_(columns < 0, -1)
        return Compact(values, indices)

    def soft_count(self, soft_eps: float) -> Tensor:
        dtype, n_latents = accumulator(self.batch.dtype), self.batch.n_latents
        counts = (soft_count(code.values.to(dtype), n_latents, soft_eps) for _, code in self.kept)
        return sum(counts, torch.zeros((), dtype=dtype))

    def chunks(self, dead: DeadCode) -> Iterator[tuple[Tokens, Code, Code | None]]:
        for tokens, code in self.kept:
            yield tokens, code.unpack(self.batch.choice, self.batch.n_latents), dead(tokens, None)


def candidates(
    batch: Batch, bound: Callable[[Tokens], tuple[Tensor, Tensor | None]]
) -> tuple[list[tuple[Tokens, Compact]] | None, int]:
    """The tokens and codes of all chunks above ``bound`` (a table and each token's row of it), and how many entries
    these hold. None for more than `MOST_CANDIDATES`."""
    kept: list[tuple[Tokens, Compact]] = []
    found = 0
    for start in batch.starts:
        tokens = batch.tokens(start)
        values, indices, count = batch.above(tokens, None, *bound(tokens))
        found += int(count.sum())
        if found > MOST_CANDIDATES * batch.n_tokens * batch.options.k:
            return None, found
        kept.append((tokens, Compact(values, indices)))
    return kept, found


def sampled_bound(batch: Batch) -> Tensor:
    """A value that is likely below the cut of a batch, by a margin; 0 where the sample has too few positive entries."""
    return likely_bound(batch, sampled(batch)[1])


def sampled(batch: Batch) -> tuple[Tokens, Tensor, int]:
    """Some tokens of a batch, the pre-activations of each so many-th latent, and that step from latent to latent."""
    tokens = batch.sample(_SAMPLE_TOKENS)
    step = max(1, batch.all_latents // _SAMPLE_LATENTS)
    bias = None if batch.b_enc is None else batch.b_enc[::step]
    return tokens, batch.choice.ops.pre_activations(tokens.x_mod, batch.W_enc[::step].contiguous(), bias), step


def likely_bound(batch: Batch, sample: Tensor) -> Tensor:
    """As `sampled_bound`, of a sample of what is to be cut."""
    (size,) = batch.ranks.totals(sample.numel())
    rank = max(1, round(size * _MARGIN * batch.options.k / batch.all_latents))
    histogram = partial(batch.choice.ops.key_histogram_, sample)
    return find_cut(histogram, sample.dtype, rank, sample.device, batch.ranks).bound


class Passes:
    """The pre-activations of a batch. Each pass computes them again, unless the batch is a single chunk."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.single = self._computed(0) if len(batch.starts) == 1 else None

    def _computed(self, start: int) -> tuple[Tokens, Tensor]:
        tokens = self.batch.tokens(start)
        return tokens, self.batch.pre_activations(tokens)

    def __iter__(self) -> Iterator[tuple[Tokens, Tensor]]:
        if self.single is not None:
            yield self.single
        else:
            yield from map(self._computed, self.batch.starts)

    def last(self) -> Iterator[tuple[Tokens, Tensor]]:
        """The last pass, which keeps nothing: the pre-activations of a single chunk are as large as its code."""
        if self.single is None:
            yield from self
            return
        kept, self.single = [self.single], None
        yield kept.pop()  # a variable would hold what is yielded


class Recomputed(Selection):
    """From pre-activations that are computed in each pass."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.passes = batch, Passes(batch)
        ops, device = batch.choice.ops, batch.x.device
        wanted = max(1, batch.all_tokens) * batch.options.k
        # The counts around this rank's own cut alone would be right: other ranks need those around theirs.
        rank_histogram_ = None if batch.ranks.several else ops.rank_histogram_

        def histogram(counts: Tensor, shift: int, high: Tensor | None) -> None:
            if self.passes.single is not None and high is None and rank_histogram_ is not None:
                rank_histogram_(self.passes.single[1], counts, shift, wanted)
                return
            for _, pre in self.passes:
                ops.key_histogram_(pre, counts, shift, high)

        self.cut = find_cut(histogram, batch.dtype, wanted, device, batch.ranks)
        self.overflow = torch.zeros((), dtype=torch.int64, device=device)

    def soft_count(self, soft_eps: float) -> Tensor:
        dtype, ties = accumulator(self.batch.dtype), self._ties()
        total = torch.zeros((), dtype=dtype, device=self.batch.x.device)
        for _, pre in self.passes:
            kept = torch.empty_like(pre)
            self.batch.choice.ops.keep_above(pre, self.cut.table(pre.shape[1]), None, ties.columns(pre), kept)
            total += self.batch.choice.ops.code_sums(kept, False, soft_eps)[1]
        return total

    def chunks(self, dead: DeadCode) -> Iterator[tuple[Tokens, Code, Code | None]]:
        ties = self._ties()
        for tokens, pre in self.passes.last():
            dead_code = dead(tokens, pre)
            code = self._code(pre, ties)
            del pre  # as large as any code
            yield tokens, code, dead_code

    def _ties(self) -> _Ties:
        return _Ties(self.batch.choice.ops, self.cut, self.batch.ranks.latents)

    def _code(self, pre: Tensor, ties: _Ties) -> Code:
        ops, (_, n_latents) = self.batch.choice.ops, pre.shape
        table, cut = self.cut.table(n_latents), ties.columns(pre)
        if self.batch.choice.regime == "dense":
            ops.keep_above(pre, table, None, cut, pre)
            return DenseCode(ops, pre)
        capacity = self.batch.options.places(n_latents)
        values, indices, count = ops.select_above(pre, table, None, cut, capacity)
        if pre.device.type == "cpu" and int(count.max()) > capacity:
            capacity = int(count.max())
            values, indices, count = ops.select_above(pre, table, None, cut, capacity)
        self.overflow += overflowing(count, capacity)
        return SparseCode(ops, values, indices, n_latents)
