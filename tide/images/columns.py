"""Which columns of a data set hold the images and the captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tide.errors import TideError
from tide.images.prompts import CAPTIONS, prompt_of
from tide.messages import one_line

#: Columns that are taken for images where none is named, in this order.
IMAGES = ("image", "img", "picture", "images", "jpg", "png", "webp", "file_name", "path", "video", "mp4", "clip")


def image_column(names: Sequence[str], asked: str | None, features: Mapping[str, Any] | None = None) -> str:
    """The column ``asked`` for, else the first of :data:`IMAGES`, else the only one that the features call an image.

    Raises :class:`~tide.errors.TideError` if there is none.
    """
    found = _named(names, [asked] if asked else IMAGES)
    typed = [name for name, feature in (features or {}).items() if type(feature).__name__ in ("Image", "Video")]
    if found is None and not asked and len(typed) == 1:
        return typed[0]
    return found or _missing(names, asked, "image", "images")


def caption_column(names: Sequence[str], asked: str | None, image: str) -> str | None:
    """The column ``asked`` for, else the first of :data:`~tide.images.prompts.CAPTIONS`; None if there is no column but
    that of the images.

    Raises :class:`~tide.errors.TideError` if there are others, of which any could be meant.
    """
    if not asked and set(names) <= {image}:
        return None
    return _named(names, [asked] if asked else CAPTIONS) or _missing(names, asked, "text", "captions")


def undecoded_column(rows: Any, image: str) -> Any:
    """``rows`` of ``datasets`` with the images' or videos' column as bytes or paths."""
    import datasets  # there, as ``rows`` are made by it

    kinds = [kind for name in ("Image", "Video") if (kind := getattr(datasets, name, None)) is not None]
    kind = next((each for each in kinds if isinstance(rows.features[image], each)), None)
    return rows if kind is None else rows.cast_column(image, kind(decode=False))


def note_of(column: str | None, asked: str | None) -> tuple[str, ...]:
    """A sentence on a column of captions that nobody named."""
    return (f"captions are in the column {one_line(column)}",) if column not in (asked, "text", None) else ()


def _named(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _missing(names: Sequence[str], asked: str | None, usual: str, what: str) -> str:
    lacking = f"no column {asked}" if asked else f"no column of {what}, such as {usual}"
    option = "image_column" if what == "images" else "caption_column"
    raise TideError(f"the data set has {lacking}; it has {one_line(', '.join(names))}: set {option}")


def reader_of(feature: Any) -> Callable[[Any, str], str]:
    """What turns a cell of the captions' column into a prompt: :func:`~tide.images.prompts.prompt_of`, but for a
    column of classes their names."""
    name_of = getattr(feature, "int2str", None)
    if name_of is None:
        return prompt_of

    def read(value: Any, where: str) -> str:
        # -1 is no class, in a split without labels.
        return "" if value is None or value < 0 else str(name_of(value))

    return read
