"""What the demo and the bars measure of a model: reconstruction, diffusion loss and concepts, on held-out scenes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tide.activations.memory import ActivationPool
from tide.adapters import Adapter
from tide.evaluation.baselines import PCA
from tide.evaluation.comparison import baseline_ranks, compare_losses
from tide.evaluation.reconstruction import evaluate_reconstruction, with_sae
from tide.interpretation.timesteps import concept_timesteps, spread_timesteps
from tide.sae.model import TIDE
from tide.scenes.scene import prompts, scenes
from tide.studies.bench import Bench, prepared_scenes
from tide.studies.mask_concepts import MeasuredConcepts, measure_concepts


@dataclass(frozen=True)
class Sizes:
    """How much a model is measured on; baselines are fitted to ``train_images``."""

    train_images: int
    held_out_images: int
    loss_prompts: int
    loss_timesteps: int
    concept_images: int
    concept_timesteps: int


def reconstruction(bench: Bench, models: dict[str, TIDE], sizes: Sizes) -> dict[str, Any]:
    """Reconstruction and diffusion loss of the models, of PCAs and of the mean."""
    adapter, k = bench.adapter, next(iter(models.values())).config.k
    with torch.no_grad():
        pca = PCA.fit(bench.train.once())
    data = prepared_scenes(adapter, prompts("test", sizes.loss_prompts, bench.seed + 2))
    timesteps = spread_timesteps(adapter, sizes.loss_timesteps)
    losses = compare_losses(adapter, models, pca, k, data, bench.block, timesteps, seed=bench.seed)
    return {
        "models": _table(models, pca, k, bench.train, bench.thinned),
        "diffusion_loss": losses,
    }


def _table(
    models: dict[str, TIDE], pca: PCA, k: int, train_pool: ActivationPool, held_out: ActivationPool
) -> dict[str, Any]:
    """Training and held-out figures of every model, and held-out figures of the baselines, in the models' units."""
    scale = float(next(iter(models.values())).activation_scale)
    table: dict[str, Any] = {}
    for name, model in models.items():
        n, scale = model.n_latents, float(model.activation_scale)
        seen = evaluate_reconstruction(with_sae(model), train_pool.once(), n_latents=n, scale=scale)
        unseen = evaluate_reconstruction(with_sae(model), held_out.once(), n_latents=n, scale=scale)
        trained = {"train_mse": seen["mse_normalised"], "train_cosine": seen["cosine"]}
        table[name] = {**trained, **_held_out(unseen), "l0": unseen["l0"], "dead": unseen["dead"]}
    for name, rank in baseline_ranks(k).items():
        table[name] = _held_out(evaluate_reconstruction(pca.reconstruct(rank), held_out.once(), scale=scale))
    return table


def _held_out(figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "val_mse": figures["mse_normalised"],
        "val_mse_raw": figures["mse"],
        "val_cosine": figures["cosine"],
        "explained_variance": figures["explained_variance"],
        "timestep": figures["timestep"],
    }


def concepts(bench: Bench, model: TIDE, n_images: int, n_timesteps: int) -> MeasuredConcepts:
    """Concepts chosen on training scenes: development scenes have too few combinations to separate causes."""
    selection, held_out = (list(scenes(split, n_images, bench.seed)) for split in ("train", "test"))
    timesteps = concept_timesteps(bench.adapter, n_timesteps)
    return measure_concepts(bench.adapter, model, selection, held_out, timesteps, seed=bench.seed)


def sizes_of(adapter: Adapter, model: TIDE, block: int) -> dict[str, int]:
    """The sizes of a model and of its transformer, for a report."""
    config = model.config
    sizes = {"d_model": config.d_model, "n_latents": config.n_latents, "k": config.k}
    return {**sizes, "block": block, "n_blocks": adapter.n_blocks}
