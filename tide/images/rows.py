"""Rows at random access as sets of images: data sets of the ``datasets`` library, and sequences of Python."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from tide.errors import TideError, TideWarning
from tide.images.cells import Cell, cell_of
from tide.images.columns import caption_column, image_column, reader_of
from tide.images.prompts import is_several, prompt_of
from tide.images.sets import ImageSet


class Rows(ImageSet):
    """Rows as ``(image, caption)``, by number. ``caption`` may be what :func:`~tide.images.prompts.prompt_of` takes."""

    how_to_caption = "fill the captions' column, or give (picture, caption) pairs"

    def __init__(self, shown: str) -> None:
        self.shown = shown

    def name(self, i: int) -> str:
        return f"row {i}"

    def caption(self, i: int) -> str:
        raise NotImplementedError

    def cell(self, i: int) -> Cell:
        raise NotImplementedError

    def digest(self, i: int) -> str:
        return self.cell(i).digest()

    def picture(self, i: int) -> Image.Image:
        return self.cell(i).picture()

    def where(self, i: int) -> str:
        return f"row {i} of {self.shown}"


class DatasetRows(Rows):
    """A ``datasets.Dataset``. Its images are read undecoded: the library would open every format that Pillow knows,
    however large."""

    def __init__(self, data: Any, shown: str, images: str | None = None, captions: str | None = None) -> None:
        import datasets  # there, as ``data`` is made by it

        super().__init__(shown)
        self.image = image_column(data.column_names, images, data.features)
        text = caption_column(data.column_names, captions)
        read = reader_of(data.features[text])
        values = data.select_columns([text]).with_format(None)[text][:]
        self.captions = [read(value, f"{text} of {self.where(i)}") for i, value in enumerate(values)]
        self.notes = _notes(text, captions, values)
        data = data.select_columns([self.image]).with_format(None)
        if isinstance(data.features[self.image], datasets.Image):
            data = data.cast_column(self.image, datasets.Image(decode=False))
        self.data = data
        self.options: Mapping[str, str] = {"image_column": self.image, "caption_column": text}

    def __len__(self) -> int:
        return len(self.captions)

    def caption(self, i: int) -> str:
        return self.captions[i]

    def cell(self, i: int) -> Cell:
        return cell_of(self.data[i][self.image], f"{self.image} of {self.where(i)}", paths=True)


class ListedRows(Rows):
    """A sequence of rows of one kind: mappings with columns, pairs of image and caption, or images alone."""

    def __init__(self, data: Sequence[Any], shown: str, images: str | None = None, captions: str | None = None) -> None:
        super().__init__(shown)
        self.data = data
        self._last: tuple[int, Any] = (-1, None)
        first = data[0]
        self.columns: tuple[Any, Any] | None = None
        if isinstance(first, Mapping) and not _is_file(first):
            names = list(dict.fromkeys(str(name) for row in data if isinstance(row, Mapping) for name in row))
            self.columns = image_column(names, images), caption_column(names, captions)
        elif isinstance(first, tuple | list) and len(first) >= 2:
            self.columns = 0, 1
        self.classes = getattr(data, "classes", None)  # of torchvision

    def __len__(self) -> int:
        return len(self.data)

    def caption(self, i: int) -> str:
        value = self._parts(i)[1]
        if self.classes and isinstance(value, int) and 0 <= value < len(self.classes):
            value = self.classes[value]
        return prompt_of(value, f"the caption of {self.where(i)}")

    def without_caption(self) -> int:
        """0 for what is no list: its rows may be read from a disk."""
        return super().without_caption() if isinstance(self.data, list | tuple) else 0

    def cell(self, i: int) -> Cell:
        return cell_of(self._parts(i)[0], f"the image of {self.where(i)}", paths=True)

    def _parts(self, i: int) -> tuple[Any, Any]:
        if self._last[0] != i:
            self._last = i, self.data[i]  # a data set of PyTorch decodes the image for it
        row = self._last[1]
        if self.columns is None:
            return row, ""
        image, caption = self.columns
        if isinstance(image, str) and isinstance(row, Mapping):
            return row.get(image), row.get(caption)
        if isinstance(image, int) and isinstance(row, tuple | list) and len(row) >= 2:
            return row[image], row[caption]
        raise TideError(f"{self.where(i)} is not like the first row; give rows of one kind")


def _is_file(row: Mapping[Any, Any]) -> bool:
    return set(row) == {"bytes", "path"}


def _notes(column: str, asked: str | None, values: Sequence[Any]) -> tuple[str, ...]:
    if several := sum(map(is_several, values)):
        said = f"{several:,} rows hold a list of captions in {column}; the first of each counts"
        warnings.warn(said, TideWarning, stacklevel=2)
    return () if asked else (f"captions are in the column {column}",)
