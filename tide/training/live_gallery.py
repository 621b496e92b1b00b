"""Images for pictures of latents, from those that a live training reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from math import prod

import torch

from tide.activations.batch import ActivationBatch
from tide.activations.collect import collect
from tide.activations.options import CollectOptions
from tide.activations.source import Source
from tide.adapters.base import Adapter
from tide.adapters.sizes import caption_length, image_grid
from tide.pictures import to_uint8
from tide.training.latent_pictures import Gallery, middle_frame, n_images


def galleries(
    adapter: Adapter, source: Source, blocks: Sequence[int], options: CollectOptions, seed: int
) -> dict[int, Gallery]:
    """Block -> a gallery of the first images of ``source``, from one or a few passes for all blocks.

    They are noised at the timestep three quarters through the schedule, where what they show is decided. The passes
    draw from ``seed`` and their place alone, so that nothing else that is drawn changes.
    """
    grid = image_grid(adapter, source.size)
    each = ((image, text) for images, texts in source for image, text in zip(images, texts, strict=True))
    images, texts = zip(*islice(each, n_images(prod(grid))), strict=True)
    timesteps = adapter.sampling_timesteps(options.n_timesteps)
    whole = replace(options, token_fraction=1.0, paired=False)
    passes = collect(
        adapter,
        [(torch.stack(images), list(texts))],
        blocks,
        whole,
        timesteps=timesteps[3 * len(timesteps) // 4 :][:1],
        seed=seed,
        max_sequence_length=caption_length(adapter),
    )
    found = list(passes)
    pictures = [to_uint8(middle_frame(image)) for image in images]
    return {
        block: Gallery(ActivationBatch.cat([each[block] for each in found]).to("cpu"), pictures, grid)
        for block in blocks
    }
