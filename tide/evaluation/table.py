"""The table that ``tide evaluate`` prints: an autoencoder beside PCA and the mean, and inside the diffusion model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tide.activations import ActivationBatch, Prepared, collect, prepare
from tide.activations.source import Source
from tide.adapters import Adapter
from tide.adapters.sizes import caption_length
from tide.errors import TideError
from tide.evaluation.baselines import PCA
from tide.evaluation.comparison import baseline_ranks, compare_losses
from tide.evaluation.reconstruction import evaluate_reconstruction, with_sae
from tide.sae.model import TIDE, inference
from tide.tables import text_table


def evaluate(
    adapter: Adapter,
    model: TIDE,
    source: Source,
    *,
    fit: float = 0.5,
    token_fraction: float = 1 / 16,
    loss_timesteps: int = 10,
    loss_images: int = 64,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """How well ``model`` reconstructs images that nothing was fitted to, beside baselines.

    Args:
        adapter: of the pipeline that the model was trained on.
        model: an SAE that knows its block, on the adapter's device.
        source: images with captions; all are encoded once and held in memory.
        fit: the share of the images, the first ones, that PCA and mean are fitted to; the others are held out.
        token_fraction: of each image's tokens, in (0, 1].
        loss_timesteps: steps of the sampling run at whose timesteps the diffusion loss (eq. 4) is measured.
        loss_images: the most held-out images that it is measured on.
        batch_size: images per pass.
        seed: of timesteps, tokens and noise.

    Returns:
        Numbers for JSON. ``"images"``: how many were for fitting and held out; ``"sae"``: kind, block and sizes;
        ``"models"``: :func:`~tide.evaluation.evaluate_reconstruction` of ``"tide"``, ``"pca_k"``, ``"pca_k/4"`` and
        ``"mean"`` on held-out images; ``"diffusion_loss"``: :func:`~tide.evaluation.comparison.compare_losses`.

    Raises:
        TideError: ``fit`` leaves no images for fitting or for measuring, a number is out of range, or the source
            cannot be read.
    """
    block = adapter.resolve_block(model.config.trained_block)
    n_fit = round(source.n_images * fit)
    if not 0 < n_fit < source.n_images:
        raise TideError(
            f"{n_fit} of {source.n_images} images are for fitting the baselines; give more images or another fit"
        )
    batches = list(prepare(adapter, source, batch_size=batch_size, max_sequence_length=caption_length(adapter)))
    seen, unseen = _between(batches, 0, n_fit), _between(batches, n_fit, None)
    options: dict[str, Any] = {"token_fraction": token_fraction, "batch_size": batch_size}
    with inference(model):
        pca = PCA.fit(_activations(adapter, model, seen, block, seed=seed, **options))
        held_out = list(_activations(adapter, model, unseen, block, seed=seed + 1, **options))
        models = _reconstructions(model, pca, held_out)
        data = _on_device(_between(unseen, 0, loss_images), adapter.device)
        timesteps = adapter.sampling_timesteps(loss_timesteps)
        k, tensor = model.config.k, model.config.tensor
        losses = compare_losses(adapter, {"tide": model}, pca, k, data, block, timesteps, tensor=tensor, seed=seed)
    return {
        "images": {"fit": sum(len(p.latents) for p in seen), "held_out": sum(len(p.latents) for p in unseen)},
        "sae": {
            "kind": "TIDE" if model.modulation is not None else "SAE",
            "d_model": model.d_model,
            "n_latents": model.n_latents,
            "k": k,
            "block": model.config.block,
        },
        "models": models,
        "diffusion_loss": losses,
    }


def evaluation_text(figures: dict[str, Any]) -> str:
    """The figures of :func:`evaluate` as two tables: a row a model, then a row a bin of timesteps of the SAE."""
    variants = figures["diffusion_loss"]["variants"]
    names = {"tide": figures["sae"]["kind"], "pca_k": "PCA k", "pca_k/4": "PCA k/4", "mean": "mean"}
    rows = [
        (
            names[name],
            *_fit(row),
            f"{row['l0']:.1f}" if "l0" in row else "",
            f"{row['dead']:.1%}" if "dead" in row else "",
            f"{variants[name]['loss']:.4f}",
            f"{variants[name]['recovered']:.4f}",
        )
        for name, row in figures["models"].items()
    ]
    by_timestep = [(f"t {name}", *_fit(row)) for name, row in figures["models"]["tide"]["timestep"].items()]
    columns = ("", "mse", "cosine", "variance")
    return "\n\n".join(
        (text_table((*columns, "l0", "dead", "loss", "recovered"), rows), text_table(columns, by_timestep))
    )


def _fit(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{row[name]:.4f}" for name in ("mse_normalised", "cosine", "explained_variance"))


def _reconstructions(model: TIDE, pca: PCA, held_out: list[ActivationBatch]) -> dict[str, dict[str, Any]]:
    scale = float(model.activation_scale)
    found = {"tide": evaluate_reconstruction(with_sae(model), held_out, n_latents=model.n_latents, scale=scale)}
    for name, rank in reversed(baseline_ranks(model.config.k).items()):
        rank = min(rank, model.d_model)  # beyond that a PCA is the identity
        found[name] = {**evaluate_reconstruction(pca.reconstruct(rank), held_out, scale=scale), "rank": rank}
    return found


def _between(batches: list[Prepared], start: int, stop: int | None) -> list[Prepared]:
    """The images from ``start`` on and before ``stop``."""
    found, first = [], 0
    for latents, text in batches:
        part = slice(max(0, start - first), None if stop is None else max(0, stop - first))
        if len(latents[part]):
            found.append(Prepared(latents[part], {name: value[part] for name, value in text.items()}))
        first += len(latents)
    return found


def _on_device(data: list[Prepared], device: torch.device) -> Iterator[Prepared]:
    for latents, text in data:
        yield Prepared(latents.to(device), {name: value.to(device) for name, value in text.items()})


def _activations(
    adapter: Adapter, model: TIDE, data: list[Prepared], block: int, **options: Any
) -> Iterator[ActivationBatch]:
    for batches in collect(adapter, data, [block], paired=False, tensor=model.config.tensor, **options):
        yield batches[block].to(adapter.device)
