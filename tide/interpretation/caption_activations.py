"""Activations of images whose captions say words, labelled by the words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.interpretation.banking import drawn_tokens
from tide.interpretation.captioned import Captioned
from tide.interpretation.concepts import Annotated
from tide.interpretation.image_latents import image_activations
from tide.sae.model import TIDE

#: Tokens of an image that are read: a word says nothing of where it is shown, and whole images of many tokens would not
#: fit into memory.
PER_IMAGE = 256


def caption_activations(
    adapter: Adapter,
    model: TIDE,
    images: Sequence[Captioned],
    indices: Sequence[int],
    words: Sequence[str],
    timesteps: Tensor,
    *,
    seed: int = 0,
    batch_size: int = 4,
) -> Annotated:
    """What ``model`` reads of the images ``indices`` at ``timesteps``, of :data:`PER_IMAGE` tokens at most, the same of
    every image; labelled by which of ``words``, those that the images were picked for, their captions hold. Float32 on
    the CPU. An image's noise depends on ``seed`` and its index alone."""
    block = adapter.resolve_block(model.config.trained_block)
    read = image_activations(
        adapter,
        {block: model},
        [each.prepared for each in images],
        indices,
        timesteps=timesteps,
        seed=seed,
        batch_size=batch_size,
    )
    x, given = zip(*(_some_tokens(*of_blocks[block], seed) for of_blocks in read), strict=True)
    conditioning = None if given[0] is None else torch.cat(given, dim=-2)
    labels = {word: torch.tensor([word in images[i].words for i in indices]) for word in words}
    return Annotated(timesteps.float(), torch.stack(x, dim=1), labels=labels, conditioning=conditioning)


def _some_tokens(x: Tensor, conditioning: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
    """At most :data:`PER_IMAGE` of an image's tokens ``x [timesteps, tokens, d_model]``, on the CPU."""
    chosen = drawn_tokens(torch.ones(x.shape[1], dtype=torch.bool), PER_IMAGE, seed)
    return x[:, chosen.to(x.device)].float().cpu(), conditioning
