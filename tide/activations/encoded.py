"""Images of a live stream that are encoded once and kept, each process those that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from tide.activations.collect import Prepared, prepare
from tide.activations.source import Source
from tide.adapters.base import Adapter
from tide.errors import TideError


class Encoded:
    """The images of a source, encoded ``batch_size`` at a time when they are first read, and kept in memory: data for
    :func:`~tide.activations.collect`, with the bits that it gives of the source itself."""

    def __init__(self, adapter: Adapter, source: Source, *, batch_size: int, max_sequence_length: int | None) -> None:
        self.source, self.batch_size = source, batch_size
        self._adapter, self._length = adapter, max_sequence_length
        self._kept: dict[int, Prepared] = {}

    def from_sample(self, start: int) -> Iterator[Prepared]:
        """The passes from that of image ``start`` on, which is the first of one."""
        if start % self.batch_size:
            raise TideError(f"image {start} does not begin a pass of {self.batch_size}; start at a multiple of it")
        encoding: Iterator[Prepared] | None = None
        for first in count(start, self.batch_size):
            if first >= self.source.n_images:
                return
            if first in self._kept:
                encoding = None
            else:
                encoding = encoding or self._from(first)
                if (found := next(encoding, None)) is None:
                    return  # fewer images than there were
                self._kept[first] = found
            yield self._kept[first]

    def _from(self, start: int) -> Iterator[Prepared]:
        return prepare(
            self._adapter, self.source, batch_size=self.batch_size, max_sequence_length=self._length, start=start
        )
