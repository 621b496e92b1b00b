"""What follows from a whole pass over the images: labels, neighbours, tables, sheets."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tide.activations.source import Source
from tide.adapters import Adapter
from tide.files import replace_file, tensors_writer
from tide.files.rows import Rows
from tide.files.writing import write_json
from tide.images.identity import digest
from tide.images.masked import Masked
from tide.index.gathering import IndexGathered
from tide.index.layout import BY_LATENT, FACTS, FIRING, FORMAT, NEIGHBOURS, PICTURES, SHEETS, TABLES, Facts
from tide.index.neighbours import nearest
from tide.index.sheets import write_sheets
from tide.index.tables import write_tables
from tide.interpretation.atlas import Atlas, Label, label_latents
from tide.interpretation.atlas_page import about_frames
from tide.interpretation.gathered import as_bytes
from tide.interpretation.word_labels import label_words, vocabulary


class Progress(Protocol):
    """Takes a stage, how much of it is done, and of how much."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def finish(
    adapter: Adapter,
    gathered: IndexGathered,
    source: Source,
    grid: tuple[int, ...],
    seed: int,
    on_progress: Progress,
) -> None:
    """Writes all files of the index into the folder of ``gathered``, ``index.json`` last.

    Args:
        adapter, source, seed: as of :func:`~tide.index.building.build_index`.
        gathered: of all images, its files closed.
        grid: rows and columns of an image's tokens; of a clip its frames of tokens before them.
        on_progress: as of :func:`~tide.index.building.build_index`.
    """
    folder, model, n = gathered.folder, gathered.model, gathered.model.n_latents
    labels, how = _labels(gathered, source, grid)
    alive = gathered.fired.sum(0) > 0
    total = 2 * n
    on_progress("neighbours", 0, total)
    fires, fires_cosine = nearest(gathered.sketch, NEIGHBOURS, lambda done: on_progress("neighbours", done, total))
    writes, writes_cosine = nearest(
        model.W_dec.detach().cpu() * alive[:, None], NEIGHBOURS, lambda done: on_progress("neighbours", n + done, total)
    )
    on_progress("tables", 0, 1)
    _write_tensors(
        gathered, {"fires": fires, "fires_cosine": fires_cosine} | {"writes": writes, "writes_cosine": writes_cosine}
    )
    images_of = _by_latent(gathered)
    names = [sample.name for sample in source.samples()]
    atlas = gathered.atlas()
    pictures = (folder / PICTURES).open("rb")

    def picture(image: int) -> bytes:
        start, end = gathered.offsets[image : image + 2]
        pictures.seek(start)
        return pictures.read(end - start)

    frames = about_frames(source.size[0], grid[0], gathered.map_size[0]) if len(grid) == 3 else None
    n_shown = 1 if frames is None else len(frames["shown"])
    tile = write_sheets(folder / SHEETS, gathered.n_images, picture, n_shown)
    height, width = _size_of(picture(0), n_shown)
    pictures.close()
    scores = gathered.scores.scores() if gathered.n_images > 1 else torch.full((n,), torch.nan)
    activity, step = atlas.activity.tolist(), atlas.frequency.argmax(0).tolist()
    strongest = gathered.top.values[:, 0].tolist()
    write_tables(
        folder / TABLES,
        (
            (i, activity[i], step[i], strongest[i], *_of_label(labels[i]), _number(float(scores[i])), images_of[i])
            for i in range(n)
        ),
        (
            (i, names[i], gathered.captions[i], gathered.offsets[i], gathered.offsets[i + 1])
            for i in range(gathered.n_images)
        ),
    )
    facts: Facts = {
        "format": FORMAT,
        "n_latents": n,
        "n_images": gathered.n_images,
        "n_tokens": gathered.n_tokens,
        "dead": int((~alive).sum()),
        "grid": list(grid),
        "map": list(gathered.map_size),
        "timesteps": gathered.timesteps.tolist(),
        "block": adapter.resolve_block(model.config.trained_block),
        "family": adapter.family,
        "pipeline": adapter.name,
        "sae": gathered.asked["sae"],
        "sae_config": asdict(model.config),
        "data": source.name,
        "data_digest": digest(repr((names, gathered.captions))),
        "labels": how,
        "monosemanticity": "captions",
        "picture": [height, width],
        "tile": list(tile),
        "seed": seed,
    }
    if frames is not None:
        facts["frames"] = frames
    write_json(folder / FACTS, facts)
    on_progress("tables", 1, 1)


def _size_of(jpeg: bytes, n_frames: int) -> tuple[int, int]:
    width, height = Image.open(io.BytesIO(jpeg)).size
    return height, width // n_frames


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _of_label(label: Label | None) -> tuple[str | None, str | None, float | None]:
    return (None, None, None) if label is None else (label.concept, label.level, label.auroc)


def _labels(
    gathered: IndexGathered, source: Source, grid: tuple[int, ...]
) -> tuple[tuple[Label | None, ...] | list[Label | None], str]:
    """A label of each latent, and what they are: "masks", "captions" or "none"."""
    n, batches = gathered.model.n_latents, source.batches
    if isinstance(batches, Masked):
        rows = torch.from_numpy(Rows(gathered.folder / "labelled.safetensors", "labelled")[:])
        masks = batches.masks(len(rows) // gathered.n_tokens, grid)
        flat = {concept: mask.flatten() for concept, mask in masks.items()}
        return label_latents(rows, flat, batches.level_of), "masks"
    words, found = vocabulary(gathered.captions), list[Label | None]()
    for _, peaks in dense_peaks(gathered.folder, gathered.counts, n):
        labels = label_words(peaks, words)
        if labels is None:
            return [None] * n, "none"
        found += labels
    return found, "captions"


def dense_peaks(folder: Path, counts: list[int], n_latents: int, size: int = 2**25) -> Iterator[tuple[int, Tensor]]:
    """The peaks ``[images, part]`` of some latents after the other, each with the number of the first of them."""
    latents = Rows(folder / "latents.safetensors", "latents")[:]
    peaks = Rows(folder / "peaks.safetensors", "peaks")[:]
    image = np.repeat(np.arange(len(counts)), counts)
    at_once = max(1, size // max(1, len(counts)))
    for first in range(0, n_latents, at_once):
        last = min(n_latents, first + at_once)
        chosen = (latents >= first) & (latents < last)
        dense = np.zeros((len(counts), last - first), dtype=np.float32)
        dense[image[chosen], latents[chosen] - first] = peaks[chosen]
        yield first, torch.from_numpy(dense)


def _by_latent(gathered: IndexGathered) -> list[int]:
    """Writes the images on which each latent fires, and its peaks there, one latent after the other; returns how many
    images each has."""
    latents = Rows(gathered.folder / "latents.safetensors", "latents")[:]
    peaks = Rows(gathered.folder / "peaks.safetensors", "peaks")[:]
    image = np.repeat(np.arange(gathered.n_images, dtype=np.int32), gathered.counts)
    order = np.argsort(latents, kind="stable")
    n_images = np.bincount(latents, minlength=gathered.model.n_latents)
    found = {
        "starts": torch.from_numpy(np.concatenate([[0], np.cumsum(n_images)]).astype(np.int64)),
        "images": torch.from_numpy(image[order]),
        "peaks": torch.from_numpy(peaks[order]),
    }
    replace_file(gathered.folder / FIRING, tensors_writer(found))
    return n_images.tolist()


def _write_tensors(gathered: IndexGathered, neighbours: Mapping[str, Tensor]) -> None:
    atlas, size = gathered.atlas(), gathered.map_size
    by_latent = {
        "frequency": atlas.frequency.T,
        "mean": atlas.mean.T,
        "top_images": atlas.top_images.int(),
        "top_values": atlas.top_values,
        "top_maps": atlas.maps,
        "mean_map": as_bytes(gathered.mean_map[:, None], size)[:, 0],
        # Rows of length 1, whose cosines are the same: half precision holds them, whatever the latents' scale.
        "sketch": torch.nn.functional.normalize(gathered.sketch, dim=1).half(),
        **_drawn(gathered, size),
        **_along_frames(atlas),
        **neighbours,
    }
    replace_file(gathered.folder / BY_LATENT, tensors_writer(by_latent))


def _along_frames(atlas: Atlas) -> dict[str, Tensor]:
    if atlas.frame_frequency is None or atlas.frame_mean is None or atlas.motion is None:
        return {}
    return {"frame_frequency": atlas.frame_frequency.T, "frame_mean": atlas.frame_mean.T, "motion": atlas.motion}


def _drawn(gathered: IndexGathered, size: tuple[int, ...]) -> dict[str, Tensor]:
    """The images drawn at random, by their values: the quantiles of the latent's peaks, the highest first."""
    drawn = gathered.drawn
    order = torch.where(drawn.images >= 0, drawn.values, -1.0).argsort(dim=1, descending=True, stable=True)
    maps = drawn.maps.gather(1, order[..., None].expand_as(drawn.maps))
    return {
        "drawn_images": drawn.images.gather(1, order).int(),
        "drawn_values": drawn.values.gather(1, order),
        # On the scale of the top images, so that weak firing looks weak.
        "drawn_maps": as_bytes(torch.cat([gathered.top.maps, maps], dim=1), size)[:, gathered.top.maps.shape[1] :],
    }
