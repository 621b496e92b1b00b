"""Whole images read at several timesteps: the activations that latents are then computed of."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tide.activations import Prepared
from tide.adapters import Adapter, Call, run_until
from tide.errors import TideError
from tide.sae.model import TIDE

#: Elements of a piece of dense latents; an image of 4096 tokens and 73728 latents is read in nine pieces.
PIECE = 2**25


@torch.no_grad()
def noised_activations(
    adapter: Adapter, model: TIDE, images: Prepared, noise: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Activations of every token of ``images`` with ``noise [images, c, h, w]`` mixed in at each of ``timesteps
    [timesteps]`` (eq. 3), at the block and tensor that ``model`` was trained on.

    Returns ``x [timesteps, images, tokens, d_model]`` in the pipeline's dtype, on its device, and what the
    transformer adds to its timestep embedding, ``[images, d_embedding]`` or None, which no timestep changes. Raises
    :class:`~tide.errors.TideError` for a model that does not know its block.
    """
    block = model.config.block
    if block is None:
        raise TideError("this SAE does not know its block; train it with `tide train`")
    kept: list[tuple[Tensor, Tensor | None]] = []

    def keep(x: Tensor, call: Call) -> None:
        kept.append((x.clone(), call.conditioning))

    for t in timesteps.tolist():
        noisy = adapter.add_noise(images.latents, noise, t)
        run_until(adapter, {block: keep}, partial(adapter.denoise, noisy, t, images.text), model.config.tensor)
    return torch.stack([x for x, _ in kept]), kept[0][1]
