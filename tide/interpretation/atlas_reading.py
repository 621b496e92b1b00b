"""An atlas of a whole source of images: read once, batch by batch, and written as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tide.activations import prepare
from tide.activations.collect import sample_noise
from tide.activations.source import Source, check_source
from tide.adapters import Adapter
from tide.adapters.sizes import caption_length, image_grid
from tide.errors import TideError
from tide.images.masked import Masked
from tide.interpretation.atlas import LEAST_AUROC, Atlas, ImageText, label_latents, shortened
from tide.interpretation.atlas_page import PAGE, thumbnail, write_atlas
from tide.interpretation.gathered import build_atlas
from tide.interpretation.reading import noised_activations
from tide.interpretation.word_labels import label_words
from tide.pictures import to_uint8
from tide.sae.model import TIDE

#: Bytes of the latents that labels are measured on. 2700 scenes at 3072 latents.
LABEL_BYTES = 2 * 2**30


def make_atlas(
    adapter: Adapter,
    model: TIDE,
    source: Source,
    out: str | Path,
    *,
    timesteps: Tensor | None = None,
    top_images: int = 6,
    limit: int = 4096,
    seed: int = 0,
    progress: bool = False,
    writing: AbstractContextManager[None] | None = None,
) -> Atlas:
    """Reads all images of ``source`` into an atlas and writes ``atlas.html``, ``atlas.safetensors`` and ``atlas.json``.

    Where it is known which tokens show which concept (rendered scenes), each latent is labelled with the concept that
    it fits best; elsewhere with the word of the captions that it tells best
    (:func:`~tide.interpretation.word_labels.label_words`).

    Args:
        out: the folder for the files.
        limit: the most active latents that the page shows; the other files hold all.
        writing: a context to enter while the files are written.
        adapter, model, source, timesteps, top_images, seed, progress: as for :func:`read_atlas`.

    The other arguments, and what is raised, are those of :func:`read_atlas`; also raises
    :class:`~tide.errors.TideError` if no latent fires or ``limit`` is below 1.
    """
    check_source(source)
    out, block = Path(out), model.config.trained_block
    masks, level_of = _known_masks(model, source, image_grid(adapter, source.size))
    options: dict[str, Any] = {"top_images": top_images, "seed": seed, "progress": progress}
    atlas, thumbnails = read_atlas(adapter, model, source, timesteps, masks=masks, level_of=level_of, **options)
    note = about_reading(adapter, model, source, atlas, 0 if not masks else len(next(iter(masks.values()))))
    with writing or nullcontext():
        write_files(out, atlas, thumbnails, data=source.name, block=block, note=note, limit=limit)
    return atlas


def about_reading(adapter: Adapter, model: TIDE, source: Source, atlas: Atlas, n_masked: int) -> str:
    """The note of an atlas's page: pipeline, images and how latents were labelled, by masks of ``n_masked`` images or,
    if that is 0, by captions."""
    name = adapter.name or type(adapter.pipe).__name__
    return f"Pipeline {name}, {what_was_read(model, source)}.{_about_labels(n_masked, atlas)}"


def write_files(
    out: Path, atlas: Atlas, thumbnails: Sequence[np.ndarray], *, data: str, block: int, note: str, limit: int
) -> None:
    """Writes ``atlas.html``, ``atlas.safetensors`` and ``atlas.json`` into ``out``; ``data`` is the name of the images'
    source. Further arguments and errors are those of :func:`~tide.interpretation.atlas_page.write_atlas`."""
    title = f"What the latents of block {block} respond to"
    write_atlas(out / PAGE, atlas, thumbnails, title=title, note=note, limit=limit)
    atlas.save(out, data=data, block=block)


def _known_masks(
    model: TIDE, source: Source, grid: tuple[int, ...]
) -> tuple[dict[str, Tensor] | None, Mapping[str, str] | None]:
    """The concepts' masks of the first images, as many as latents fit into memory for, and the concepts' levels."""
    if not isinstance(source.batches, Masked):
        return None, None
    n = min(source.n_images, most_labelled(model.n_latents, prod(grid)))
    return source.batches.masks(n, grid), source.batches.level_of


def what_was_read(model: TIDE, source: Source) -> str:
    """The images of the last iteration in words, and how many of them trained the checkpoint if it records that."""
    if model.trained_on is None:
        return source.described
    samples = source.samples()
    n = sum(sample.image in model.trained_on.images for sample in samples)
    share = "none" if n == 0 else "all" if n == len(samples) else f"{n:,}"
    return f"{source.described} ({share} of them training images)"


def _about_labels(n_masked: int, atlas: Atlas) -> str:
    """How latents were labelled, for the page."""
    if atlas.labels is None:
        return ""
    if n_masked:
        return (
            f" A latent's concept is the one whose masks its maps fit best, where the AUROC is at least {LEAST_AUROC}. "
            f"It was chosen and measured on the same {n_masked:,} scenes, so the AUROC is optimistic."
        )
    return (
        " A latent's concept is the word of the captions that its peaks in the images tell best. It was chosen on "
        f"every second image and measured on the others, and is shown where that AUROC is at least {LEAST_AUROC} and "
        "clearly above chance. The model reads the captions, too: a latent may follow the word and not what the image "
        "shows."
    )


def read_atlas(
    adapter: Adapter,
    model: TIDE,
    source: Source,
    timesteps: Tensor | None = None,
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
        timesteps: at which every image is read, ``[T]``, in any order; default those of a sampling run of 10 steps.
        top_images: kept of each latent.
        seed: random seed; every image has its own noise.
        masks: concept -> which tokens of the first images show it, bool ``[images, tokens]``, to label latents by; the
            images' latents are all held in memory (:func:`most_labelled` says how many fit). Without masks, latents
            are labelled by the words of the captions.
        level_of: concept -> its level, such as "colour", for the labels.
        progress: show a bar on stderr if that is a terminal.

    Returns:
        The atlas, with the names and captions of its top images, and a thumbnail of each image, uint8 ``[h, w, 3]``, in
        order (of clips ``[frames, h, w, 3]``): what :func:`~tide.interpretation.atlas_page.write_atlas` draws.

    Raises:
        TideError: the source cannot be read or is empty, an activation is not finite, the model does not know its
            block, or the masks are of more images than there are or have no level.
    """
    check_source(source)
    if masks and (unknown := masks.keys() - (level_of or {}).keys()):
        raise TideError(f"the level of the concept {min(unknown)!r} is not known; add it to level_of")
    timesteps = adapter.sampling_timesteps(10) if timesteps is None else timesteps
    grid = image_grid(adapter, source.size)
    kept = _Kept(model.n_latents, 0 if not masks else next(iter(masks.values())).numel())
    peaks = _Kept(model.n_latents, 0 if masks else min(source.n_images, most_labelled(model.n_latents, 1)))
    thumbnails: list[np.ndarray] = []
    captions: list[str] = []
    with tqdm(total=source.n_images, unit="image", disable=None if progress else True) as bar:
        batches = _batches(adapter, model, source, timesteps, seed, thumbnails, captions, bar)
        atlas = build_atlas(
            model,
            timesteps,
            batches,
            grid,
            top_images=top_images,
            on_latents=lambda latents: kept.add(latents.flatten(0, 1)),
            on_peaks=peaks.add,
        )
    names = [sample.name for sample in source.samples()]
    texts = {i: ImageText(names[i], captions[i]) for i in sorted(atlas.named_images())}
    atlas = replace(atlas, images=texts, n_frames=source.size[0] if len(source.size) == 3 else None)
    if masks and level_of:
        flat = {concept: mask.flatten() for concept, mask in masks.items()}
        return replace(atlas, labels=label_latents(kept.latents(), flat, level_of)), thumbnails
    atlas = replace(atlas, labels=label_words(peaks.rows[: peaks.filled], captions[: peaks.filled]))
    return atlas, thumbnails


def most_labelled(n_latents: int, n_tokens: int) -> int:
    """How many images have latents of at most :data:`LABEL_BYTES`; at least 1."""
    return max(1, LABEL_BYTES // (4 * n_tokens * n_latents))


class _Kept:
    """Latents ``[rows, n_latents]``, the first ones of those that are added."""

    def __init__(self, n_latents: int, n_rows: int) -> None:
        self.rows = torch.empty(n_rows, n_latents)
        self.filled = 0

    def add(self, rows: Tensor) -> None:
        rows = rows[: len(self.rows) - self.filled]
        self.rows[self.filled : self.filled + len(rows)] = rows
        self.filled += len(rows)

    def latents(self) -> Tensor:
        if self.filled < len(self.rows):
            raise TideError(
                f"the masks are of {len(self.rows)} tokens and the images have {self.filled}; give masks of them"
            )
        return self.rows


def _batches(
    adapter: Adapter,
    model: TIDE,
    source: Source,
    timesteps: Tensor,
    seed: int,
    thumbnails: list[np.ndarray],
    captions: list[str],
    bar: tqdm,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Activations of all images of ``source`` in order, each with its own noise; appends to ``thumbnails`` and
    ``captions``."""
    length = caption_length(adapter)
    for images, texts in source:
        (encoded,) = prepare(adapter, [(images, texts)], batch_size=len(images), max_sequence_length=length)
        noise = sample_noise(encoded.latents.shape, seed, len(thumbnails))
        thumbnails += [thumbnail(to_uint8(image)) for image in images]
        captions += [shortened(text) for text in texts]
        yield noised_activations(adapter, model, encoded, noise, timesteps)
        bar.update(len(images))
