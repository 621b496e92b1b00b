"""Reads the activations of whole images at several timesteps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from tide.activations import Prepared
from tide.adapters import Adapter, Call, run_until
from tide.sae.model import TIDE
from tide.sae.position import of_steps

#: Elements of a piece of dense latents; an image of 4096 tokens and 73728 latents is read in nine pieces.
PIECE = 2**25


@torch.no_grad()
def calls_of_blocks(
    adapter: Adapter, blocks: Sequence[int], images: Prepared, noise: Tensor, timesteps: Tensor, tensor: str = "output"
) -> Iterator[dict[int, tuple[Tensor, Call]]]:
    """For each of ``timesteps [timesteps]``, what ``blocks`` hold of ``images`` with ``noise [images, c, h, w]`` mixed
    in (eq. 3), read in one pass: the tokens ``[images, tokens, d_model]``, in the pipeline's dtype on its device, and
    the call of the transformer."""
    seen: dict[int, tuple[Tensor, Call]] = {}

    def keep(block: int, x: Tensor, call: Call) -> None:
        seen[block] = x.clone(), call

    for t in timesteps.tolist():
        noisy = adapter.add_noise(images.latents, noise, t)
        run = partial(adapter.denoise, noisy, t, images.text)
        run_until(adapter, {block: partial(keep, block) for block in blocks}, run, tensor)
        yield dict(seen)
        seen.clear()


def noised_calls(
    adapter: Adapter, model: TIDE, images: Prepared, noise: Tensor, timesteps: Tensor
) -> Iterator[tuple[Tensor, Call]]:
    """:func:`calls_of_blocks` of the block and tensor that ``model`` was trained on.

    Raises :class:`~tide.errors.TideError` for a model that does not know its block.
    """
    block = model.config.trained_block
    for of_blocks in calls_of_blocks(adapter, [block], images, noise, timesteps, model.config.tensor):
        yield of_blocks[block]


def noised_activations(
    adapter: Adapter, model: TIDE, images: Prepared, noise: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor | None]:
    """All that :func:`noised_calls` yields: ``x [timesteps, images, tokens, d_model]``, and the conditioning
    ``[timesteps, images, d_embedding]`` or None."""
    found, calls = zip(*noised_calls(adapter, model, images, noise, timesteps), strict=True)
    return torch.stack(found), of_steps([call.conditioning for call in calls])
