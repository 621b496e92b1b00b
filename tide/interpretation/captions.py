"""The paper's recipe on captioned images (section 5.4): pooled latents of the images whose caption holds a word,
cosine scores of their tokens, and the latents that the word raises most."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tide.activations import Prepared, prepare
from tide.activations.collect import sample_generator
from tide.activations.source import Source
from tide.adapters import Adapter
from tide.adapters.sizes import caption_length, image_grid
from tide.editing.masks import image_mask
from tide.errors import TideError
from tide.interpretation.concepts import concept_scores
from tide.interpretation.reading import PIECE, noised_activations
from tide.interpretation.timesteps import concept_timesteps
from tide.pictures import TILE, heat_overlay, resized, to_uint8
from tide.sae import TIDE, Position
from tide.strips import tiled

#: Latents listed for a concept, and how many of them are drawn.
LISTED, DRAWN = 10, 2


@dataclass(frozen=True)
class Drawn:
    """An image that shows a concept: ``image`` uint8 ``[H, W, 3]``, small, and ``maps [1 + latents, tokens]``, the
    cosine score with the concept's pooled latents and then single latents, each averaged over the timesteps."""

    image: np.ndarray
    maps: Tensor


@dataclass(frozen=True)
class CaptionConcepts:
    """What :func:`caption_concepts` finds.

    Attributes:
        concepts: for each word, as JSON has it: ``images``, how many show it; ``latents``, the ten that it raises most
            with their mean ``with`` and ``without`` it; ``latent``, the first of these; ``top_images``, those most
            like the concept, each with its ``caption`` and ``score``.
        timesteps: that latents are averaged over, ``[T]``.
        n_images: how many images were used.
        grid: rows and columns of an image's tokens.
        drawn: for each word its top images with their maps, in the order of the data.
    """

    concepts: dict[str, dict[str, Any]]
    timesteps: Tensor
    n_images: int
    grid: tuple[int, int]
    drawn: dict[str, list[Drawn]]

    def picture(self, word: str) -> Image.Image:
        """A row for each top image: the image, then the score and the strongest latents drawn over it."""
        tops = torch.stack([each.maps for each in self.drawn[word]]).amax((0, 2)).tolist()
        rows = []
        for each in self.drawn[word]:
            heat = image_mask(each.maps, self.grid, (each.image.shape[0], each.image.shape[1])).numpy()
            overlays = (heat_overlay(each.image, one, top) for one, top in zip(heat, tops, strict=True))
            rows.append([each.image, *overlays])
        latents = self.concepts[word]["latents"][: len(tops) - 1]
        return tiled(("image", "score", *(f"latent {each['latent']}" for each in latents)), rows, title=word)


@dataclass(frozen=True)
class _Picked:
    """An image chosen for a concept or as a contrast: encoded, and small for drawing."""

    prepared: Prepared
    caption: str
    words: frozenset[str]
    thumbnail: np.ndarray


def caption_concepts(
    adapter: Adapter,
    model: TIDE,
    source: Source,
    words: Sequence[str],
    *,
    images_per_concept: int = 64,
    top_images: int = 4,
    timesteps: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 4,
) -> CaptionConcepts:
    """The latents that words of the captions raise, and where they fire in the images.

    A concept's pooled latents are averaged over the timesteps and the tokens of the images whose caption holds its
    word; an image is like the concept by its cosine with these minus the pooled latents of all images used.

    Args:
        adapter: of the pipeline that the model was trained on.
        model: an SAE that knows its block, on the adapter's device.
        source: images with captions, read until there are enough.
        words: whole words of the captions, whatever their case.
        images_per_concept: the most images for each word, and the most without any of the words.
        top_images: how many images to draw for each word.
        timesteps: ``[T]``; default three of :func:`~tide.interpretation.timesteps.concept_timesteps`.
        seed: random seed; every image has its own noise.
        batch_size: images per pass.

    Raises:
        TideError: there are no words or no images for them, no caption holds a word or every one does, the source
            cannot be read, or the model does not know its block.
    """
    if isinstance(words, str) or not words:
        raise TideError(f"words = {words!r} must be a list of one word or more, such as ['house']")
    if images_per_concept < 1 or top_images < 1:
        raise TideError(
            f"images_per_concept = {images_per_concept} and top_images = {top_images} must both be at least 1"
        )
    timesteps = concept_timesteps(adapter, 3) if timesteps is None else timesteps
    picked = _pick(adapter, source, words, images_per_concept)
    read = partial(_activations, adapter, model, picked, timesteps=timesteps, seed=seed, batch_size=batch_size)
    pooled = torch.stack([_pooled(model, timesteps, *x) for x in read(range(len(picked)))])
    shows = {word: torch.tensor([word in each.words for each in picked]) for word in words}
    top = {word: _likest(pooled, shows[word], top_images) for word in words}
    table = {word: _row(pooled, shows[word], *top[word], picked) for word in words}
    wanted = sorted({i for indices, _ in top.values() for i in indices})
    drawn: dict[str, list[Drawn]] = {word: [] for word in words}
    for i, x in zip(wanted, read(wanted), strict=True):
        for word in (word for word in words if i in top[word][0]):
            latents = [each["latent"] for each in table[word]["latents"][:DRAWN]]
            maps = _maps(model, timesteps, *x, pooled[shows[word]].mean(0), pooled.mean(0), latents)
            drawn[word].append(Drawn(picked[i].thumbnail, maps))
    return CaptionConcepts(table, timesteps, len(picked), image_grid(adapter, source.size), drawn)


def _likest(pooled: Tensor, shows: Tensor, n: int) -> tuple[list[int], list[float]]:
    """The ``n`` images that are most like the concept that they show, and their likeness, the highest first."""
    direction = pooled[shows].mean(0) - pooled.mean(0)
    likeness = F.cosine_similarity(pooled, direction[None]).masked_fill(~shows, -2.0)
    found = likeness.topk(min(n, int(shows.sum())))
    return found.indices.tolist(), found.values.tolist()


def _row(
    pooled: Tensor, shows: Tensor, top: list[int], scores: list[float], picked: Sequence[_Picked]
) -> dict[str, Any]:
    concept, rest = pooled[shows].mean(0), pooled[~shows].mean(0)
    best = (concept - rest).topk(min(LISTED, len(concept))).indices.tolist()
    return {
        "images": int(shows.sum()),
        "latent": best[0],
        "latents": [{"latent": i, "with": float(concept[i]), "without": float(rest[i])} for i in best],
        "top_images": [{"caption": picked[i].caption, "score": s} for i, s in zip(top, scores, strict=True)],
    }


def _pick(adapter: Adapter, source: Source, words: Sequence[str], wanted: int) -> list[_Picked]:
    """Up to ``wanted`` images a word, and as many without any of the words."""
    patterns = {word: re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE) for word in words}
    left = dict.fromkeys((*patterns, ""), wanted)  # "" counts the images without any of the words
    picked: list[_Picked] = []
    for images, captions in source:
        chosen, held = [], []
        for i, caption in enumerate(captions):
            found = [word for word, pattern in patterns.items() if pattern.search(caption)] or [""]
            if any(left[word] for word in found):
                chosen.append(i)
                held.append(frozenset(found))
                left |= {word: max(0, left[word] - 1) for word in found}
        if chosen:
            kept = [captions[i] for i in chosen]
            rows = _encoded(adapter, images[chosen], kept)
            size = (TILE, max(1, round(TILE * images.shape[2] / images.shape[3])))
            small = [resized(to_uint8(images[i]), size) for i in chosen]
            picked += [_Picked(*each) for each in zip(rows, kept, held, small, strict=True)]
        if not any(left.values()):
            break
    for word in patterns:
        n = sum(word in each.words for each in picked)
        if n == 0:
            raise TideError(f"no caption of {source.name} holds {word!r}; name words that they do")
        if n == len(picked):
            raise TideError(f"every caption of {source.name} holds {word!r}; add images without it to contrast with")
    return picked


def _encoded(adapter: Adapter, images: Tensor, captions: Sequence[str]) -> list[Prepared]:
    """The images encoded in one batch, then one by one."""
    length = caption_length(adapter)
    (batch,) = prepare(adapter, [(images, captions)], batch_size=len(images), max_sequence_length=length)
    return [
        Prepared(batch.latents[i : i + 1], {name: value[i : i + 1] for name, value in batch.text.items()})
        for i in range(len(batch.latents))
    ]


def _activations(
    adapter: Adapter,
    model: TIDE,
    picked: Sequence[_Picked],
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
            total += model.dense(part[i], Position(t, conditioning))
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
