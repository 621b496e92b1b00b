"""The models trained for a study, and how well they reconstruct: on held-out tokens and inside the diffusion model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide.activations import Prepared, collect, prepare
from tide.activations.memory import ActivationPool
from tide.adapters import Adapter, Call
from tide.errors import TideError
from tide.evaluation.baselines import PCA
from tide.evaluation.diffusion_loss import diffusion_loss, recovered, sae_intervention, zero_ablation
from tide.evaluation.reconstruction import evaluate_reconstruction, with_sae
from tide.files import read_json
from tide.sae.model import TIDE
from tide.scenes.annotate import images_of
from tide.scenes.pipeline import MAX_CAPTION_TOKENS
from tide.scenes.scene import Scene, Split, prompts
from tide.training import TrainConfig, Trainer, build_model
from tide.training.state import TRAINING, Record, holds_training


def prepared_scenes(adapter: Adapter, pairs: Sequence[tuple[Scene, str]], *, batch_size: int = 64) -> list[Prepared]:
    """Rendered scenes with their captions, through the VAE and the text encoder once."""
    data = (
        (images_of([s for s, _ in pairs[i : i + batch_size]]), [c for _, c in pairs[i : i + batch_size]])
        for i in range(0, len(pairs), batch_size)
    )
    return list(prepare(adapter, data, batch_size=batch_size, max_sequence_length=MAX_CAPTION_TOKENS))


def scene_pool(
    adapter: Adapter, split: Split, n_images: int, block: int, rows: int, *, token_fraction: float, seed: int
) -> ActivationPool:
    """Activations of rendered scenes (Algorithm 1, neighbouring timesteps in pairs) in memory."""
    prepared = prepared_scenes(adapter, prompts(split, n_images, seed))
    batches = collect(adapter, prepared, [block], token_fraction=token_fraction, batch_size=32, seed=seed)
    return ActivationPool((batch[block] for batch in batches), rows, seed=seed)


def train(
    adapter: Adapter, block: int, config: TrainConfig, pool: ActivationPool, out: Path, *, progress: bool, resume: bool
) -> Trainer:
    """Trains on the pool into ``out``: goes on with ``resume``, and else replaces an earlier training on a pool.

    Raises :class:`~tide.errors.TideError` if there is a training of another kind (:func:`check_replaceable`).
    """
    if not resume:
        check_replaceable(out)
    trainer = Trainer(build_model(adapter, block, config), config, out, progress=progress)
    trainer.fit(pool.from_step, resume=resume, source=pool_source(pool))
    return trainer


def check_replaceable(out: Path) -> None:
    """Raises :class:`~tide.errors.TideError` if ``out`` holds a training that was not made on a pool, such as one of
    `tide train`: nobody can make that again from here."""
    if not holds_training(out):
        return
    source = read_json(out / TRAINING, Record).get("source") if (out / TRAINING).exists() else None
    if not source or "places" not in source:
        raise TideError(f"{out} holds a training of another command; choose another folder")


def pool_source(pool: ActivationPool) -> dict[str, Any]:
    """What a pool's batches are of: which tokens of which images at which timesteps, and their order. Not the values,
    whose last bits depend on the machine."""
    rows = pool.all
    places = (rows.sample, rows.token, rows.timestep[rows.group.long()])
    digest = hashlib.sha256(b"".join(each.cpu().numpy().tobytes() for each in places)).hexdigest()[:16]
    return {"rows": len(pool), "places": digest, "d_model": rows.d_model, "paired": rows.paired, "seed": pool.seed}


def reconstruction_table(
    models: dict[str, TIDE], pca: PCA, k: int, train_pool: ActivationPool, held_out: ActivationPool
) -> dict[str, Any]:
    """Train and held-out figures of every model and of the baselines, in normalised units."""
    scale = float(next(iter(models.values())).activation_scale)
    table: dict[str, Any] = {}
    for name, model in models.items():
        n, scale = model.n_latents, float(model.activation_scale)
        seen = evaluate_reconstruction(with_sae(model), train_pool.once(), n_latents=n, scale=scale)
        unseen = evaluate_reconstruction(with_sae(model), held_out.once(), n_latents=n, scale=scale)
        table[name] = {
            "train_mse": seen["mse_normalised"],
            "train_cosine": seen["cosine"],
            **_row(unseen),
            "l0": unseen["l0"],
            "dead": unseen["dead"],
        }
    for name, rank in baselines(k).items():
        table[name] = _row(evaluate_reconstruction(pca.reconstruct(rank), held_out.once(), scale=scale))
    return table


def baselines(k: int) -> dict[str, int]:
    """Name -> PCA rank. Rank 0 is the mean activation."""
    return {"mean": 0, "pca_k/4": k // 4, "pca_k": k}


def _row(figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "val_mse": figures["mse_normalised"],
        "val_mse_raw": figures["mse"],
        "val_cosine": figures["cosine"],
        "explained_variance": figures["explained_variance"],
        "timestep": figures["timestep"],
    }


def diffusion_loss_table(
    adapter: Adapter,
    models: dict[str, TIDE],
    pca: PCA,
    k: int,
    pairs: Sequence[tuple[Scene, str]],
    block: int,
    timesteps: Tensor,
    *,
    seed: int,
) -> dict[str, Any]:
    """Diffusion loss (eq. 4) clean, with each reconstruction in place, and with the block's output set to zero."""
    interventions = {name: sae_intervention(model) for name, model in models.items()}
    for name, rank in baselines(k).items():

        def project(x: Tensor, call: Call, rank: int = rank) -> Tensor:
            return pca.project(x, rank)

        interventions[name] = project
    interventions["ablated"] = zero_ablation
    losses = diffusion_loss(
        adapter, prepared_scenes(adapter, pairs), block, interventions, timesteps=timesteps, seed=seed
    )
    clean, ablated = losses["clean"]["loss"], losses["ablated"]["loss"]
    main = "tide" if "tide" in models else next(iter(models))
    return {
        "clean": clean,
        "reconstructed": losses[main]["loss"],
        "ablated": ablated,
        "recovered": recovered(clean, losses[main]["loss"], ablated),
        "ratio": losses[main]["loss"] / clean,
        "variants": {
            name: {"loss": value["loss"], "recovered": recovered(clean, value["loss"], ablated)}
            for name, value in losses.items()
            if name not in ("clean", "ablated")
        },
        "timestep": {name: value["timestep"] for name, value in losses.items()},
    }


def fit_pca(pool: ActivationPool) -> PCA:
    with torch.no_grad():
        return PCA.fit(pool.once())
