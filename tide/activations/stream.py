"""Training batches straight from collection, mixed in a buffer of bounded size."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import count, groupby, pairwise
from typing import NamedTuple, TypeVar

import torch

from tide.activations.batch import ActivationBatch
from tide.activations.block_batch import BlockBatch
from tide.activations.collect import sample_generator
from tide.checks import check_count
from tide.errors import TideError

#: Of one block, or of several.
B = TypeVar("B", ActivationBatch, BlockBatch)


def shuffled(batch: B, generator: torch.Generator) -> B:
    """The rows of ``batch`` in a random order, pairs together."""
    unit = 2 if batch.paired else 1
    order = torch.randperm(batch.rows // unit, generator=generator)
    return batch.take((order[:, None] * unit + torch.arange(unit)).reshape(-1)).compacted()


def cut(pieces: Iterable[B], rows: int) -> Iterator[B]:
    """Batches of ``rows`` rows from pieces of any size, in order; the last one may be smaller.

    A batch that lies in one piece shares its memory, so no piece is copied.
    """
    held: list[B] = []
    n_held = 0
    for piece in pieces:
        first = rows - n_held
        if piece.rows < first:
            held.append(piece)
            n_held += piece.rows
            continue
        head = piece.take(slice(first))
        if held:
            held.append(head)
            head = piece.cat(held)
        held, n_held = [], (piece.rows - first) % rows
        yield head.compacted()
        for start in range(first, piece.rows - n_held, rows):
            yield piece.take(slice(start, start + rows)).compacted()
        if n_held:
            held = [piece.take(slice(piece.rows - n_held, None)).compacted()]
        del piece, head  # the next piece comes before the loop lets go of this one
    if held:
        yield held[0].cat(held).compacted()


#: Puts a thread between passes and what is made of them: the passes, and how many may be read ahead.
Ahead = Callable[[Iterator[BlockBatch], int], Generator[BlockBatch, None, None]]

#: How many times the rows that are mixed are held at most: those that are trained on, as the passes gave them and in
#: their order, those of the next window, which are read ahead, and once more while rows are mixed.
HELD = 4


class Window(NamedTuple):
    """A part of an epoch whose rows are mixed: the samples ``start`` to ``stop - 1``. Of the rows of all its uses the
    first ``skip`` are left out."""

    epoch: int
    number: int
    start: int
    stop: int
    skip: int


class LiveStream:
    """Endless batches straight from collection, each of which can be reproduced.

    Every epoch collects all samples again. It is cut into windows of about equal size, at most ``buffer_rows`` rows and
    at least one pass each; the rows of a window are shuffled, and batches are cut from one window after the other. With
    ``reuse`` above 1 a window is shuffled and cut so many times before the next, for one run of its passes. A window
    depends only on ``seed``, its epoch and its place. So batch b is the same bits whether the stream began at 0
    or at b (on one machine, with the same versions and number of threads): :meth:`from_step` collects the window of
    batch b again and nothing before it.

    Args:
        collect: ``collect(seed, start)`` yields the batches of one epoch from sample ``start`` on, a pass at a time, as
            :func:`tide.activations.collect` does with these two arguments.
        rows: rows of a batch, even where activations are paired.
        n_samples: images of an epoch.
        rows_per_sample: rows that each image gives.
        per_pass: images of a pass, the ``batch_size`` of the collection.
        buffer_rows: the most rows that are mixed at a time; :data:`HELD` times as many are held.
        seed: of the order of rows, and with the epoch that of the collection.
        reuse: how many times each row is used.
        ahead: reads the passes of the next window while batches of this one are consumed; by default nothing does.

    Raises :class:`~tide.errors.TideError` for sizes that do not fit, and if an epoch yields fewer rows than announced.
    """

    def __init__(
        self,
        collect: Callable[[int, int], Iterable[BlockBatch]],
        rows: int,
        *,
        n_samples: int,
        rows_per_sample: int,
        per_pass: int,
        buffer_rows: int = 65536,
        seed: int = 0,
        reuse: int = 1,
        ahead: Ahead | None = None,
    ) -> None:
        check_count("reuse", reuse)
        for name, value in (("rows", rows), ("n_samples", n_samples), ("per_pass", per_pass)):
            if value < 1:
                raise TideError(f"{name} = {value} is too small; give at least 1")
        self.collect: Callable[..., Iterable[BlockBatch]] = collect
        self.rows = rows
        self.rows_per_sample = rows_per_sample
        self.per_pass = per_pass
        self.seed = seed
        self.reuse = reuse
        self.ahead = ahead
        self.epoch_rows = n_samples * rows_per_sample * reuse
        passes = math.ceil(n_samples / per_pass)
        n_windows = math.ceil(passes / max(1, buffer_rows // (per_pass * rows_per_sample)))
        ends = (passes * (i + 1) // n_windows * per_pass for i in range(n_windows))
        #: Sample at which each window starts, and the end of the last.
        self.bounds = [0, *(min(end, n_samples) for end in ends)]

    def from_step(self, step: int) -> Iterator[BlockBatch]:
        """Batches from number ``step`` on, without end."""
        return cut(self._mixed(*divmod(step * self.rows, self.epoch_rows)), self.rows)

    def _mixed(self, epoch: int, skip: int) -> Iterator[BlockBatch]:
        """The rows of the windows from row ``skip`` of an epoch's order on."""
        with closing(self._passes_ahead(epoch, skip)) as passes:
            for window in self._windows(epoch, skip):
                whole = [self._whole(passes, self._n_rows(window))]
                for use in self._uses(window):
                    # After its last use no name holds the window: it is freed when its last batch is.
                    yield self._mix(whole.pop() if use == self.reuse - 1 else whole[0], window, use)

    def _uses(self, window: Window) -> range:
        return range(window.skip // self._n_rows(window), self.reuse)

    def _mix(self, whole: B, window: Window, use: int) -> B:
        """The rows of a window in the order of one of its uses."""
        generator = sample_generator(self.seed, window.epoch, window.number, *filter(None, [use]))
        left_out = max(0, window.skip - use * self._n_rows(window))
        return shuffled(whole, generator).take(slice(left_out, None))

    def _n_rows(self, window: Window) -> int:
        return (window.stop - window.start) * self.rows_per_sample

    def _windows(self, epoch: int, skip: int) -> Iterator[Window]:
        """The windows from row ``skip`` of an epoch's order on, without end."""
        for each in count(epoch):
            for number, (start, stop) in enumerate(pairwise(self.bounds)):
                rows = (stop - start) * self.rows_per_sample * self.reuse
                if skip < rows:
                    yield Window(each, number, start, stop, skip)
                skip = max(0, skip - rows)

    def _passes_ahead(self, epoch: int, skip: int) -> Generator[BlockBatch, None, None]:
        passes = self._passes(epoch, skip)
        if self.ahead is None:
            return passes
        windows = (Window(0, i, *bounds, 0) for i, bounds in enumerate(pairwise(self.bounds)))
        return self.ahead(passes, max(self._n_passes(window) for window in windows))

    def _n_passes(self, window: Window) -> int:
        """How many of a window's passes are run here."""
        start, stop = self._share(window)
        return -(-(stop - start) // self.per_pass)

    def _share(self, window: Window) -> tuple[int, int]:
        """The samples of a window, from and to, whose passes are run here."""
        return window.start, window.stop

    def _passes(self, epoch: int, skip: int) -> Generator[BlockBatch, None, None]:
        """The passes that are run here, of one window after the other."""
        for number, windows in groupby(self._windows(epoch, skip), lambda window: window.epoch):
            source: Iterator[BlockBatch] | None = None
            for window in windows:
                if source is None:
                    source = iter(self.collect(sample_generator(self.seed, number).initial_seed(), window.start))
                yield from self._announced(source, window)

    def _announced(self, source: Iterator[BlockBatch], window: Window) -> Iterator[BlockBatch]:
        """The passes of a window that are run here, which have the rows that were announced."""
        start, stop = self._share(window)
        rows = missing = (stop - start) * self.rows_per_sample
        while missing:
            batch = next(source, None)
            missing -= 0 if batch is None else batch.rows
            if batch is None or missing < 0:
                raise TideError(
                    f"the data gave {rows - missing} rows where {rows} were announced; "
                    "images of one size are needed, as many as at the start"
                )
            yield batch

    def _whole(self, passes: Iterator[BlockBatch], rows: int) -> BlockBatch:
        """The next ``rows`` rows that the passes give."""
        taken: list[BlockBatch] = []
        while rows:
            taken.append(next(passes))
            rows -= taken[-1].rows
        whole = BlockBatch.cat(taken)
        if whole.paired and self.rows % 2:
            raise TideError(f"a batch of {self.rows} rows would separate a pair; give an even number")
        return whole


class ActivationBuffer:
    """Mixes activations: it is filled to ``capacity`` rows, shuffled, emptied to half of that, and filled again.

    So a row shares its batch with rows collected up to ``capacity`` rows earlier or later. The buffer holds at most
    ``capacity`` rows and one collected batch; a shuffle briefly needs three times that memory.

    Args:
        capacity: rows that it holds at most.
        seed: of the shuffles.
    """

    def __init__(self, capacity: int, *, seed: int = 0) -> None:
        if capacity < 2:
            raise TideError(f"a buffer of {capacity} rows mixes nothing; give at least a few batches' rows")
        self.capacity = capacity
        self._generator = torch.Generator().manual_seed(seed)
        self._added: list[ActivationBatch] = []
        self._mixed: ActivationBatch | None = None
        self._drawn = 0

    def __len__(self) -> int:
        mixed = 0 if self._mixed is None else len(self._mixed) - self._drawn
        return mixed + sum(map(len, self._added))

    def add(self, batch: ActivationBatch) -> None:
        """Takes a collected batch in; its rows are mixed with the others at the next shuffle."""
        self._added.append(batch)

    def draw(self, n: int) -> ActivationBatch:
        """Takes ``n`` rows out of the buffer, with the groups they use; shuffles first if rows were added."""
        if n > len(self):
            raise TideError(f"{n} rows asked for and the buffer holds {len(self)}; add more first")
        if self._added:
            left = [] if self._mixed is None else [self._mixed.take(slice(self._drawn, None))]
            self._mixed = shuffled(ActivationBatch.cat(left + self._added), self._generator)
            self._added, self._drawn = [], 0
        assert self._mixed is not None
        rows = self._mixed.take(slice(self._drawn, self._drawn + n))
        self._drawn += n
        return rows.compacted()


def stream(
    source: Iterable[ActivationBatch] | Callable[[int], Iterable[ActivationBatch]],
    batch_size: int,
    *,
    buffer_rows: int = 65536,
    seed: int = 0,
) -> Iterator[ActivationBatch]:
    """Batches of exactly ``batch_size`` rows from collected batches of any size, mixed, pairs kept together.

    ``source`` is one pass over the data, or a function of the epoch (0, 1, ...) that returns one; the stream is then
    endless. Rows that do not fill a batch at the end of a single pass are dropped. Each batch holds only the groups
    that its rows use. The same source, seed and sizes give the same batches; use :class:`LiveStream` for a stream that
    can be resumed in the middle.

    Args:
        source: a pass, or a function that returns one.
        batch_size: rows of a batch.
        buffer_rows: rows that are mixed with each other (:class:`ActivationBuffer`).
        seed: of the shuffles.
    """
    buffer = ActivationBuffer(buffer_rows, seed=seed)
    if not 1 <= batch_size <= buffer_rows // 2:
        raise TideError(f"batch_size {batch_size} does not fit; give 1..{buffer_rows // 2}, or a larger buffer_rows")
    for epoch in count():
        empty = True
        for batch in source(epoch) if callable(source) else source:
            if batch.paired and batch_size % 2:
                raise TideError(f"batch_size {batch_size} would separate a pair; give an even one")
            empty = False
            buffer.add(batch)
            if len(buffer) >= buffer_rows:
                while len(buffer) > buffer_rows // 2:
                    yield buffer.draw(batch_size)
        if not callable(source):
            break
        if empty:
            raise TideError(f"the source yielded no activations in epoch {epoch}; check the data")
    while len(buffer) >= batch_size:
        yield buffer.draw(batch_size)
