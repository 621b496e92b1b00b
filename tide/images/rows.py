"""Rows at random access as sets of images: data sets of the ``datasets`` library, and sequences of Python."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tide.errors import TideError, TideWarning
from tide.images.cells import Cell, cell_of
from tide.images.columns import caption_column, image_column, note_of, reader_of, undecoded_column
from tide.images.files import below
from tide.images.prompts import is_several, prompt_of
from tide.images.sets import ImageSet
from tide.messages import one_line


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

    def frames(self, i: int, n: int) -> list[Image.Image]:
        return self.cell(i).frames(n)

    def where(self, i: int) -> str:
        return f"row {i} of {self.shown}"


class DatasetRows(Rows):
    """A ``datasets.Dataset``. Its images are read undecoded: the library would open every format that Pillow knows,
    however large.

    ``folder``: where the data set was read from. Paths in it are seen from there, and must not lead out of it. Without
    a folder they are those of the caller who gives the data set, who may mean any file.
    """

    def __init__(
        self,
        data: Any,
        shown: str,
        images: str | None = None,
        captions: str | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__(shown)
        self.folder = folder
        self.image = image_column(data.column_names, images, data.features)
        text = caption_column(data.column_names, captions, self.image)
        self.captions = [""] * len(data) if text is None else self._captions(data, text)
        self.notes = note_of(text, captions)
        self.data = undecoded_column(data.select_columns([self.image]).with_format(None), self.image)
        self.options: Mapping[str, str] = {"image_column": self.image, "caption_column": text or ""}

    def _captions(self, data: Any, column: str) -> list[str]:
        read = reader_of(data.features[column])
        values = data.select_columns([column]).with_format(None)[column][:]
        if several := sum(map(is_several, values)):
            rows = f"{several:,} {'row' if several == 1 else 'rows'} of {self.shown}"
            said = f"{rows} {'holds' if several == 1 else 'hold'} several captions in {column}; the first counts"
            warnings.warn(said, TideWarning, stacklevel=2)
        return [read(value, f"the caption of {self.where(i)}") for i, value in enumerate(values)]

    def __len__(self) -> int:
        return len(self.captions)

    def caption(self, i: int) -> str:
        return self.captions[i]

    def cell(self, i: int) -> Cell:
        value, name = self.data[i][self.image], f"the image of {self.where(i)}"
        if self.folder is not None and isinstance(path := _path_of(value), str):
            value = _within(self.folder, path, name)
        return cell_of(value, name, paths=True)


class ListedRows(Rows):
    """A sequence of rows of one kind: mappings with columns, pairs of image and caption, or images alone. Paths are
    the caller's own, and may name any file."""

    def __init__(self, data: Sequence[Any], shown: str, images: str | None = None, captions: str | None = None) -> None:
        super().__init__(shown)
        self.data = data
        self._last: tuple[int, Any] = (-1, None)
        first = data[0]
        self.columns: tuple[Any, Any] | None = None
        if isinstance(first, Mapping) and not _is_file(first):
            names = list(dict.fromkeys(str(name) for row in data if isinstance(row, Mapping) for name in row))
            image = image_column(names, images)
            self.columns = image, caption_column(names, captions, image)
            self.notes = note_of(self.columns[1], captions)
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


def _path_of(value: Any) -> Any:
    """The path that stands for an image, if one does."""
    if not isinstance(value, Mapping):
        return value
    path = value.get("path")
    return path if value.get("bytes") is None and isinstance(path, str) and "://" not in path else None


def _within(folder: Path, path: str, name: str) -> Path:
    found = below(folder, path)
    if found is None:
        raise TideError(
            f"{name} is {one_line(path, 100)}, which is not in {folder}; save the data set with its images, or open it "
            "with datasets and give the rows"
        )
    return folder / found


def _is_file(row: Mapping[Any, Any]) -> bool:
    return set(row) == {"bytes", "path"}
