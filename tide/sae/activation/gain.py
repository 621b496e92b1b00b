"""Thresholds that know the timestep: a factor for each latent, learnt from the modulation's embedding."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tide.world import World

#: A step of Adam moves a parameter by the learning rate at most, which for the logarithm of a threshold is too little
#: in a short run: the encoder adapts faster. Parameters of thresholds are therefore logarithms over this.
SPEED = 10.0
#: Functions of the timestep that the factors of single latents are made of. As many directions hold 98 % of
#: the embedding's variation with the timestep on the bundled pipeline.
RANK = 4


class TimestepGain(nn.Module):
    """``gain_l(t) = exp(g . e_t + U_l . V e_t)``, what the threshold of latent l is multiplied by at timestep t.

    ``e_t`` is the LayerNorm of the modulation's timestep embedding (:meth:`~tide.sae.Modulation.embedding`). ``g`` is
    common to all latents; ``U [n_latents, RANK]`` belongs to single ones. Both are zero at the start, so that every
    gain is 1. ``V [RANK, d_embedding]`` starts random and is learnt, too.

    The parameters are scaled so that a step of the optimiser changes gains as much in models of any width: ``common``
    is ``sqrt(d_embedding) g / SPEED``, ``by_latent`` is ``sqrt(RANK) U / SPEED``, and ``projection``, whose entries
    have a deviation of 1, is ``sqrt(d_embedding) V``.

    The ranks of ``among`` have some of the latents each; the gradients of ``common``, ``projection`` and the embedding
    are those of all latents.
    """

    def __init__(
        self,
        n_latents: int,
        d_embedding: int,
        generator: torch.Generator | None = None,
        among: World | None = None,
    ) -> None:
        super().__init__()
        self.among = among or World()
        self.common = nn.Parameter(torch.zeros(d_embedding))
        self.by_latent = nn.Parameter(torch.zeros(n_latents, RANK))
        self.projection = nn.Parameter(torch.randn(RANK, d_embedding, generator=generator))

    def forward(self, embedding: Tensor) -> Tensor:
        """``embedding [groups, d_embedding]`` to gains ``[groups, n_latents]``, in the parameters' precision."""
        with torch.autocast(embedding.device.type, enabled=False):
            e = F.layer_norm(embedding.to(self.common.dtype), self.common.shape) / math.sqrt(len(self.common))
            common, factors = F.linear(e, self.common[None]), F.linear(e, self.projection)
            if self.among.several:
                common, factors = (_OfAllLatents.apply(each, self.among) for each in (common, factors))
            by_latent = F.linear(factors, self.by_latent) / math.sqrt(RANK)
            return (SPEED * (common + by_latent)).exp()

    @torch.no_grad()
    def restart(self, latents: Tensor) -> None:
        """Gains of revived latents: those common to all."""
        self.by_latent[latents] = 0.0


class _OfAllLatents(torch.autograd.Function):
    """A tensor that each of some ranks uses for its own latents; its gradient is that of all latents."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, among: World) -> Tensor:
        ctx.among = among
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.among.summed(grads[0]), None
