"""Tokens of images at several timesteps, read off several blocks in the same passes of the transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tide.activations.collect import Prepared, draw_tokens, sample_generator, sample_noise
from tide.adapters import Adapter, Call, run_until
from tide.errors import TideError
from tide.sae.position import Position, at_step, of_steps


@dataclass(frozen=True)
class BlockTokens:
    """Some tokens of images: activations ``x [timesteps, images, tokens, d_model]`` in the pipeline's dtype, at
    ``timesteps [timesteps]``, with ``conditioning [timesteps, images, d_embedding]`` or None (``[images, d_embedding]``
    if all timesteps share it)."""

    timesteps: Tensor
    x: Tensor
    conditioning: Tensor | None = None

    def at(self, i: int, device: torch.device) -> tuple[Tensor, Position]:
        """The rows ``[images * tokens, d_model]`` of timestep i in float32, and where they stand."""
        given = at_step(self.conditioning, i)
        conditioning = None if given is None else given.to(device)
        return self.x[i].flatten(0, 1).to(device).float(), Position(float(self.timesteps[i]), conditioning)

    def steps(self, device: torch.device) -> Iterator[tuple[Tensor, Position]]:
        """:meth:`at` of every timestep."""
        return (self.at(i, device) for i in range(len(self.timesteps)))


def token_places(n_images: int, n_tokens: int, fraction: float, seed: int) -> Tensor:
    """The places of a random ``fraction`` of each image's tokens, ``[images, tokens]``; those of an image depend on
    ``seed`` and its number alone."""
    return torch.stack([draw_tokens(n_tokens, fraction, sample_generator(seed, i, 1)) for i in range(n_images)])


@torch.no_grad()
def read_tokens(
    adapter: Adapter,
    images: Sequence[Prepared],
    blocks: Sequence[int],
    timesteps: Tensor,
    places: Tensor,
    *,
    tensor: str = "output",
    seed: int = 0,
) -> dict[int, BlockTokens]:
    """The tokens ``places [images, tokens]`` of ``images`` noised to each of ``timesteps`` (eq. 3), by block, on the
    CPU. The noise of an image depends on ``seed`` and its number alone. A pass ends after the last of ``blocks``.

    Raises :class:`~tide.errors.TideError` for activations that are not finite.
    """
    kept: dict[int, list[list[Tensor]]] = {block: [[] for _ in timesteps] for block in blocks}
    given: dict[int, list[list[Tensor]]] = {block: [[] for _ in timesteps] for block in blocks}
    first = 0
    for latents, text in images:
        own = places[first : first + len(latents)]
        noise = sample_noise(latents.shape, seed, first)
        for i, t in enumerate(timesteps.tolist()):
            noisy = adapter.add_noise(latents, noise, t)
            calls: dict[int, Call] = {}
            taps = {block: partial(_keep, places=own, at=kept[block][i], calls=calls, block=block) for block in blocks}
            run_until(adapter, taps, partial(adapter.denoise, noisy, t, text), tensor)
            for block, call in calls.items():
                given[block][i] += [] if call.conditioning is None else [call.conditioning.cpu()]
        first += len(latents)
    found = {}
    for block in blocks:
        x = torch.stack([torch.cat(of_step) for of_step in kept[block]])
        if not bool(torch.isfinite(x).all()):
            raise TideError(f"activations of block {block} are not finite; use a wider dtype (bf16 instead of fp16)")
        conditioning = of_steps([torch.cat(of_step) if of_step else None for of_step in given[block]])
        found[block] = BlockTokens(timesteps.float().cpu(), x, conditioning)
    return found


def _keep(x: Tensor, call: Call, *, places: Tensor, at: list[Tensor], calls: dict[int, Call], block: int) -> None:
    rows = torch.arange(len(x), device=x.device)[:, None]
    at.append(x[rows, places.to(x.device)].cpu())
    calls[block] = call
