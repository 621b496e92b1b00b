"""Images with captions from a folder or a ``datasets`` name, as batches for collection."""

from __future__ import annotations

import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tide.activations.options import check_count
from tide.errors import TideError
from tide.files import file_digest, read_text
from tide.files.schema import check_schema
from tide.images.decode import MAX_BYTES, open_picture, to_rgb
from tide.images.identity import Sample, digest
from tide.messages import one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
METADATA = "metadata.jsonl"

#: A side in pixels, or (height, width).
Size = int | tuple[int, int]
OnError = Literal["raise", "skip"]
_Pair = tuple[Tensor, str]


def to_tensor(image: Image.Image, size: Size) -> Tensor:
    """The image's centre in the aspect ratio of ``size``, resized to it: ``[3, H, W]`` float32 in [-1, 1].

    Transparent pixels become white and the EXIF orientation is applied (:func:`tide.images.to_rgb`).
    """
    height, width = (size, size) if isinstance(size, int) else size
    fitted = ImageOps.fit(to_rgb(image), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1


def _batched(pairs: Iterable[_Pair], batch_size: int) -> Iterator[tuple[Tensor, list[str]]]:
    images: list[Tensor] = []
    captions: list[str] = []
    for image, caption in pairs:
        images.append(image)
        captions.append(caption)
        if len(images) == batch_size:
            yield torch.stack(images), captions
            images, captions = [], []
    if images:
        yield torch.stack(images), captions


def _opened(source: Path | bytes, name: str, on_error: OnError) -> Image.Image | None:
    """The picture; None, after a warning, if it is unreadable and ``on_error`` is "skip"."""
    try:
        return open_picture(source, name)
    except TideError as error:
        if on_error == "raise":
            raise TideError(f"{error}, or skip unreadable images") from None
        warnings.warn(f"{error}; skipped", stacklevel=3)
        return None


class Samples(ABC):
    """Batches of images and captions, read again at every iteration, with a record of what was read.

    ``samples`` holds a :class:`~tide.images.identity.Sample` for every image that the last iteration passed.
    """

    #: Whether samples that are left out cost no more than reading their files.
    skips: ClassVar[bool] = True

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.samples: list[Sample] = []

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        """Batches of images ``[B, 3, H, W]`` float32 in [-1, 1] and their captions."""
        return self.from_sample(0)

    def from_sample(self, start: int) -> Iterator[tuple[Tensor, list[str]]]:
        """An iteration without the first ``start`` images. ``samples`` records them, too, once the first batch is
        read."""
        self.samples = []
        return _batched(self._pairs(start, self.samples), self.batch_size)

    @abstractmethod
    def _pairs(self, start: int, samples: list[Sample]) -> Iterator[_Pair]:
        """Images and captions from ``start`` on; appends every sample to ``samples``, also those before ``start``."""


class ImageFolder(Samples):
    """The images of a folder and their captions, sorted by file name; see :func:`image_folder`. Every iteration reads
    them again, and every file once more for its SHA-256. Images before the start of an iteration are not decoded,
    except with ``on_error="skip"``, because only decoding shows which ones are unreadable."""

    def __init__(self, path: Path, size: Size, batch_size: int, on_error: OnError) -> None:
        super().__init__(batch_size)
        self.path = path
        self.size = size
        self.on_error = on_error
        if not path.is_dir():
            raise TideError(f"{path} is not a folder; give one that holds images")
        self.files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        if not self.files:
            raise TideError(f"{path} holds no images; add some ({', '.join(SUFFIXES)}) or give another folder")
        self.captions = _metadata(path / METADATA)

    def __len__(self) -> int:
        """How many image files there are."""
        return len(self.files)

    def _pairs(self, start: int, samples: list[Sample]) -> Iterator[_Pair]:
        for file in self.files:
            if len(samples) < start and self.on_error == "raise":
                samples.append(self._sample(file, self._caption(file)))
                continue
            if (image := _opened(file, str(file), self.on_error)) is None:
                continue
            caption = self._caption(file)
            samples.append(self._sample(file, caption))
            if len(samples) > start:
                yield to_tensor(image, self.size), caption

    def _sample(self, file: Path, caption: str) -> Sample:
        return Sample(file.relative_to(self.path).as_posix(), file_digest(file)[:16], digest(caption))

    def _caption(self, file: Path) -> str:
        listed = self.captions.get(file.relative_to(self.path).as_posix())
        beside = file.with_suffix(".txt")
        if listed is not None or not beside.is_file():
            return listed or ""
        return read_text(beside).strip()


class _Line(TypedDict):
    file_name: str
    text: str


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    captions = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            check_schema(entry, _Line, "")
        except (ValueError, RecursionError):
            raise TideError(f'{path} line {number} is not {{"file_name": ..., "text": ...}}; correct it') from None
        name = os.path.normpath(entry["file_name"])
        if not _is_within(name) or not _is_file(path.parent / name):
            shown = one_line(name)
            raise TideError(f"{path} line {number} names {shown}, which is not in the folder; add or remove it")
        captions[Path(name).as_posix()] = entry["text"]
    return captions


def _is_within(name: str) -> bool:
    return not os.path.isabs(name) and os.pardir not in Path(name).parts


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False


def _check_size(size: Size, batch_size: int) -> None:
    if min((size,) if isinstance(size, int) else size) < 1:
        raise TideError(f"size {size} has no pixels; give the side in pixels or (height, width)")
    check_count("batch_size", batch_size)


def image_folder(path: str | Path, size: Size, *, batch_size: int = 8, on_error: OnError = "raise") -> ImageFolder:
    """Images of a folder (and its subfolders), read when they are needed, cropped about the centre to ``size``.

    Captions come from ``metadata.jsonl`` (lines with ``file_name`` and ``text``), else from a ``.txt`` of the same name
    next to the image; an image with neither has the empty prompt.

    Raises :class:`~tide.errors.TideError` for a folder that is missing or holds no images, for faulty metadata, and, on
    reaching it, for an unreadable image; ``on_error="skip"`` warns and skips that image.
    """
    _check_size(size, batch_size)
    return ImageFolder(Path(path), size, batch_size, on_error)


def is_folder(spec: str | Path) -> bool:
    """Whether ``spec`` is read as a folder, and not as the name of a data set."""
    path = Path(spec)
    # A string that can only be a path counts as one, which gives the clearer message.
    return path.is_dir() or path.is_absolute() or str(spec).startswith(".")


def open_data(
    spec: str | Path,
    size: Size,
    *,
    batch_size: int = 8,
    on_error: OnError = "raise",
    split: str = "train",
    image_column: str = "image",
    caption_column: str = "text",
) -> Samples:
    """Batches of images and captions from ``spec``: a folder, or the name of a data set for the ``datasets``
    library, which is streamed. ``split`` and the columns matter for the latter only.

    Raises :class:`~tide.errors.TideError` if ``spec`` is neither, or if the columns are not there.
    """
    if is_folder(spec):
        return image_folder(spec, size, batch_size=batch_size, on_error=on_error)
    if find_spec("datasets") is None:
        raise TideError(
            f"{spec} is not a folder; give one, or `pip install datasets` to read the data set of that name"
        )
    _check_size(size, batch_size)
    return _NamedData(str(spec), size, batch_size, on_error, split, image_column, caption_column)


class _NamedData(Samples):
    """A data set of the ``datasets`` library, streamed again at every iteration. Its samples are identified by the
    pixels as they are used."""

    skips = False

    def __init__(
        self, name: str, size: Size, batch_size: int, on_error: OnError, split: str, image: str, caption: str
    ) -> None:
        import datasets  # optional, and slow to import

        super().__init__(batch_size)
        self.name, self.size, self.on_error = name, size, on_error
        self.image, self.caption = image, caption
        try:
            rows: Any = datasets.load_dataset(name, split=split, streaming=True)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TideError(f"data set {name} could not be opened ({reason}); check its name and split") from error
        if rows.features:
            self._check_columns(rows.features)
            rows = rows.select_columns([image, caption])
            if isinstance(rows.features[image], datasets.Image):
                # The library would decode every format that Pillow knows, however large.
                rows = rows.cast_column(image, datasets.Image(decode=False))
        self.rows = rows

    def _check_columns(self, names: Collection[str]) -> None:
        if missing := {self.image, self.caption} - set(names):
            raise TideError(
                f"the data set has no column {sorted(missing)[0]}; it has {', '.join(names)}: "
                "set image_column and caption_column"
            )

    def _pairs(self, start: int, samples: list[Sample]) -> Iterator[_Pair]:
        for number, row in enumerate(self.rows):
            self._check_columns(row)
            caption = row[self.caption] or ""
            if not isinstance(caption, str):
                raise TideError(f"column {self.caption} of row {number} holds no text; set caption_column")
            if (picture := self._picture(row[self.image], f"row {number} of {self.name}")) is None:
                continue
            image = to_tensor(picture, self.size)
            samples.append(Sample(f"row {len(samples)}", digest(image), digest(caption)))
            if len(samples) > start:
                yield image, caption

    def _picture(self, value: Any, name: str) -> Image.Image | None:
        """The picture in a file's bytes, at a path or address, or given decoded."""
        if isinstance(value, Image.Image):
            return value
        if isinstance(value, dict):
            path = value.get("path")
            value = value.get("bytes")
            if value is None and isinstance(path, str):
                value = _fetched(path, name) if "://" in path else Path(path)
        if not isinstance(value, bytes | Path):
            raise TideError(f"column {self.image} of {name} holds no image; set image_column")
        return _opened(value, name, self.on_error)


def _fetched(path: str, name: str) -> bytes:
    """The bytes of an image that a data set keeps as a file elsewhere."""
    import fsspec  # comes with datasets

    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read(MAX_BYTES + 1)
            return content
    except (OSError, ValueError) as error:
        raise TideError(
            f"the image of {name} could not be fetched ({one_line(error)}); try again, or leave that row out"
        ) from None
