"""An atlas of a whole source of images: read once, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tide.activations import prepare
from tide.activations.collect import sample_noise
from tide.activations.source import Source
from tide.adapters import Adapter
from tide.adapters.sizes import caption_length, image_grid
from tide.errors import TideError
from tide.interpretation.atlas import Atlas, build_atlas, label_latents
from tide.interpretation.atlas_page import thumbnail
from tide.interpretation.reading import noised_activations
from tide.pictures import to_image
from tide.sae.model import TIDE

#: Bytes of the latents that labels are measured on. 2700 scenes at 3072 latents.
LABEL_BYTES = 2 * 2**30


def read_atlas(
    adapter: Adapter,
    model: TIDE,
    source: Source,
    timesteps: Tensor,
    *,
    top_images: int = 6,
    seed: int = 0,
    masks: Mapping[str, Tensor] | None = None,
    level_of: Mapping[str, str] | None = None,
    progress: bool = False,
) -> tuple[Atlas, list[np.ndarray]]:
    """Reads all images of ``source`` into an atlas.

    Args:
        adapter: of the pipeline that the model was trained on.
        model: an SAE that knows its block, on the adapter's device.
        source: images with captions; each of its batches is one pass.
        timesteps: at which every image is read, ``[T]``, ascending.
        top_images: kept of each latent.
        seed: of the noise, which each image has its own of.
        masks: concept -> which tokens of the first images show it, bool ``[images, tokens]``, to label latents by; the
            images' latents are all held in memory (:func:`most_labelled` says how many fit).
        level_of: concept -> its level, such as "colour", for the labels.
        progress: show a bar on stderr if that is a terminal.

    Returns:
        The atlas, and a thumbnail of each image, uint8 ``[h, w, 3]``, in order: what
        :func:`~tide.interpretation.atlas_page.write_atlas` draws.

    Raises:
        TideError: the source cannot be read or is empty, an activation is not finite, the model does not know its
            block, or the masks are of more images than there are or have no level.
    """
    if masks and (unknown := masks.keys() - (level_of or {}).keys()):
        raise TideError(f"the level of the concept {min(unknown)!r} is not known; add it to level_of")
    grid = image_grid(adapter, source.size)
    kept = _Kept(model.n_latents, 0 if not masks else next(iter(masks.values())).numel())
    thumbnails: list[np.ndarray] = []
    with tqdm(total=source.n_images, unit="image", disable=None if progress else True) as bar:
        batches = _batches(adapter, model, source, timesteps, seed, thumbnails, bar)
        atlas = build_atlas(model, timesteps, batches, grid, top_images=top_images, on_latents=kept.add)
    if masks and level_of:
        flat = {concept: mask.flatten() for concept, mask in masks.items()}
        atlas = replace(atlas, labels=label_latents(kept.latents(), flat, level_of))
    return atlas, thumbnails


def most_labelled(n_latents: int, n_tokens: int) -> int:
    """How many images have latents of at most :data:`LABEL_BYTES`; at least 1."""
    return max(1, LABEL_BYTES // (4 * n_tokens * n_latents))


class _Kept:
    """The latents of the first rows, which are added as they are read."""

    def __init__(self, n_latents: int, n_rows: int) -> None:
        self.rows = torch.empty(n_rows, n_latents)
        self.filled = 0

    def add(self, latents: Tensor) -> None:
        rows = latents.flatten(0, 1)[: len(self.rows) - self.filled]
        self.rows[self.filled : self.filled + len(rows)] = rows
        self.filled += len(rows)

    def latents(self) -> Tensor:
        if self.filled < len(self.rows):
            raise TideError(
                f"the masks are of {len(self.rows)} tokens and the images have {self.filled}; give masks of them"
            )
        return self.rows


def _batches(
    adapter: Adapter, model: TIDE, source: Source, timesteps: Tensor, seed: int, thumbnails: list[np.ndarray], bar: tqdm
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Activations of all images of ``source`` in order, each with its own noise; appends to ``thumbnails``."""
    length = caption_length(adapter)
    for images, captions in source:
        (encoded,) = prepare(adapter, [(images, captions)], batch_size=len(images), max_sequence_length=length)
        noise = sample_noise(encoded.latents.shape, seed, len(thumbnails))
        thumbnails += [thumbnail(np.asarray(to_image(image))) for image in images]
        yield noised_activations(adapter, model, encoded, noise, timesteps)
        bar.update(len(images))
