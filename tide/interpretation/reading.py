"""Reads the activations of whole images at several timesteps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from tide.activations import Prepared
from tide.adapters import Adapter, Call, run_until
from tide.sae.model import TIDE

#: Elements of a piece of dense latents; an image of 4096 tokens and 73728 latents is read in nine pieces.
PIECE = 2**25


@torch.no_grad()
def noised_calls(
    adapter: Adapter, model: TIDE, images: Prepared, noise: Tensor, timesteps: Tensor
) -> Iterator[tuple[Tensor, Call]]:
    """For each of ``timesteps [timesteps]``, what the block and tensor that ``model`` was trained on hold of ``images``
    with ``noise [images, c, h, w]`` mixed in (eq. 3): the tokens ``[images, tokens, d_model]``, in the pipeline's dtype
    on its device, and the call of the transformer.

    Raises :class:`~tide.errors.TideError` for a model that does not know its block.
    """
    seen: list[tuple[Tensor, Call]] = []

    def keep(x: Tensor, call: Call) -> None:
        seen.append((x.clone(), call))

    for t in timesteps.tolist():
        noisy = adapter.add_noise(images.latents, noise, t)
        run = partial(adapter.denoise, noisy, t, images.text)
        run_until(adapter, {model.config.trained_block: keep}, run, model.config.tensor)
        yield seen.pop()


def noised_activations(
    adapter: Adapter, model: TIDE, images: Prepared, noise: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor | None]:
    """All that :func:`noised_calls` yields: ``x [timesteps, images, tokens, d_model]``, and the conditioning
    ``[images, d_embedding]`` or None, which is the same at all timesteps."""
    found, calls = zip(*noised_calls(adapter, model, images, noise, timesteps), strict=True)
    return torch.stack(found), calls[0].conditioning
