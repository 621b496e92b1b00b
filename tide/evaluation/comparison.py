"""Reconstructions compared inside the diffusion model: autoencoders, PCA and the mean activation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from tide.activations.collect import Prepared
from tide.adapters import Adapter
from tide.evaluation.baselines import PCA
from tide.evaluation.diffusion_loss import (
    Losses,
    diffusion_loss,
    recovered,
    sae_intervention,
    zero_ablation,
)
from tide.files import finite
from tide.sae.model import TIDE


def baseline_ranks(k: int) -> dict[str, int]:
    """Name -> rank of the PCAs that an SAE of ``k`` active latents is compared with. Rank 0 is the mean activation."""
    return {"mean": 0, "pca_k/4": k // 4, "pca_k": k}


def compare_losses(
    adapter: Adapter,
    models: Mapping[str, TIDE],
    pca: PCA,
    k: int,
    data: Iterable[Prepared],
    block: int,
    timesteps: Tensor,
    *,
    tensor: str = "output",
    inputs: bool = False,
    seed: int = 0,
    clean: Losses | None = None,
) -> dict[str, Any]:
    """The diffusion loss (eq. 4) clean, with each reconstruction in place, and with the block's output set to zero.

    Arguments as in :func:`~tide.evaluation.diffusion_loss`. Returns numbers for JSON, None for one that is not known:

    - ``"clean"``, ``"reconstructed"``, ``"ablated"``: losses; ``"ratio"``: reconstructed over clean; ``"recovered"``:
      :func:`~tide.evaluation.recovered`. The reconstruction is that of the model named "tide", or else of the first.
    - ``"by_timestep"``: these five at each timestep; ``"worst"``: the timestep of the highest ratio.
    - ``"variants"``: loss, ratio and recovered share of every model and baseline (:func:`baseline_ranks`).
    - ``"timestep"``: every loss by timestep.
    """
    interventions = {name: sae_intervention(model) for name, model in models.items()}
    interventions |= {name: pca.intervention(rank) for name, rank in baseline_ranks(k).items()}
    interventions["ablated"] = zero_ablation
    options: dict[str, Any] = {"timesteps": timesteps, "tensor": tensor, "inputs": inputs, "seed": seed, "clean": clean}
    losses = diffusion_loss(adapter, data, block, interventions, **options)
    main = "tide" if "tide" in models else next(iter(models))
    untouched, ablated = losses["clean"], losses["ablated"]
    variants = {
        name: _beside(untouched["loss"], value["loss"], ablated["loss"], ablated["error"])
        for name, value in losses.items()
        if name not in ("clean", "ablated")
    }
    by_timestep = {
        t: _parts(untouched["timestep"][t], loss, ablated["timestep"][t], ablated["timestep_error"][t])
        for t, loss in losses[main]["timestep"].items()
    }
    ratios = {t: each["ratio"] for t, each in by_timestep.items()}
    found = {
        **_parts(untouched["loss"], losses[main]["loss"], ablated["loss"], ablated["error"]),
        "worst": max(ratios, key=lambda t: ratios[t] if math.isfinite(ratios[t]) else math.inf),
        "by_timestep": by_timestep,
        "variants": variants,
        "timestep": {name: value["timestep"] for name, value in losses.items()},
    }
    known: dict[str, Any] = finite(found)
    return known


def _beside(clean: float, loss: float, ablated: float, error: float) -> dict[str, float | None]:
    # Flow matching loses nothing at the first timestep, where the input is the noise, whatever the model says.
    ratio = loss / clean if clean > 0 else 1.0 if loss == 0 else math.nan
    return {"loss": loss, "ratio": ratio, "recovered": recovered(clean, loss, ablated, error)}


def _parts(clean: float, reconstructed: float, ablated: float, error: float) -> dict[str, Any]:
    beside = _beside(clean, reconstructed, ablated, error)
    return {"clean": clean, "reconstructed": beside.pop("loss"), "ablated": ablated, **beside}
