"""Opens images with captions from wherever they are: a folder, a saved or named data set, rows in Python."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tide.checks import check_count
from tide.errors import TideError
from tide.images.folder import Folder
from tide.images.kinds import DICT, is_saved, kind_of
from tide.images.order import check_hold_out
from tide.images.rows import DatasetRows, ListedRows
from tide.images.samples import OnError, Selected, warn_of_captions
from tide.images.sets import ImageSet
from tide.images.stream import Stream
from tide.images.tensors import Size, check_size, n_frames_of
from tide.messages import one_line


def open_data(
    data: Any,
    size: Size,
    *,
    batch_size: int = 8,
    on_error: OnError = "raise",
    seed: int | None = 0,
    hold_out: float = 0.0,
    split: str = "train",
    image_column: str | None = None,
    caption_column: str | None = None,
) -> Selected | Stream:
    """Batches of images and captions, cropped about the centre to ``size``.

    Args:
        data: a folder of images (captions: :mod:`tide.images.captions`); a folder that ``datasets.save_to_disk``
            wrote; a Parquet file, or a folder of them; the name of a data set for ``datasets``, which is streamed; a
            ``Dataset``, ``DatasetDict`` or ``IterableDataset``; a sequence of pictures, of (picture, caption), or of
            mappings with columns.
        size: side in pixels, or (height, width); of clips (frames, height, width), the frames from their middle.
        batch_size: images a batch.
        on_error: "raise" for an unreadable image, or "skip" it with a warning.
        seed: of the order of the images; None for the data's own.
        hold_out: the share of images, in [0, 1), that is left out, chosen by a hash of their names alone.
        split: of a data set that has several.
        image_column, caption_column: default the first usual name that there is.

    Raises:
        TideError: there is no such data, it holds no images, columns are missing, or captions are faulty; and, on
            reaching it, for an unreadable image.
    """
    check_size(size)
    check_count("batch_size", batch_size)
    check_hold_out(hold_out)
    opened = _opened(data, split, image_column, caption_column, clips=n_frames_of(size) is not None)
    how: dict[str, Any] = {"on_error": on_error, "seed": seed, "hold_out": hold_out}
    if isinstance(opened, ImageSet):
        found = Selected(opened, size, batch_size, **how)
        if without := opened.without_caption():
            warn_of_captions(without, len(opened), f"of {opened.shown}", opened.how_to_caption)
            found.told = True
        return found
    rows, shown = opened
    return Stream(rows, shown, size, batch_size, **how, images=image_column, captions=caption_column)


def image_folder(path: str | Path, size: Size, **options: Any) -> Selected | Stream:
    """:func:`open_data` of a folder, whatever its name.

    Args:
        path: the folder.
        size: height and width in pixels to which images are fitted.
        **options: those of :func:`open_data`.
    """
    return open_data(Path(path), size, **options)


def _opened(
    data: Any, split: str, images: str | None, captions: str | None, *, clips: bool = False
) -> ImageSet | tuple[Any, str]:
    """A set of images, or rows to be streamed and what to call them."""
    if isinstance(data, str | Path):
        return _of_name(data, split, images, captions, clips)
    if hasattr(data, "column_names") and hasattr(data, "features"):
        return _of_rows(data, "the Dataset", images, captions)
    if isinstance(data, dict) and data and all(hasattr(each, "column_names") for each in data.values()):
        return _of_rows(_split_of(data, split, "the DatasetDict"), "the Dataset", images, captions, split)
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or isinstance(data, dict):
        raise TideError(
            f"data of type {type(data).__name__} cannot be read; give a folder, a data set's name, a Dataset, or a "
            "list of pictures, of (picture, caption) or of rows"
        )
    if len(data) == 0:
        raise TideError("the list of images is empty; give at least one")
    return ListedRows(data, "the list", images, captions)


def _of_name(
    spec: str | Path, split: str, images: str | None, captions: str | None, clips: bool
) -> ImageSet | tuple[Any, str]:
    kind, path = kind_of(spec), Path(spec)
    if kind == "folder":
        return Folder(path, f"{str(spec).rstrip('/')}/", captions, clips=clips)
    if find_spec("datasets") is None:
        what = "is read by the datasets library" if kind == "saved" else "is not a folder"
        remedy = "`pip install datasets`" if kind == "saved" else "give one, or `pip install datasets` to read the "
        raise TideError(f"{spec} {what}; {remedy}{'' if kind == 'saved' else 'data set of that name'}")
    if kind == "saved":
        several = path.is_dir() and ((path / DICT).is_file() or not is_saved(path))
        folder = path if path.is_dir() else path.parent
        return _of_rows(_saved(path, split), str(spec), images, captions, split if several else None, folder)
    return _named(str(spec), split), str(spec)


def _of_rows(
    rows: Any,
    shown: str,
    images: str | None,
    captions: str | None,
    split: str | None = None,
    folder: Path | None = None,
) -> ImageSet | tuple[Any, str]:
    """``split``: which one the rows are, where there were several. ``folder``: where they were read from."""
    if not hasattr(rows, "__len__"):
        return rows, shown
    if len(rows) == 0:
        raise TideError(f"{shown} holds no rows; give another data set or split")
    found = DatasetRows(rows, shown, images, captions, folder)
    if split is not None:
        found.options = {"split": split, **found.options}
    return found


def _named(name: str, split: str) -> Any:
    import datasets  # optional, and slow to import

    try:
        return datasets.load_dataset(name, split=split, streaming=True)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise TideError(
            f"data set {name} could not be opened ({one_line(reason)}); check its name and split"
        ) from error


def _saved(path: Path, split: str) -> Any:
    """The Dataset of a folder that ``save_to_disk`` wrote, or of Parquet files."""
    import datasets

    try:
        if path.is_dir() and is_saved(path):
            found = datasets.load_from_disk(str(path))
            return _split_of(found, split, str(path)) if (path / DICT).is_file() else found
        if path.is_dir():  # the names of the files tell the splits
            return datasets.load_dataset("parquet", data_dir=str(path), split=split)
        return datasets.Dataset.from_parquet(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, TideError):
            raise
        raise TideError(f"{path} could not be opened ({one_line(error)}); check the path, or save it again") from error


def _split_of(found: Any, split: str, shown: str) -> Any:
    if split not in found:
        raise TideError(f"{shown} has no split {split}; it has {one_line(', '.join(found))}: set split")
    return found[split]
