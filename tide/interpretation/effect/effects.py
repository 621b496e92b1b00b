"""What is known of the effects of a block's latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tide.errors import TideError

#: How latents can be ranked.
Ranking = Literal["attribution", "integrated", "activation"]


@dataclass(frozen=True)
class Effects:
    """What removing a latent would do to a metric, at each step on its own (:func:`latent_effects`).

    A positive effect: without the latent, the metric is larger. With :func:`towards_prompt`, 1 is all the way to the
    other prompt.

    Attributes:
        timesteps: ``[steps]``.
        attribution: ``[steps, n_latents]``, by one gradient.
        activation: ``[steps, n_latents]``, the mean of the latent itself over tokens and images.
        integrated: ``[steps, n_latents]``, by gradients along a path, or None.
        ablated: the latents whose effect was measured, int64 ``[m]``.
        ablation: ``[steps, m]``, the measured effects.
    """

    timesteps: Tensor
    attribution: Tensor
    activation: Tensor
    integrated: Tensor | None = None
    ablated: Tensor | None = None
    ablation: Tensor | None = None

    @property
    def n_latents(self) -> int:
        """How many latents there are, those without effect included."""
        return self.attribution.shape[1]

    def strongest(
        self, k: int, timestep: float | None = None, *, by: Ranking = "attribution", away: bool = False
    ) -> list[int]:
        """The ``k`` latents whose removal would move the metric up the most, the strongest first; fewer if so few would
        move it.

        Args:
            timestep: count the recorded timestep nearest to this one; default the mean of all.
            by: the estimate, or the activation alone.
            away: those whose removal would move the metric down, instead; not by activation, which has no direction.
        """
        if k < 1:
            raise TideError(f"k = {k} must be at least 1")
        if away and by == "activation":
            raise TideError("activation has no direction; leave away off, or rank by attribution")
        values = -self.values(by, timestep) if away else self.values(by, timestep)
        order = values.argsort(descending=True, stable=True)[:k]
        return order[values[order] > 0].tolist()

    def largest(self, n: int) -> list[int]:
        """The ``n`` latents of the largest attribution of either sign, on average over the steps; only some that have
        one."""
        if n < 0:
            raise TideError(f"{n} latents asked for; give at least 0")
        values = self.attribution.abs().mean(0)
        order = values.argsort(descending=True, stable=True)[:n]
        return order[values[order] > 0].tolist()

    def values(self, by: Ranking = "attribution", timestep: float | None = None) -> Tensor:
        """``[n_latents]``: one of the tables at the recorded timestep nearest to this one, or the mean of all steps."""
        table = {"attribution": self.attribution, "integrated": self.integrated, "activation": self.activation}.get(by)
        if table is None:
            raise TideError(
                f"there are no effects by {by!r}; use attribution or activation, or record with points above 0"
            )
        return table.mean(0) if timestep is None else table[int((self.timesteps - timestep).abs().argmin())]

    def with_ablation(self, features: Sequence[int], effects: Tensor) -> Effects:
        """With the measured ``effects [steps, features]``."""
        return replace(self, ablated=torch.tensor(list(features)), ablation=effects)

    def correlation(self, by: Ranking = "attribution") -> float:
        """Pearson's correlation of an estimate and the measured effects, over the ablated latents and the steps; NaN if
        either does not vary.

        Raises :class:`~tide.errors.TideError` where none were ablated.
        """
        self.values(by)
        if self.ablated is None or self.ablation is None:
            raise TideError("no latent was ablated, so there is nothing to compare with; record with ablate=")
        table = self.integrated if by == "integrated" else self.attribution if by == "attribution" else self.activation
        assert table is not None
        pairs = torch.stack([table[:, self.ablated].flatten(), self.ablation.flatten()]).double()
        return float(torch.corrcoef(pairs)[0, 1])
