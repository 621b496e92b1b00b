"""Raw steering away from an unwanted concept: the rival of a guard that knows no latents."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from tide.adapters import Adapter
from tide.editing import Steer, edit
from tide.editing.record import record_contrast
from tide.scenes.annotate import N_SAMPLING_STEPS, images_of
from tide.scenes.pipeline import MAX_CAPTION_TOKENS
from tide.studies.safety.prompts import Unwanted, asking
from tide.studies.safety.rivals import Rival


@torch.no_grad()
def away_from(adapter: Adapter, concept: Unwanted, block: int, *, n_images: int = 96, seed: int = 0) -> Steer:
    """What the neutral word changes at every place of the block, from training scenes: the mean difference of the
    activations of noised images under the caption with the neutral word and under the one with the unwanted word.

    Half of the images show the one, half the other: an image on the way from one to the other is between them.
    """
    scenes = [request.scene for request in asking(concept, "train", n_images // 2, seed)]
    scenes += [scene.changed(concept.attribute, concept.neutral) for scene in scenes]
    captions = [
        [scene.changed(concept.attribute, value).caption() for scene in scenes]
        for value in (concept.neutral, concept.value)
    ]
    found = record_contrast(
        adapter,
        [block],
        adapter.encode_images(images_of(scenes)),
        (captions[0], captions[1]),
        adapter.sampling_timesteps(N_SAMPLING_STEPS),
        seed=seed,
        max_sequence_length=MAX_CAPTION_TOKENS,
    )[block]
    return Steer(found.timesteps, found.direction.mean(1))


def steered(direction: Steer, factor: float, block: int) -> Rival:
    """Every image is moved along ``direction``, at every token and step: nothing says which image has to be."""
    change = Steer(direction.timesteps, direction.direction, factor)

    def context(pipe: Any) -> AbstractContextManager[Any]:
        return edit(pipe, None, change, block=block)

    return Rival("raw steering", context=context)
