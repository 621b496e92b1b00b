"""A batch of activations for each of several blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tide.activations.batch import ActivationBatch


class BlockBatch(Mapping[int, ActivationBatch]):
    """Block -> :class:`~tide.activations.ActivationBatch`, all of as many rows.

    From one forward pass, row i is the same token in all of them. What changes the rows of one changes those of all.
    """

    def __init__(self, of: Mapping[int, ActivationBatch]) -> None:
        self._of = dict(of)

    def __getitem__(self, block: int) -> ActivationBatch:
        return self._of[block]

    def __iter__(self) -> Iterator[int]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    @property
    def rows(self) -> int:
        """Rows of each block."""
        return next(iter(self._of.values())).rows

    @property
    def paired(self) -> bool:
        return all(batch.paired for batch in self._of.values())

    def take(self, rows: Tensor | slice) -> BlockBatch:
        """:meth:`ActivationBatch.take` of each."""
        return self._each(lambda batch: batch.take(rows))

    def compacted(self) -> BlockBatch:
        """:meth:`ActivationBatch.compacted` of each."""
        return self._each(ActivationBatch.compacted)

    def merged(self) -> BlockBatch:
        """:meth:`ActivationBatch.merged` of each."""
        return self._each(ActivationBatch.merged)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> BlockBatch:
        """:meth:`ActivationBatch.mapped` of each."""
        return self._each(lambda batch: batch.mapped(change))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> BlockBatch:
        """:meth:`ActivationBatch.to` of each."""
        return self._each(lambda batch: batch.to(device, non_blocking=non_blocking))

    @staticmethod
    def cat(batches: Sequence[BlockBatch]) -> BlockBatch:
        """:meth:`ActivationBatch.cat` of each block."""
        return BlockBatch({block: ActivationBatch.cat([each[block] for each in batches]) for block in batches[0]})

    def _each(self, change: Callable[[ActivationBatch], ActivationBatch]) -> BlockBatch:
        return BlockBatch({block: change(batch) for block, batch in self._of.items()})
