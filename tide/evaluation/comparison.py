"""Reconstructions compared inside the diffusion model: autoencoders, PCA and the mean activation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from tide.activations.collect import Prepared
from tide.adapters import Adapter, Call
from tide.evaluation.baselines import PCA
from tide.evaluation.diffusion_loss import Intervention, diffusion_loss, recovered, sae_intervention, zero_ablation
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
    seed: int = 0,
) -> dict[str, Any]:
    """The diffusion loss (eq. 4) clean, with each reconstruction in place, and with the block's output set to zero.

    ``"reconstructed"`` and ``"recovered"`` are those of the model named "tide", or else of the first one;
    ``"variants"`` has the loss and the recovered share of every model and baseline (:func:`baseline_ranks`), and
    ``"timestep"`` every loss by timestep. Arguments as in :func:`~tide.evaluation.diffusion_loss`.
    """
    interventions = {name: sae_intervention(model) for name, model in models.items()}
    interventions |= {name: _projection(pca, rank) for name, rank in baseline_ranks(k).items()}
    interventions["ablated"] = zero_ablation
    losses = diffusion_loss(adapter, data, block, interventions, timesteps=timesteps, tensor=tensor, seed=seed)
    clean, ablated = losses["clean"]["loss"], losses["ablated"]["loss"]
    variants = {
        name: {"loss": value["loss"], "recovered": recovered(clean, value["loss"], ablated)}
        for name, value in losses.items()
        if name not in ("clean", "ablated")
    }
    main = variants["tide" if "tide" in models else next(iter(models))]
    return {
        "clean": clean,
        "reconstructed": main["loss"],
        "ablated": ablated,
        "recovered": main["recovered"],
        "variants": variants,
        "timestep": {name: value["timestep"] for name, value in losses.items()},
    }


def _projection(pca: PCA, rank: int) -> Intervention:
    def project(x: Tensor, call: Call) -> Tensor:
        return pca.project(x, rank)

    return project
