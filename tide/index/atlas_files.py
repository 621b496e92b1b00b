"""The page and the files of an atlas, made from an index without reading the images again."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from tide.activations.source import Source
from tide.adapters import Adapter
from tide.index.reading import Index
from tide.index.sheets import parted
from tide.interpretation.atlas import Atlas
from tide.interpretation.atlas_page import thumbnail
from tide.interpretation.atlas_reading import about_reading, most_labelled, write_files
from tide.sae.model import TIDE

_SCORES = " Monosemanticity is how alike the captions are of the images on which a latent fires, from -1 to 1."


def thumbnails(index: Index) -> list[np.ndarray]:
    """A thumbnail of each image, uint8 ``[h, w, 3]`` (of clips ``[frames, h, w, 3]``), in order: what
    :func:`~tide.interpretation.atlas_page.write_atlas` draws."""
    pictures = (parted(index.picture(image), index.n_shown) for image in range(index.n_images))
    if "frames" not in index.facts:
        return [thumbnail(np.asarray(picture)) for (picture,) in pictures]
    return [thumbnail(np.stack([np.asarray(frame) for frame in frames])) for frames in pictures]


def write_atlas_files(
    index: Index,
    adapter: Adapter,
    model: TIDE,
    source: Source,
    out: str | Path,
    *,
    limit: int = 4096,
    writing: AbstractContextManager[None] | None = None,
) -> Atlas:
    """Writes ``atlas.html``, ``atlas.safetensors`` and ``atlas.json`` of an index.

    Args:
        index: of ``model`` on ``source``, read with ``adapter``, just now
            (:func:`~tide.index.building.build_index`).
        out: the folder for the files.
        limit: the most active latents that the page shows; the other files hold all.
        writing: a context to enter while the files are written.

    Raises :class:`~tide.errors.TideError` if no latent fires or ``limit`` is below 1.
    """
    atlas, facts = index.atlas(), index.facts
    masked = min(index.n_images, most_labelled(index.n_latents, facts["n_tokens"])) if facts["labels"] == "masks" else 0
    note = about_reading(adapter, model, source, atlas, masked) + _SCORES
    pictures = thumbnails(index)
    with writing or nullcontext():
        write_files(Path(out), atlas, pictures, data=facts["data"], block=facts["block"], note=note, limit=limit)
    return atlas
