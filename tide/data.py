"""Images with captions by name: a folder, a data set, rows in Python, or rendered scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from tide.activations.source import DIGESTS, Source
from tide.adapters import Adapter
from tide.adapters.sizes import image_size
from tide.errors import TideError
from tide.images.opening import open_data
from tide.images.samples import Selected
from tide.images.stream import Stream
from tide.loading import BUNDLED, pipeline_name
from tide.scenes.samples import PIXELS, SceneSamples
from tide.scenes.scene import Split

#: Scenes unless ``images`` says otherwise.
DEFAULT_SCENES = 512
#: What results record as the name of data that have none.
IN_PYTHON = "rows given in Python"


def open_source(
    data: Any,
    adapter: Adapter,
    *,
    images: int | None = None,
    size: tuple[int, ...] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    hold_out: float = 0.0,
    scene_split: Split = "train",
    skip_unreadable: bool = False,
    split: str = "train",
    image_column: str | None = None,
    caption_column: str | None = None,
) -> Source:
    """Images with captions for a pipeline.

    Images are read in an order that depends on ``seed`` and their names: the first ``images`` of them are a random
    sample, and images that are added leave the others in their order.

    Args:
        data: "scenes" for rendered scenes, or what :func:`tide.images.open_data` reads: a folder of images (captions
            in ``metadata.jsonl``, ``.csv`` or ``.parquet``, in a ``.txt`` beside each, or the names of class folders),
            a folder that ``datasets.save_to_disk`` wrote, Parquet files, the name of a data set, a ``Dataset``, a list
            of pictures, of (picture, caption) or of rows.
        adapter: the pipeline's, for which the images are sized.
        images: the most that are read, at least 1; all if None (of scenes 512).
        size: height and width in pixels; the pipeline's own if None.
        batch_size: images a batch.
        seed: of the order of the images, or of the scenes.
        hold_out: the share of the images, in [0, 1), that is left out, the same ones for every ``seed``: chosen by a
            hash of their names, in a folder, by that of their places in a data set, or of their contents if it is
            streamed. They stay left out when images are added, but for folders so small that one image was taken to
            have any.
        scene_split: the combinations that scenes are of: "train", "dev" or "test".
        skip_unreadable: leave unreadable images out, with a warning, in place of raising.
        split: of a data set that has several.
        image_column, caption_column: of a data set; default the first usual name that there is ("image" and "text",
            "caption", "prompt", "label" ...). The captions' column is also that of a folder's lists.

    Raises:
        TideError: there is no such data, its size is not one of the pipeline's, or a data set that is streamed is given
            without ``images``.
    """
    if images is not None and images < 1:
        raise TideError(f"images = {images} must be at least 1, or None for all of them")
    if scene_split not in get_args(Split):
        raise TideError(f"scene_split {scene_split!r} is unknown; use one of {', '.join(get_args(Split))}")
    if isinstance(data, str) and data == BUNDLED:
        return _scenes(scene_split, images or DEFAULT_SCENES, size, seed, batch_size, hold_out)
    pixels = image_size(adapter, size)
    opened = open_data(
        data,
        pixels,
        batch_size=batch_size,
        on_error="skip" if skip_unreadable else "raise",
        seed=seed,
        hold_out=hold_out,
        split=split,
        image_column=image_column,
        caption_column=caption_column,
    )
    name = pipeline_name(str(data)) if isinstance(data, str | Path) else IN_PYTHON
    if isinstance(opened, Selected):
        return _selected(opened, name, pixels, images, hold_out)
    return _streamed(opened, name, pixels, images, hold_out, split)


def _scenes(split: Split, n: int, size: tuple[int, ...] | None, seed: int, batch_size: int, hold_out: float) -> Source:
    if size not in (None, (PIXELS, PIXELS)):
        raise TideError(f"scenes are {PIXELS} x {PIXELS} pixels; leave size off")
    if hold_out:
        raise TideError("scenes have splits of their own; leave hold_out off, and evaluate on scene_split='test'")
    scenes = SceneSamples(split, n, seed, batch_size)
    return Source(BUNDLED, (PIXELS, PIXELS), n, scenes, limited=True, shown=BUNDLED)


def _selected(data: Selected, name: str, size: tuple[int, ...], images: int | None, hold_out: float) -> Source:
    n, total, shown = min(images or len(data), len(data)), len(data.images), data.images.shown
    reserved = total - len(data)
    held_out = f"{reserved:,} of the {total:,} images of {shown} {'are' if reserved > 1 else 'is'} held out"
    notes = (held_out,) if reserved else ()
    return Source(
        name,
        size,
        n,
        data,
        exact=data.on_error == "raise",
        limited=n < len(data),
        options={**data.images.options, **({DIGESTS: "files or pixels"} if data.images.options else {})},
        shown=shown,
        total=total,
        hold_out=hold_out,
        notes=(*data.images.notes, *notes),
    )


def _streamed(
    data: Stream, name: str, size: tuple[int, ...], images: int | None, hold_out: float, split: str
) -> Source:
    if images is None:
        raise TideError(f"{data.shown} does not say how many images it has; set images to the number to read")
    notes = (f"of the images of {data.shown}, one in {1 / hold_out:.3g} is held out",) if hold_out else ()
    return Source(
        name,
        size,
        images,
        data,
        exact=False,
        limited=True,
        options={"split": split, **data.options, DIGESTS: "files or pixels"},
        shown=data.shown,
        hold_out=hold_out,
        notes=(*data.notes, *notes),
    )
