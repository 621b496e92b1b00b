"""Data sets that are read from their beginning on, such as those that ``datasets`` streams from the Hub."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from tide.errors import TideError
from tide.images.cells import cell_of
from tide.images.columns import caption_column, image_column, note_of, reader_of, undecoded_column
from tide.images.identity import Sample, digest
from tide.images.order import is_held_out
from tide.images.samples import OnError, Samples, readable
from tide.images.tensors import Size

#: Rows, undecoded, that are shuffled together: a few hundred MB of large pictures. All of them are fetched before the
#: first is used, so that more would only make the start slow; what is far apart is mixed by the order of the shards.
BUFFER = 256


class Stream(Samples):
    """A ``datasets.IterableDataset``, streamed again at every iteration.

    Data sets are often sorted by class, so the rows are shuffled by ``seed`` (None: not at all): their shards, and the
    rows by a buffer of :data:`BUFFER`. An image is held out by the hash of its own digest, as its place in the stream
    depends on the seed; ``hold_out`` is its probability.
    """

    skips: ClassVar[bool] = False

    def __init__(
        self,
        rows: Any,
        shown: str,
        size: Size,
        batch_size: int,
        *,
        on_error: OnError = "raise",
        seed: int | None = 0,
        hold_out: float = 0.0,
        images: str | None = None,
        captions: str | None = None,
    ) -> None:
        super().__init__(batch_size)
        self.shown, self.size, self.on_error, self.hold_out = shown, size, on_error, hold_out
        features = rows.features or {}
        names = list(features or _first(rows, shown))
        self.image = image_column(names, images, features)
        self.text = caption_column(names, captions, self.image)
        self.notes = note_of(self.text, captions)
        self.read = reader_of(features.get(self.text))
        self.options = {"image_column": self.image, "caption_column": self.text or ""}
        rows = _undecoded(rows, self.image, self.text)
        self.rows = rows if seed is None else rows.shuffle(seed=seed, buffer_size=BUFFER)

    def _pairs(self, start: int, samples: list[Sample]) -> Iterator[tuple[Tensor, str]]:
        for number, row in enumerate(self.rows):
            where = f"row {number} of {self.shown}"
            caption = self.read(row.get(self.text), f"the caption of {where}")
            cell = readable(partial(cell_of, row.get(self.image), f"the image of {where}"), self.on_error)
            content = None if cell is None else readable(cell.digest, self.on_error)
            if cell is None or content is None or content in self.excluded or is_held_out(content, self.hold_out):
                continue
            if (image := readable(partial(cell.tensor, self.size), self.on_error)) is None:
                continue
            samples.append(Sample(f"row {number}", content, digest(caption)))
            if len(samples) > start:
                yield image, caption


def _first(rows: Any, shown: str) -> Mapping[str, Any]:
    """The first row, of a data set that does not say which columns it has."""
    for row in itertools.islice(rows, 1):
        return dict(row)
    raise TideError(f"{shown} holds no rows; give another data set or split")


def _undecoded(rows: Any, image: str, text: str | None) -> Any:
    """The two columns; images as bytes or paths, because the library would decode every format that Pillow knows,
    however large."""
    if not rows.features:
        return rows
    rows = rows.select_columns([image] if text is None else [image, text])
    return undecoded_column(rows, image)
