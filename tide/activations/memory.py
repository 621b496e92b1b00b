"""Activations held in memory, as an endless and resumable source of training batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from tide.activations.batch import ActivationBatch
from tide.errors import TideError


class ActivationPool:
    """All rows of some batches in memory; draws batches of ``rows`` rows in a random order, epoch after epoch.

    Pairs stay together. Batch ``i`` depends on ``seed`` and ``i`` alone, so that ``pool.from_step`` given to
    :meth:`tide.training.Trainer.fit` resumes exactly where a run stopped.
    """

    def __init__(self, batches: Iterable[ActivationBatch], rows: int, *, seed: int = 0) -> None:
        self.all = ActivationBatch.cat(list(batches))
        self.unit = 2 if self.all.paired else 1
        self.units = len(self.all) // self.unit
        self.per_batch = rows // self.unit
        self.seed = seed
        if rows % self.unit:
            raise TideError(f"a batch of {rows} rows would separate a pair; give an even number")
        if self.per_batch < 1 or self.units < self.per_batch:
            raise TideError(f"{len(self.all)} activations are fewer than a batch of {rows}; collect more or lower it")

    def __len__(self) -> int:
        return len(self.all)

    def from_step(self, step: int) -> Iterator[ActivationBatch]:
        """Batches from number ``step`` on, without end."""
        per_epoch = self.units // self.per_batch
        while True:
            order = np.random.default_rng([self.seed, step // per_epoch]).permutation(self.units)
            for i in range(step % per_epoch, per_epoch):
                units = torch.from_numpy(order[i * self.per_batch : (i + 1) * self.per_batch])
                rows = (units[:, None] * self.unit + torch.arange(self.unit)).reshape(-1)
                yield self.all.take(rows).compacted()
                step += 1

    def once(self, rows: int = 4096) -> Iterator[ActivationBatch]:
        """Every row once, in order."""
        for start in range(0, len(self.all), rows):
            yield self.all.take(slice(start, start + rows)).compacted()
