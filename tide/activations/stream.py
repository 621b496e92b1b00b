"""Training batches straight from collection, mixed in a buffer of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count

import torch

from tide.activations.batch import ActivationBatch
from tide.errors import TideError


def shuffled(batch: ActivationBatch, generator: torch.Generator) -> ActivationBatch:
    """The rows of ``batch`` in a random order, pairs together."""
    unit = 2 if batch.paired else 1
    order = torch.randperm(len(batch) // unit, generator=generator)
    return batch.take((order[:, None] * unit + torch.arange(unit)).reshape(-1)).compacted()


class ActivationBuffer:
    """Mixes activations: filled to ``capacity`` rows, shuffled, drawn from down to half of that, filled
    again.

    So a row shares its batch with rows collected up to ``capacity`` rows earlier or later. Holds at most
    ``capacity`` rows and one collected batch, three times over for the moment of a shuffle.
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
        self._added.append(batch)

    def draw(self, n: int) -> ActivationBatch:
        """``n`` rows, taken out of the buffer, with the groups they use. Shuffles first if rows were
        added."""
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

    ``source`` is one pass over the data, or a function of the epoch (0, 1, ...) that yields one: the stream
    then has no end. At the end of a single pass, rows that do not fill a batch are left out. Each batch holds
    only the groups that its rows use. The same source, seed and sizes give the same batches.
    """
    buffer = ActivationBuffer(buffer_rows, seed=seed)
    if not 1 <= batch_size <= buffer_rows // 2:
        raise TideError(f"batch_size {batch_size} does not fit; give 1..{buffer_rows // 2}, or a larger buffer_rows")
    for epoch in count():
        empty = True
        for batch in source(epoch) if callable(source) else source:
            if batch.paired and batch_size % 2:
                raise TideError(f"batch_size {batch_size} would part a pair; give an even one")
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
