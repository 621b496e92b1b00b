"""Concepts of captioned images: the latents that tell images with a word from the others, chosen on one half of the
images and scored on the other, and the paper's recipe (section 5.4) for where they are: pooled latents of the images
whose caption holds the word, and cosine scores of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tide.activations.source import Source, check_source
from tide.adapters import Adapter
from tide.adapters.sizes import image_grid
from tide.clip import filmstrip, shown_frames
from tide.editing.masks import image_mask, token_frames
from tide.errors import TideError
from tide.evaluation.baselines import untrained
from tide.evaluation.table import check_models, trained_on
from tide.images.trained import Kind
from tide.interpretation.captioned import Captioned, pick_images
from tide.interpretation.image_latents import Activations, Pooled, image_activations, latent_maps, pool
from tide.interpretation.image_scores import FEWEST, Halves, halves, score, strongest
from tide.interpretation.timesteps import concept_timesteps
from tide.pictures import heat_overlay
from tide.sae import TIDE
from tide.strips import tiled

#: Latents listed for a concept, and how many of them are drawn.
LISTED, DRAWN = 10, 2


@dataclass(frozen=True)
class Drawn:
    """An image that shows a concept: ``image`` uint8 ``[H, W, 3]``, small, and ``maps [1 + latents, tokens]``, the
    cosine score with the concept's pooled latents and then single latents, each averaged over the timesteps. Of a clip
    ``[F, H, W, 3]``, the frames that are drawn."""

    image: np.ndarray
    maps: Tensor


@dataclass(frozen=True)
class CaptionConcepts:
    """What :func:`caption_concepts` finds.

    Attributes:
        concepts: for each word, as JSON has it:

            - ``images``, ``without``: how many images show it and how many do not.
            - ``latent``, ``auroc``, ``interval``: the latent chosen on one half of them; on the other half, how well
              its mean over an image's tokens tells images with the word from those without (0.5 is chance, 1 perfect),
              with the 95 % interval. None with fewer than :data:`~tide.interpretation.image_scores.FEWEST` of either;
              the latent is then chosen on all.
            - ``remark``: "too few images to score", "near chance" if the interval reaches down to 0.5, "neuron as good"
              or "random as good" if the AUROC of these is no lower, or "".
            - ``neuron``, ``random``: the same for the activation's channels (with their ``sign``) and for the latents
              of an untrained autoencoder of the same shape.
            - ``latents``: the ten chosen first, each with its mean ``with`` and ``without`` the word and its ``auroc``,
              on the half that scores.
            - ``top_images``: those of that half most like the concept, each with its ``caption`` and ``score``.
        timesteps: that latents are averaged over, ``[T]``.
        n_images: how many images were used.
        grid: rows and columns of an image's tokens; of a clip its frames of tokens before them.
        drawn: for each word its top images with their maps, in the order of the data.
        kind: what the images are to the model: "held-out", "training" or "unrecorded".
        n_read: how many captions were read, and ``described`` of what.
        n_frames: of a clip; None for images.
    """

    concepts: dict[str, dict[str, Any]]
    timesteps: Tensor
    n_images: int
    grid: tuple[int, ...]
    drawn: dict[str, list[Drawn]]
    kind: Kind
    n_read: int
    described: str
    n_frames: int | None = None

    def picture(self, word: str) -> Image.Image:
        """A row for each top image: the image, then the score and the strongest latents drawn over it. Of clips this
        sheet for each frame that is drawn, as a :func:`~tide.clip.filmstrip`."""
        drawn = self.drawn[word]
        if self.n_frames is None:
            return self._sheet(word, [each.image for each in drawn], [each.maps for each in drawn])
        of_frame = token_frames(self.n_frames, self.grid[0])
        maps = [each.maps.unflatten(1, (self.grid[0], -1)) for each in drawn]
        return filmstrip(
            [
                self._sheet(word, [each.image[i] for each in drawn], [each[:, of_frame[frame]] for each in maps])
                for i, frame in enumerate(shown_frames(self.n_frames))
            ]
        )

    def _sheet(self, word: str, images: list[np.ndarray], maps: list[Tensor]) -> Image.Image:
        """Images or frames, and their maps ``[1 + latents, tokens]``; the same colours in all frames."""
        tops = torch.stack([each.maps for each in self.drawn[word]]).amax((0, 2)).tolist()
        rows = []
        for image, own in zip(images, maps, strict=True):
            heat = image_mask(own, self.grid[-2:], (image.shape[0], image.shape[1])).numpy()
            overlays = (heat_overlay(image, one, top) for one, top in zip(heat, tops, strict=True))
            rows.append([image, *overlays])
        latents = self.concepts[word]["latents"][: len(tops) - 1]
        columns = ("image" if self.n_frames is None else "clip", "score")
        return tiled((*columns, *(f"latent {each['latent']}" for each in latents)), rows, title=word)


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
    """The latents that tell images with a word in their caption from the others, and where they fire.

    For each word the images with it and those without it are halved at random. On one half the latent is chosen whose
    mean over tokens and timesteps has the highest AUROC; on the other half it is scored, so that the score needs no
    correction for the number of latents. A raw neuron and a latent of an untrained autoencoder, chosen and scored
    alike, stand beside it. A concept's pooled latents are those of the choosing half's images with the word, and an
    image is like the concept by its cosine with these minus the pooled latents of all images of that half.

    Images that the model was trained on are left out where enough remain (:func:`pick_images`).

    Args:
        adapter: of the pipeline that the model was trained on.
        model: an SAE that knows its block, on the adapter's device.
        source: images with captions, read until there are enough.
        words: whole words of the captions, one or several in a row, whatever their case
            (:func:`tide.images.words.holds`).
        images_per_concept: the most images read for each word, and the most without it.
        top_images: how many images to draw for each word.
        timesteps: ``[T]``; default three of :func:`~tide.interpretation.timesteps.concept_timesteps`.
        seed: of the halves, of the untrained autoencoder and of every image's noise.
        batch_size: images per pass.

    Raises:
        TideError: there are no words or no images for them, no caption holds a word or every one does, the source
            cannot be read, or the model does not know its block.
    """
    check_source(source)
    block = adapter.resolve_block(model.config.trained_block)
    options: dict[str, Any] = {"images_per_concept": images_per_concept, "top_images": top_images}
    options |= {"timesteps": timesteps, "seed": seed, "batch_size": batch_size}
    return caption_concepts_of_blocks(adapter, {block: model}, source, words, **options)[block]


def caption_concepts_of_blocks(
    adapter: Adapter,
    models: Mapping[int, TIDE],
    source: Source,
    words: Sequence[str],
    *,
    images_per_concept: int = 64,
    top_images: int = 4,
    timesteps: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 4,
) -> dict[int, CaptionConcepts]:
    """:func:`caption_concepts` of the autoencoders of several blocks, ``models``, on the same images and halves; the
    passes of the transformer are shared. Left out are the images that trained any of the models.

    Args:
        adapter: of the pipeline that the models were trained on.
        models: block -> its autoencoder.
        source, words, images_per_concept, top_images, timesteps, seed, batch_size: as for :func:`caption_concepts`.
    """
    check_source(source)
    check_models(adapter, models)
    if isinstance(words, str) or not words:
        raise TideError(f"words = {words!r} must be a list of one word or more, such as ['house']")
    if images_per_concept < 1 or top_images < 1:
        raise TideError(
            f"images_per_concept = {images_per_concept} and top_images = {top_images} must both be at least 1"
        )
    timesteps = concept_timesteps(adapter, 3) if timesteps is None else timesteps
    picked = pick_images(adapter, source, words, images_per_concept, trained_on(models.values()))
    images = [each.prepared for each in picked.images]
    read = partial(image_activations, adapter, models, images, timesteps=timesteps, seed=seed, batch_size=batch_size)
    pooled = pool(
        read(range(len(images))),
        timesteps,
        {block: {"latents": model, "random": untrained(model, seed)} for block, model in models.items()},
    )
    found = {
        block: {word: _Concept.of(word, picked.images, own, top_images, seed) for word in words}
        for block, own in pooled.items()
    }
    drawn = _drawn(found, models, read, picked.images, timesteps)
    return {
        block: CaptionConcepts(
            {word: each.row for word, each in of_words.items()},
            timesteps,
            len(images),
            image_grid(adapter, source.size),
            drawn[block],
            picked.kind,
            picked.n_read,
            picked.described,
            source.size[0] if len(source.size) == 3 else None,
        )
        for block, of_words in found.items()
    }


def _drawn(
    found: Mapping[int, Mapping[str, _Concept]],
    models: Mapping[int, TIDE],
    read: Callable[[list[int]], Iterator[dict[int, Activations]]],
    images: Sequence[Captioned],
    timesteps: Tensor,
) -> dict[int, dict[str, list[Drawn]]]:
    """Block -> word -> its top images with their maps, read once for all blocks."""
    drawn: dict[int, dict[str, list[Drawn]]] = {block: {word: [] for word in own} for block, own in found.items()}
    wanted = sorted({i for own in found.values() for each in own.values() for i in each.top})
    for i, of_blocks in zip(wanted, read(wanted), strict=True):
        for block, own in found.items():
            for word, each in own.items():
                if i in each.top:
                    x, latents = of_blocks[block], each.latents[:DRAWN]
                    maps = latent_maps(models[block], timesteps, *x, each.pooled, each.background, latents)
                    drawn[block][word].append(Drawn(images[i].thumbnail, maps))
    return drawn


@dataclass(frozen=True)
class _Concept:
    """A word's ``row`` of the table, its ``latents``, the ``top`` images, and the direction that likeness and maps are
    measured along: ``pooled`` minus ``background``."""

    row: dict[str, Any]
    latents: list[int]
    top: list[int]
    pooled: Tensor
    background: Tensor

    @classmethod
    def of(cls, word: str, images: Sequence[Captioned], pooled: Pooled, top_images: int, seed: int) -> _Concept:
        shows = torch.tensor([word in each.words for each in images])
        half = halves(shows, seed)
        z = pooled["latents"]
        chosen, _ = strongest(z[half.choosing], shows[half.choosing], LISTED)
        of_word, background = z[half.choosing][shows[half.choosing]].mean(0), z[half.choosing].mean(0)
        top, likeness = _likest(z, half.scoring[shows[half.scoring]], of_word - background, top_images)
        row = {
            "images": int(shows.sum()),
            "without": int((~shows).sum()),
            **_row(pooled, shows, half, chosen),
            "top_images": [{"caption": images[i].caption, "score": s} for i, s in zip(top, likeness, strict=True)],
        }
        return cls(row, chosen, top, of_word, background)


def _likest(pooled: Tensor, among: Tensor, direction: Tensor, n: int) -> tuple[list[int], list[float]]:
    """The ``n`` images most like a direction, and their likeness, the highest first."""
    likeness = F.cosine_similarity(pooled[among], direction[None]).topk(min(n, len(among)))
    return among[likeness.indices].tolist(), likeness.values.tolist()


def _row(pooled: Pooled, shows: Tensor, half: Halves, chosen: list[int]) -> dict[str, Any]:
    z, there = pooled["latents"][half.scoring], shows[half.scoring]
    (neuron,), (sign,) = strongest(pooled["neurons"][half.choosing], shows[half.choosing], 1, signed=True)
    (random,), _ = strongest(pooled["random"][half.choosing], shows[half.choosing], 1)
    unknown = {"auroc": None, "interval": None}
    scored = partial(score, shows=there) if half.scores else lambda values: unknown
    latent = scored(z[:, chosen[0]])
    beside = {
        "neuron": {"neuron": neuron, "sign": sign, **scored(sign * pooled["neurons"][half.scoring, neuron])},
        "random": {"latent": random, **scored(pooled["random"][half.scoring, random])},
    }
    means = zip(chosen, z[there][:, chosen].mean(0).tolist(), z[~there][:, chosen].mean(0).tolist(), strict=True)
    return {
        "latent": chosen[0],
        **latent,
        "remark": _remark(latent, beside),
        **beside,
        "latents": [{"latent": i, "with": w, "without": o, "auroc": scored(z[:, i])["auroc"]} for i, w, o in means],
    }


def _remark(latent: dict[str, Any], beside: dict[str, dict[str, Any]]) -> str:
    if latent["auroc"] is None:
        return f"too few images to score (fewer than {FEWEST} with it or without)"
    if latent["interval"][0] <= 0.5:
        return "near chance"
    equal = [name for name, each in beside.items() if each["auroc"] >= latent["auroc"]]
    return f"{' and '.join(equal)} as good" if equal else ""
