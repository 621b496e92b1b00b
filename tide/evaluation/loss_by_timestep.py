"""What reconstructions of a block cost the diffusion model at each timestep, beside zeroing it and its mean token."""

from __future__ import annotations

import math
from typing import Any

import torch

from tide.evaluation.diffusion_loss import Losses, recovered
from tide.evaluation.fit_by_timestep import ratio

#: The two ablations that a share of the loss is recovered from: every token set to zero, and to the mean token.
ABLATIONS = {"recovered": "zero", "recovered_mean": "mean"}


def loss_by_timestep(losses: dict[str, Losses], clean: Losses) -> dict[str, dict[str, Any]]:
    """The figures of every intervention, of the losses of each image (:func:`~tide.evaluation.image_losses`).

    ``"loss"``; ``"ratio"``, to the clean loss; ``"recovered"`` and ``"recovered_mean"``, the share of what the ablation
    adds that the reconstruction does not (:func:`~tide.evaluation.recovered`), over all timesteps, and under
    ``"timestep"`` at each. ``"errors"``: standard errors over the images. ``losses`` must hold the ablations "zero" and
    "mean".
    """
    return {
        name: {
            **_figures(name, losses, clean, list(clean)),
            "timestep": {f"{t:g}": _figures(name, losses, clean, [t]) for t in clean},
        }
        for name in losses
    }


def _figures(name: str, losses: dict[str, Losses], clean: Losses, timesteps: list[float]) -> dict[str, Any]:
    untouched, own = _means(clean, timesteps), _means(losses[name], timesteps)
    added = own - untouched
    loss, loss_error = ratio(own, torch.ones_like(own))
    found: dict[str, Any] = {"loss": loss}
    errors = {"loss": loss_error}
    found["ratio"], errors["ratio"] = ratio(own, untouched)
    for figure, ablation in ABLATIONS.items():
        if name in ("zero", ablation):
            continue  # the share that an ablation recovers of itself, or zeroing of what the mean adds
        harm = _means(losses[ablation], timesteps) - untouched
        _, harm_error = ratio(harm, torch.ones_like(harm))
        ablated = float((untouched + harm).mean())
        found[figure] = recovered(float(untouched.mean()), loss, ablated, harm_error)
        errors[figure] = math.nan if math.isnan(found[figure]) else ratio(added, harm)[1]
    return {**found, "errors": errors}


def _means(losses: Losses, timesteps: list[float]) -> torch.Tensor:
    """The mean of each image over the timesteps, float64 ``[images]``."""
    return torch.tensor([losses[t] for t in timesteps], dtype=torch.float64).mean(0)
