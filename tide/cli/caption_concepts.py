"""The paper's recipe on captioned images (section 5.4): pooled latents of the images whose caption holds a word,
cosine scores of their tokens, and the latents that the word raises most."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from tide.activations import Prepared, prepare
from tide.activations.collect import sample_generator
from tide.adapters import Adapter
from tide.cli.common import caption_length, image_size, to_image
from tide.cli.data import Source, open_source
from tide.editing.masks import image_mask
from tide.errors import TideError
from tide.interpretation import concept_scores, dense_latents
from tide.interpretation.reading import PIECE, noised_activations
from tide.interpretation.timesteps import concept_timesteps
from tide.sae import TIDE, inference
from tide.studies.figures import heat_overlay

#: Pixels of a picture's tiles.
TILE = 256
#: Latents listed for a concept, and how many of them are drawn.
LISTED, DRAWN = 10, 2


@dataclass(frozen=True)
class Picked:
    """An image chosen for a concept or as a contrast: encoded, and small for drawing."""

    prepared: Prepared
    caption: str
    words: frozenset[str]
    thumbnail: np.ndarray


def study(adapter: Adapter, model: TIDE, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """The concepts' table for ``concepts.json``, and a picture of each."""
    source = open_source(args, image_size(args, adapter), scene_split="test")
    picked = _pick(adapter, source, args)
    timesteps = concept_timesteps(adapter, args.timesteps)
    read = partial(_activations, adapter, model, timesteps=timesteps, seed=args.seed, batch_size=args.batch_size)
    pooled = torch.stack([_pooled(model, timesteps, *x) for x in read(picked, range(len(picked)))])
    background = pooled.mean(0)
    table: dict[str, dict[str, Any]] = {}
    top: dict[str, list[int]] = {}
    for word in args.concepts:
        shows = torch.tensor([word in each.words for each in picked])
        concept, rest = pooled[shows].mean(0), pooled[~shows].mean(0)
        best = (concept - rest).topk(min(LISTED, model.n_latents))
        likeness = F.cosine_similarity(pooled, (concept - background)[None]).masked_fill(~shows, -2.0)
        top[word] = likeness.topk(min(args.top_images, int(shows.sum()))).indices.tolist()
        table[word] = {
            "images": int(shows.sum()),
            "latent": int(best.indices[0]),
            "latents": [{"latent": int(i), "with": float(concept[i]), "without": float(rest[i])} for i in best.indices],
            "top_images": [{"caption": picked[i].caption, "score": float(likeness[i])} for i in top[word]],
        }
    drawn = sorted({i for indices in top.values() for i in indices})
    maps: dict[str, dict[int, Tensor]] = {word: {} for word in table}
    for i, x in zip(drawn, read(picked, drawn), strict=True):
        for word in (word for word in table if i in top[word]):
            shows = torch.tensor([word in each.words for each in picked])
            latents = [each["latent"] for each in table[word]["latents"][:DRAWN]]
            maps[word][i] = _maps(model, timesteps, *x, pooled[shows].mean(0), background, latents)
    scale = adapter.pixels_per_latent
    grid = adapter.token_grid(source.size[0] // scale, source.size[1] // scale)
    pictures = {word: _picture(picked, maps[word], table[word]["latents"][:DRAWN], grid) for word in table}
    return {"concepts": table, "timesteps": timesteps.tolist(), "data": source.name}, pictures


def _pick(adapter: Adapter, source: Source, args: argparse.Namespace) -> list[Picked]:
    """Up to ``--images-per-concept`` images a word, and as many without any of the words."""
    patterns = {word: re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE) for word in args.concepts}
    wanted = args.images_per_concept or (16 if args.fast else 64)
    left = dict.fromkeys((*patterns, ""), wanted)  # "" counts the images without any of the words
    picked: list[Picked] = []
    for images, captions in source:
        chosen, words = [], []
        for i, caption in enumerate(captions):
            found = [word for word, pattern in patterns.items() if pattern.search(caption)] or [""]
            if any(left[word] for word in found):
                chosen.append(i)
                words.append(frozenset(found))
                left |= {word: max(0, left[word] - 1) for word in found}
        if chosen:
            kept = [captions[i] for i in chosen]
            encoded = prepare(
                adapter, [(images[chosen], kept)], batch_size=len(chosen), max_sequence_length=caption_length(adapter)
            )
            rows = _rows(next(iter(encoded)))
            small = [_thumbnail(images[i]) for i in chosen]
            picked += [Picked(*each) for each in zip(rows, kept, words, small, strict=True)]
        if not any(left.values()):
            break
    for word in patterns:
        n = sum(word in each.words for each in picked)
        if n == 0:
            raise TideError(f"no caption of {source.name} holds {word!r}; name words that they do")
        if n == len(picked):
            raise TideError(f"every caption of {source.name} holds {word!r}; add images without it to contrast with")
    return picked


def _rows(batch: Prepared) -> list[Prepared]:
    return [
        Prepared(batch.latents[i : i + 1], {name: value[i : i + 1] for name, value in batch.text.items()})
        for i in range(len(batch.latents))
    ]


def _thumbnail(image: Tensor) -> np.ndarray:
    height, width = image.shape[1:]
    shape = (TILE, max(1, round(TILE * height / width)))
    resample = Image.Resampling.LANCZOS if width > TILE else Image.Resampling.NEAREST
    return np.asarray(to_image(image).resize(shape, resample))


def _activations(
    adapter: Adapter,
    model: TIDE,
    picked: Sequence[Picked],
    indices: Sequence[int],
    *,
    timesteps: Tensor,
    seed: int,
    batch_size: int,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """For each of ``indices``: its activations ``[timesteps, tokens, d_model]`` and its conditioning ``[1,
    d_embedding]``, if there is any.

    The noise of an image depends on ``seed`` and its index alone, so that reading it again gives the same.
    """
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        latents = torch.cat([picked[i].prepared.latents for i in part])
        names = picked[part[0]].prepared.text
        text = {name: torch.cat([picked[i].prepared.text[name] for i in part]) for name in names}
        noise = torch.stack([torch.randn(latents.shape[1:], generator=sample_generator(seed, i)) for i in part])
        x, conditioning = noised_activations(adapter, model, Prepared(latents, text), noise, timesteps)
        for row in range(len(part)):
            yield x[:, row], None if conditioning is None else conditioning[row : row + 1]


def _pieces(model: TIDE, timesteps: Tensor, x: Tensor, conditioning: Tensor | None) -> Iterator[Tensor]:
    """Latents ``[rows, n_latents]`` averaged over the timesteps, a piece of the image's tokens at a time."""
    for part in x.split(max(1, PIECE // model.n_latents), dim=1):
        total = torch.zeros(part.shape[1], model.n_latents, device=x.device)
        for i, t in enumerate(timesteps.tolist()):
            with inference(model):
                total += dense_latents(model, part[i], t, conditioning)
        yield total / len(timesteps)


def _pooled(model: TIDE, timesteps: Tensor, x: Tensor, conditioning: Tensor | None) -> Tensor:
    """``[n_latents]``, averaged over tokens and timesteps, on the CPU."""
    total = torch.stack([piece.sum(0) for piece in _pieces(model, timesteps, x, conditioning)]).sum(0)
    return (total / x.shape[1]).cpu()


def _maps(
    model: TIDE,
    timesteps: Tensor,
    x: Tensor,
    conditioning: Tensor | None,
    pooled: Tensor,
    background: Tensor,
    latents: list[int],
) -> Tensor:
    """``[1 + len(latents), tokens]``: the cosine score with the concept's pooled latents, then single latents."""
    maps = []
    for z in _pieces(model, timesteps, x, conditioning):
        score = concept_scores(z, pooled.to(z), background.to(z))
        maps.append(torch.stack([score.clamp(min=0), *(z[:, latent] for latent in latents)]).cpu())
    return torch.cat(maps, dim=1)


def _picture(
    picked: Sequence[Picked], maps: dict[int, Tensor], latents: list[dict[str, Any]], grid: tuple[int, int]
) -> Image.Image:
    """A row an image, the likest first: the image, the score and the strongest latents drawn over it."""
    tops = torch.stack(list(maps.values())).amax((0, 2)).tolist()
    rows = []
    for i, tokens in maps.items():
        small = picked[i].thumbnail
        heat = image_mask(tokens, grid, (small.shape[0], small.shape[1])).numpy()
        rows.append([small, *(heat_overlay(small, each, top) for each, top in zip(heat, tops, strict=True))])
    return grid_of(("image", "score", *(f"latent {each['latent']}" for each in latents)), rows)


def grid_of(header: Sequence[str], rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Tiles of one size (enlarged to :data:`TILE`) under their column's name."""
    height = round(TILE * rows[0][0].shape[0] / rows[0][0].shape[1])
    gap, line = 4, 20
    picture = Image.new("RGB", (len(header) * (TILE + gap) - gap, line + len(rows) * (height + gap) - gap), "white")
    draw = ImageDraw.Draw(picture)
    for column, name in enumerate(header):
        draw.text((column * (TILE + gap) + 2, 4), name, fill="black")
        for row, tiles in enumerate(rows):
            tile = Image.fromarray(np.ascontiguousarray(tiles[column]))
            at = (column * (TILE + gap), line + row * (height + gap))
            picture.paste(tile.resize((TILE, height), Image.Resampling.NEAREST), at)
    return picture
