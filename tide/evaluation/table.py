"""What ``tide evaluate`` measures: an autoencoder beside PCA and the mean, and inside the diffusion model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch

from tide.activations import ActivationBatch, Prepared, collect, prepare
from tide.activations.source import Source, check_source
from tide.adapters import Adapter
from tide.adapters.sizes import caption_length
from tide.errors import TideError, TideWarning
from tide.evaluation.baselines import PCA
from tide.evaluation.comparison import baseline_ranks, compare_losses
from tide.evaluation.reconstruction import evaluate_reconstruction, with_sae
from tide.files import finite
from tide.images.trained import Unseen, unseen
from tide.sae.model import TIDE, inference

#: The fewest images that did not train a model which its evaluation takes for enough.
LEAST = 8


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

    Images that ``model`` was trained on (``model.trained_on``) are left out. If fewer than :data:`LEAST` remain, all
    are measured, with a :class:`~tide.errors.TideWarning`.

    Args:
        adapter: of the pipeline that the model was trained on.
        model: an SAE that knows its block, on the adapter's device.
        source: images with captions; all are encoded once and held in memory.
        fit: the share of the images, the first ones, that PCA and mean are fitted to; the others are measured.
        token_fraction: of each image's tokens, in (0, 1].
        loss_timesteps: steps of the sampling run at whose timesteps the diffusion loss (eq. 4) is measured.
        loss_images: the most images that it is measured on.
        batch_size: images per pass.
        seed: of timesteps, tokens and noise.

    Returns:
        Numbers for JSON, None for one that is not known. ``"images"``: how many were for ``"fit"``, ``"measured"``, and
        of these for the ``"loss"``, what they are ``"of"`` ("held-out", "training", or "unrecorded" where the model
        does not say what it was trained on), and ``"read"``, in words; ``"sae"``: kind, block and sizes;
        ``"models"``: :func:`~tide.evaluation.evaluate_reconstruction` of ``"tide"``, ``"pca_k"``, ``"pca_k/4"`` and
        ``"mean"``; ``"diffusion_loss"``: :func:`~tide.evaluation.comparison.compare_losses`.

    Raises:
        TideError: ``fit`` leaves no images for fitting or for measuring, a number is out of range, or the source
            cannot be read.
    """
    check_source(source)
    block = adapter.resolve_block(model.config.trained_block)
    images = _unseen(source, model)
    batches = list(prepare(adapter, images.source, batch_size=batch_size, max_sequence_length=caption_length(adapter)))
    n_fit, n = _shared(batches, fit)
    seen, measured = _between(batches, 0, n_fit), _between(batches, n_fit, None)
    options: dict[str, Any] = {"token_fraction": token_fraction, "batch_size": batch_size}
    with inference(model):
        pca = PCA.fit(_activations(adapter, model, seen, block, seed=seed, **options))
        activations = list(_activations(adapter, model, measured, block, seed=seed + 1, **options))
        models = _reconstructions(model, pca, activations)
        data = _on_device(_between(measured, 0, loss_images), adapter.device)
        timesteps = adapter.sampling_timesteps(loss_timesteps)
        config = model.config
        tapped: dict[str, Any] = {"tensor": config.target or config.tensor, "inputs": config.target is not None}
        losses = compare_losses(adapter, {"tide": model}, pca, config.k, data, block, timesteps, **tapped, seed=seed)
    counts = {"fit": n_fit, "measured": n - n_fit, "loss": min(loss_images, n - n_fit)}
    figures: dict[str, Any] = finite(
        {
            "images": {**counts, "of": images.kind, "read": images.source.described},
            "sae": _about(model),
            "models": models,
            "diffusion_loss": losses,
        }
    )
    return figures


def _unseen(source: Source, model: TIDE) -> Unseen[Source]:
    """The images to measure on, those that trained the model left out where enough remain."""
    least = min(LEAST, source.n_images)
    found = unseen(source, model.trained_on, least)
    if found.kind == "training":
        warnings.warn(
            f"fewer than {least} images of {source.shown or source.name} are left without those that trained this "
            "model, so training images are measured; give other data, or collect (or train live) with a larger "
            "--hold-out",
            TideWarning,
            stacklevel=3,
        )
    return found


def _shared(batches: list[Prepared], fit: float) -> tuple[int, int]:
    """How many images are for fitting, and how many there are."""
    n = sum(len(batch.latents) for batch in batches)
    n_fit = round(n * fit)
    if not 0 < n_fit < n:
        raise TideError(f"{n_fit} of {n} images are for fitting the baselines; give more images or another fit")
    return n_fit, n


def _about(model: TIDE) -> dict[str, Any]:
    kind = "TIDE" if model.modulation is not None else "SAE"
    return {
        "kind": kind if model.config.target is None else "transcoder",
        "d_model": model.d_model,
        "n_latents": model.n_latents,
        "k": model.config.k,
        "block": model.config.block,
        "target": model.config.target,
    }


def _reconstructions(model: TIDE, pca: PCA, measured: list[ActivationBatch]) -> dict[str, dict[str, Any]]:
    scale = float(model.output_units.scale)
    found = {"tide": evaluate_reconstruction(with_sae(model), measured, n_latents=model.n_latents, scale=scale)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the same activations, which was given once
        for name, rank in reversed(baseline_ranks(model.config.k).items()):
            rank = min(rank, model.d_model)  # beyond that a PCA is the identity
            found[name] = {**evaluate_reconstruction(pca.reconstruct(rank), measured, scale=scale), "rank": rank}
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
    options |= {"tensor": model.config.tensor, "target": model.config.target}
    for batches in collect(adapter, data, [block], paired=False, **options):
        yield batches[block].to(adapter.device)
