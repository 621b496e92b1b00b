"""Images with captions by name: a folder, a named data set, or rendered scenes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from tide.activations.data import ImageFolder, open_data
from tide.activations.source import Source
from tide.adapters import Adapter
from tide.adapters.sizes import image_size
from tide.errors import TideError
from tide.loading import BUNDLED, pipeline_name
from tide.scenes.samples import PIXELS, SceneSamples
from tide.scenes.scene import Split

#: Scenes unless ``images`` says otherwise.
DEFAULT_SCENES = 512


def open_source(
    name: str | Path,
    adapter: Adapter,
    *,
    images: int | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    scene_split: Split = "train",
    skip_unreadable: bool = False,
    split: str = "train",
    image_column: str = "image",
    caption_column: str = "text",
) -> Source:
    """Images with captions for a pipeline.

    Args:
        name: a folder of images (captions in ``metadata.jsonl`` or in a ``.txt`` beside each), a name for the
            ``datasets`` library, or "scenes" for rendered scenes.
        adapter: the pipeline's, for which the images are sized.
        images: the most that are read, at least 1; all if None (of scenes 512).
        size: height and width in pixels; the pipeline's own if None.
        batch_size: images a batch.
        seed: of the scenes.
        scene_split: the combinations that scenes are of: "train", "dev" or "test".
        skip_unreadable: leave unreadable images out, with a warning, in place of raising.
        split, image_column, caption_column: of a named data set.

    Raises:
        TideError: there is no such data, its size is not one of the pipeline's, or a named data set is given without
            ``images``.
    """
    name = str(name)
    if images is not None and images < 1:
        raise TideError(f"images = {images} must be at least 1, or None for all of them")
    if scene_split not in get_args(Split):
        raise TideError(f"scene_split {scene_split!r} is unknown; use one of {', '.join(get_args(Split))}")
    if name == BUNDLED:
        if size not in (None, (PIXELS, PIXELS)):
            raise TideError(f"scenes are {PIXELS} x {PIXELS} pixels; leave size off")
        n = images or DEFAULT_SCENES
        return Source(BUNDLED, (PIXELS, PIXELS), n, SceneSamples(scene_split, n, seed, batch_size), limited=True)
    pixels = image_size(adapter, size)
    data = open_data(
        name,
        pixels,
        batch_size=batch_size,
        on_error="skip" if skip_unreadable else "raise",
        split=split,
        image_column=image_column,
        caption_column=caption_column,
    )
    recorded = pipeline_name(name)
    if isinstance(data, ImageFolder):
        n = min(images or len(data), len(data))
        return Source(recorded, pixels, n, data, exact=not skip_unreadable, limited=n < len(data))
    if images is None:
        raise TideError(f"{name} does not say how many images it has; set images to the number to read")
    options = {"split": split, "image_column": image_column, "caption_column": caption_column}
    return Source(recorded, pixels, images, data, exact=False, limited=True, options=options)
