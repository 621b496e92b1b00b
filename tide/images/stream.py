"""Data sets that are read from their beginning on, such as those that ``datasets`` streams from the Hub."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor

from tide.errors import TideError
from tide.images.cells import cell_of
from tide.images.columns import caption_column, image_column, reader_of
from tide.images.identity import Sample, digest
from tide.images.order import is_held_out
from tide.images.samples import OnError, Samples, readable
from tide.images.tensors import Size, to_tensor

#: Rows, undecoded, that are shuffled together: a few hundred MB of large pictures. All of them are fetched before the
#: first is used, so that more would only make the start slow; what is far apart is mixed by the order of the shards.
BUFFER = 256


class Stream(Samples):
    """A ``datasets.IterableDataset``, streamed again at every iteration.

    Data sets are often sorted by class, so the rows are shuffled: their shards by ``seed``, and the rows by a buffer of
    :data:`BUFFER`. An image is held out by the hash of its own digest, as its place in the stream depends on the seed;
    ``hold_out`` is its probability.
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
        seed: int = 0,
        hold_out: float = 0.0,
        images: str | None = None,
        captions: str | None = None,
    ) -> None:
        super().__init__(batch_size)
        self.shown, self.size, self.on_error, self.hold_out = shown, size, on_error, hold_out
        features = rows.features or {}
        names = list(features or _first(rows, shown))
        self.image, self.text = image_column(names, images, features), caption_column(names, captions)
        self.read = reader_of(features.get(self.text))
        self.options = {"image_column": self.image, "caption_column": self.text}
        self.rows = _undecoded(rows, self.image, self.text).shuffle(seed=seed, buffer_size=BUFFER)

    def _pairs(self, start: int, samples: list[Sample]) -> Iterator[tuple[Tensor, str]]:
        for number, row in enumerate(self.rows):
            where = f"row {number} of {self.shown}"
            caption = self.read(row.get(self.text), f"{self.text} of {where}")
            cell = cell_of(row.get(self.image), f"{self.image} of {where}")
            name, content = f"row {number}", cell.digest()
            if content in self.excluded or is_held_out(content, self.hold_out):
                continue
            if (picture := readable(cell.picture, self.on_error)) is None:
                continue
            samples.append(Sample(name, content, digest(caption)))
            if len(samples) > start:
                yield to_tensor(picture, self.size), caption


def _first(rows: Any, shown: str) -> Mapping[str, Any]:
    """The first row, of a data set that does not say which columns it has."""
    for row in itertools.islice(rows, 1):
        return dict(row)
    raise TideError(f"{shown} holds no rows; give another data set or split")


def _undecoded(rows: Any, image: str, text: str) -> Any:
    """The two columns; images as bytes or paths, because the library would decode every format that Pillow knows,
    however large."""
    if not rows.features:
        return rows
    import datasets  # there, as ``rows`` are made by it

    rows = rows.select_columns([image, text])
    if isinstance(rows.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    return rows
