"""A live stream that several ranks share: each runs the diffusion model on some images, and tokens travel to the rank
that trains on them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.activations.block_batch import BlockBatch
from tide.activations.collect import sample_generator
from tide.activations.stream import Ahead, LiveStream, Window, cut
from tide.errors import TideError
from tide.world import World

#: ``collect(seed, start, stop)``: the passes of an epoch over the samples ``start`` to ``stop - 1``.
CollectBetween = Callable[..., Iterable[BlockBatch]]


@dataclass(frozen=True)
class Shares:
    """How ranks divide what they train on.

    Attributes:
        world: the ranks.
        owners: block -> the rank that trains it, on whole batches (block parallel). None if all ranks train the same
            blocks, rank r of W on the rows r B / W to (r + 1) B / W of each batch of B (data parallel); in a
            :class:`~tide.world.Grid` its row r of W.
    """

    world: World
    owners: Mapping[int, int] | None = None

    @property
    def count(self) -> int:
        """Into how many parts a batch is divided."""
        return self.world.tokens.count if self.owners is None else 1

    def trained_here(self, block: int) -> bool:
        return self.owners is None or self.owners[block] == self.world.number

    def part(self, rows: int) -> slice:
        """This rank's rows of a batch. Raises :class:`~tide.errors.TideError` for what cannot be divided into whole
        pairs."""
        if rows % (2 * self.count):
            raise TideError(
                f"batch_tokens = {rows} cannot be divided among {self.count} ranks, pairs kept whole; "
                f"give a multiple of {2 * self.count}"
            )
        own = rows // self.count
        first = own * self.world.tokens.number if self.owners is None else 0
        return slice(first, first + own)


class SharedStream(LiveStream):
    """A :class:`~tide.activations.stream.LiveStream` whose passes are divided among ranks; its batches are the same.

    The passes of a window are dealt to the ranks in order. When all have run theirs, the tokens travel to the ranks
    that train on them. Which token goes where follows from the seed, so activations and their places are all that is
    sent. For each block a rank sends and receives (W - 1) / W^2 of a window's activations, W the number of ranks; R
    times that where R ranks have the same tokens. Ranks that own blocks exchange once for a window, all others once for
    each use of it.

    A batch has the timesteps of all its rows on every rank, which is what :class:`tide_kernels.Ranks` asks for.

    Args:
        collect: of all blocks.
        rows: of a whole batch.
        shares: who trains on what.
        ahead, sizes: the others, as of a live stream.

    Raises :class:`~tide.errors.TideError` if a window has fewer passes than there are ranks, and for rows that cannot
    be divided.
    """

    def __init__(
        self,
        collect: CollectBetween,
        rows: int,
        *,
        shares: Shares,
        ahead: Ahead | None = None,
        **sizes: int,
    ) -> None:
        super().__init__(collect, rows, ahead=ahead, **sizes)
        self.shares, self.world = shares, shares.world
        self.part = shares.part(rows)
        fewest = min(-(-(stop - start) // self.per_pass) for start, stop in pairwise(self.bounds))
        if fewest < self.world.count:
            raise TideError(
                f"{self.world.count} ranks share what is mixed at a time, and that is {fewest} passes of "
                f"{self.per_pass} images; use at most {fewest} ranks, fewer images a pass (batch_size), more images, "
                "or a larger buffer_rows"
            )

    def from_step(self, step: int) -> Iterator[BlockBatch]:
        """Batches from number ``step`` on, without end: of this rank's blocks, or this rank's rows of each."""
        epoch, skip = divmod(step * self.rows, self.epoch_rows)
        held: dict[int, _Held] = {}
        for places in cut(self._places(epoch, skip, held), self.rows):
            own = BlockBatch({block: batch.take(self.part) for block, batch in places.items()})
            yield BlockBatch({block: _filled(block, batch, held) for block, batch in own.items()})
            oldest = int(next(iter(places.values())).x[:, 0].min())
            for number in [number for number in held if number < oldest]:
                del held[number]

    def _places(self, epoch: int, skip: int, held: dict[int, _Held]) -> Iterator[BlockBatch]:
        """The rows of all windows in the order of the stream, with (number of the use of a window, row in it) for
        ``x``. What this rank needs for a use is in ``held`` when its places are yielded.

        A thread may run the passes; ranks exchange here alone, in one order on all of them."""
        number = at = 0
        with closing(self._passes_ahead(epoch, skip)) as passes:
            for window in self._windows(epoch, skip):
                for mixed, needed in self._used(passes, window, at):
                    for batch in mixed.values():
                        batch.x[:, 0] = number
                    held[number] = needed
                    at = (at + mixed.rows) % self.rows
                    number += 1
                    yield mixed

    def _used(self, passes: Iterator[BlockBatch], window: Window, at: int) -> Iterator[tuple[BlockBatch, _Held]]:
        """The places of a window's rows in the order of each use, and what this rank needs of them then. The batch that
        the window continues has ``at`` rows already."""
        counts = [(b - a) * self.rows_per_sample for a, b in pairwise(self._edges(window))]
        own = [self._whole(passes, counts[self.world.number])]
        places = self._described(own[0], counts)
        needed: _Held | None = None
        for use in self._uses(window):
            mixed = self._mix(places, window, use)
            if needed is None or self.shares.owners is None:
                # An owner has all rows of its blocks from the first use on.
                needed = self._exchanged(own[0], counts, self._wanted(mixed, at, sum(counts)))
            if self.shares.owners is not None or use == self.reuse - 1:
                own.clear()  # it is freed before the steps on it
            at = (at + mixed.rows) % self.rows
            yield mixed, needed

    def _passes(self, epoch: int, skip: int) -> Generator[BlockBatch, None, None]:
        for window in self._windows(epoch, skip):
            seed = sample_generator(self.seed, window.epoch).initial_seed()
            yield from self._announced(iter(self.collect(seed, *self._share(window))), window)

    def _edges(self, window: Window) -> list[int]:
        """The sample at which each rank's passes of a window begin, and the end of the last."""
        count, passes = self.world.count, -(-(window.stop - window.start) // self.per_pass)
        ends = (window.start + passes * rank // count * self.per_pass for rank in range(count + 1))
        return [min(window.stop, end) for end in ends]

    def _share(self, window: Window) -> tuple[int, int]:
        first, last = self._edges(window)[self.world.number : self.world.number + 2]
        return first, last

    def _described(self, own: BlockBatch, counts: Sequence[int]) -> BlockBatch:
        """All rows of a window of the blocks that are trained here, as the passes gave them; ``x`` is (0, row)."""
        first = next(iter(own.values()))
        per_group = first.rows // len(first.timestep)  # every image has as many rows
        groups = [rows // per_group for rows in counts]
        before = list(accumulate(groups, initial=0))[self.world.number]
        group, sample, token = (
            self._of_all(each, counts) for each in (first.group + before, first.sample, first.token)
        )
        timestep, n_rows = self._of_all(first.timestep, groups), sum(counts)
        places = torch.stack([torch.zeros(n_rows, dtype=torch.int64), torch.arange(n_rows)], 1)
        found = {}
        for block, batch in own.items():
            conditioning = None if batch.conditioning is None else self._of_trained(block, batch.conditioning, groups)
            if self.shares.trained_here(block):
                found[block] = ActivationBatch(places, timestep, group, conditioning, sample, token, batch.paired)
        return BlockBatch(found)

    def _of_all(self, own: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all ranks, of which rank r has ``sizes[r]``, on the CPU."""
        padded = _padded(own, max(sizes))
        return _joined(self.world.gathered(padded).split(max(sizes)), sizes)

    def _of_trained(self, block: int, own: Tensor, sizes: Sequence[int]) -> Tensor | None:
        """As :meth:`_of_all` on the ranks that train the block, which alone are sent anything; None on the others."""
        if self.shares.owners is None:
            return self._of_all(own, sizes)
        padded = _padded(own, max(sizes))
        parts = [torch.empty_like(padded) for _ in sizes] if self.shares.trained_here(block) else None
        dist.gather(padded, parts, dst=self.shares.owners[block])
        return None if parts is None else _joined(parts, sizes)

    def _wanted(self, mixed: BlockBatch, at: int, n_rows: int) -> list[Tensor]:
        """The rows of a window, ascending, that each rank needs of a block that it trains, where the batch that the
        window continues has ``at`` rows already."""
        if self.shares.owners is not None:
            return [torch.arange(n_rows)] * self.world.count
        rows = next(iter(mixed.values())).x[:, 1]
        part = (torch.arange(at, at + len(rows)) % self.rows) // (self.rows // self.shares.count)
        across = self.world.latents.count  # ranks that have the same part
        return [rows[part == rank // across].sort().values for rank in range(self.world.count)]

    def _exchanged(self, own: BlockBatch, counts: Sequence[int], wanted: Sequence[Tensor]) -> _Held:
        """Sends each rank what it needs of this rank's rows; returns what this rank got."""
        ends = list(accumulate(counts, initial=0))
        me = self.world.number
        sent = [rows[(rows >= ends[me]) & (rows < ends[me + 1])] - ends[me] for rows in wanted]
        edges = torch.searchsorted(wanted[me], torch.tensor(ends))
        got = edges.diff().tolist()
        held, first = _Held(wanted[me], {}), next(iter(own.values()))
        names = ("x",) if first.target is None else ("x", "target")
        for blocks in self._rounds(list(own)):
            mine = blocks[me]
            for name in names:
                like = getattr(first if mine is None else own[mine], name)
                empty = like[:0]
                parts = [
                    empty if block is None else getattr(own[block], name)[rows.to(empty.device)]
                    for block, rows in zip(blocks, sent, strict=True)
                ]
                found = _all_to_all(parts, got if mine is not None else [0] * len(got), like)
                if mine is not None:
                    held.of.setdefault(mine, {})[name] = found
        return held

    def _rounds(self, blocks: Sequence[int]) -> Iterator[list[int | None]]:
        """For each exchange, the block that each rank gets."""
        owners = self.shares.owners
        if owners is None:
            for block in blocks:
                yield [block] * self.world.count
            return
        of = [[block for block in blocks if owners[block] == rank] for rank in range(self.world.count)]
        for i in range(max(map(len, of))):
            yield [each[i] if i < len(each) else None for each in of]


@dataclass
class _Held:
    """What a rank has of a window: block -> ``x``, and the ``target`` of transcoders, one row for each of ``rows``,
    which ascend."""

    rows: Tensor
    of: dict[int, dict[str, Tensor]]


def _padded(own: Tensor, n: int) -> Tensor:
    """The rows, on the CPU, with zeros up to ``n``."""
    padded = torch.zeros(n, *own.shape[1:], dtype=own.dtype)
    padded[: len(own)] = own
    return padded


def _joined(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """The rows of all ranks, of whose padded part r the first ``sizes[r]`` are meant."""
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _all_to_all(parts: Sequence[Tensor], got: Sequence[int], like: Tensor) -> Tensor:
    """Part r goes to rank r; returns the rows that came, ``got[r]`` from rank r, in the order of the ranks and of the
    kind of ``like``. The parts may be of blocks with different dtypes."""
    out = like.new_empty(sum(got), like.shape[1])
    width = like.shape[1] * like.element_size()
    sent = [part.contiguous().view(torch.uint8).view(-1) for part in parts]  # bytes, which every backend can send
    dist.all_to_all_single(
        out.view(torch.uint8).view(-1), torch.cat(sent), [rows * width for rows in got], [len(each) for each in sent]
    )
    return out


def _filled(block: int, places: ActivationBatch, held: Mapping[int, _Held]) -> ActivationBatch:
    """The batch whose ``x`` are places, with the activations that belong there."""
    like = next(window.of[block] for window in held.values() if block in window.of)
    filled: dict[str, Any] = {name: each.new_empty(len(places), each.shape[1]) for name, each in like.items()}
    for number in places.x[:, 0].unique().tolist():
        here = places.x[:, 0] == number
        at = torch.searchsorted(held[number].rows, places.x[here, 1])
        for name, each in filled.items():
            each[here.to(each.device)] = held[number].of[block][name][at.to(each.device)]
    return replace(places, **filled)
