"""What ``tide evaluate`` measures: an autoencoder beside PCA and the mean, and inside the diffusion model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor

from tide.activations import ActivationBatch, Prepared, collect, prepare
from tide.activations.source import Source, check_source
from tide.adapters import Adapter
from tide.adapters.sizes import caption_length
from tide.errors import TideError, TideWarning
from tide.evaluation.baselines import PCA, Covariance
from tide.evaluation.comparison import baseline_ranks, compare_losses
from tide.evaluation.diffusion_loss import Losses, clean_losses
from tide.evaluation.reconstruction import Reconstructed, with_sae
from tide.files import finite
from tide.images.trained import TrainedOn, Unseen, unseen
from tide.sae.model import TIDE, inference
from tide.tables import mean, spread

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
    options: dict[str, Any] = {"fit": fit, "token_fraction": token_fraction, "batch_size": batch_size, "seed": seed}
    counts = {"loss_timesteps": loss_timesteps, "loss_images": loss_images}
    return _evaluated(adapter, {block: model}, source, **counts, **options)[block]


def evaluate_blocks(
    adapter: Adapter,
    models: Mapping[int, TIDE],
    source: Source,
    *,
    fit: float = 0.5,
    token_fraction: float = 1 / 16,
    loss_timesteps: int = 10,
    loss_images: int = 64,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """:func:`evaluate` of the autoencoders of several blocks, ``models``, on the same images.

    The transformer runs once for all blocks where activations are collected, and once for the clean diffusion loss. The
    activations of one pass are held at a time, and of each block the sums that PCA needs, ``d_model**2``. Left out are
    the images that trained any of the models.

    Args:
        adapter: of the pipeline that the models were trained on.
        models: block -> its autoencoder.
        source: images with captions.
        fit, token_fraction, loss_timesteps, loss_images, batch_size, seed: as for :func:`evaluate`.

    Returns:
        Numbers for JSON: under ``"blocks"`` the figures of each, by its number; under ``"average"`` their
        :func:`average`, as Table 1 of the paper averages over the layers.

    Raises:
        TideError: there are no models, one is of another block than it is given for, they are of different tensors of
            their blocks, or as :func:`evaluate`.
    """
    check_source(source)
    check_models(adapter, models)
    options: dict[str, Any] = {"fit": fit, "token_fraction": token_fraction, "batch_size": batch_size, "seed": seed}
    counts = {"loss_timesteps": loss_timesteps, "loss_images": loss_images}
    found = _evaluated(adapter, models, source, **counts, **options)
    return {"blocks": {str(block): each for block, each in found.items()}, "average": average(list(found.values()))}


def check_models(adapter: Adapter, models: Mapping[int, TIDE]) -> None:
    """Raises :class:`~tide.errors.TideError` unless each of the models is of the block that it is given for, and all
    are of the same tensor."""
    if not models:
        raise TideError("there are no autoencoders to measure; give at least one")
    for block, model in models.items():
        if (own := adapter.resolve_block(model.config.trained_block)) != block:
            raise TideError(f"the autoencoder given for block {block} is of block {own}; give each for its own block")
    if len(tensors := sorted({model.config.tensor for model in models.values()})) > 1:
        raise TideError(f"the autoencoders are of different tensors ({', '.join(tensors)}); give those of one")


def average(figures: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of several blocks, all of one form: each number becomes its ``mean``, its ``spread`` (standard
    deviation) and the number of ``blocks`` in which it is known; None where it is known in none."""
    rows = list(figures)
    found: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row.get(name) is not None]
        if any(isinstance(value, Mapping) for value in values):
            found[name] = average(values)
        elif values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            found[name] = {"mean": mean(values), "spread": spread(values), "blocks": len(values)}
        elif not values:
            found[name] = None
    return found


def _evaluated(
    adapter: Adapter,
    models: Mapping[int, TIDE],
    source: Source,
    *,
    fit: float,
    loss_timesteps: int,
    loss_images: int,
    **collecting: Any,
) -> dict[int, dict[str, Any]]:
    """The figures of :func:`evaluate` by block."""
    batch_size, seed = collecting["batch_size"], collecting["seed"]
    images = unseen_images(source, models.values(), stacklevel=4)
    batches = list(prepare(adapter, images.source, batch_size=batch_size, max_sequence_length=caption_length(adapter)))
    n_fit, n = shared(batches, fit)
    with ExitStack() as entered:
        for model in models.values():
            entered.enter_context(inference(model))
        pcas = _fitted(adapter, models, between(batches, 0, n_fit), collecting)
        reconstructions = _reconstructions(adapter, models, pcas, between(batches, n_fit, None), collecting)
    data = _on_device(between(batches, n_fit, n_fit + loss_images), adapter.device)
    timesteps = adapter.sampling_timesteps(loss_timesteps)
    clean = clean_losses(adapter, data, timesteps=timesteps, seed=seed)
    counts = {"fit": n_fit, "measured": n - n_fit, "loss": min(loss_images, n - n_fit)}
    about = {"images": {**counts, "of": images.kind, "read": images.source.described}}
    return {
        block: finite(
            {
                **about,
                "sae": _about(model),
                "models": reconstructions[block],
                "diffusion_loss": _losses(adapter, model, pcas[block], data, timesteps, clean, seed),
            }
        )
        for block, model in models.items()
    }


def _collected(
    adapter: Adapter, models: Mapping[int, TIDE], images: list[Prepared], options: dict[str, Any]
) -> Iterator[dict[int, ActivationBatch]]:
    """The activations of every block, which share the transformer's passes, a pass at a time."""
    config = next(iter(models.values())).config
    own: dict[str, Any] = {"paired": False, "tensor": config.tensor, "target": config.target}
    return collect(adapter, images, list(models), **options, **own)


def _fitted(
    adapter: Adapter, models: Mapping[int, TIDE], images: list[Prepared], options: dict[str, Any]
) -> dict[int, PCA]:
    """A PCA of each block."""
    found = {block: Covariance() for block in models}
    for batches in _collected(adapter, models, images, options):
        for block, batch in batches.items():
            found[block].add(batch.wanted)
    return {block: each.pca() for block, each in found.items()}


def _losses(
    adapter: Adapter,
    model: TIDE,
    pca: PCA,
    data: list[Prepared],
    timesteps: Tensor,
    clean: Losses,
    seed: int,
) -> dict[str, Any]:
    """What becomes of the diffusion loss with the model in its block's place."""
    config, block = model.config, adapter.resolve_block(model.config.trained_block)
    options: dict[str, Any] = {"tensor": config.target or config.tensor, "inputs": config.target is not None}
    with inference(model):
        return compare_losses(
            adapter, {"tide": model}, pca, config.k, data, block, timesteps, **options, seed=seed, clean=clean
        )


def unseen_images(source: Source, models: Iterable[TIDE], *, stacklevel: int = 3) -> Unseen[Source]:
    """The images to measure models on, those that trained any of them left out where enough remain; otherwise with a
    :class:`~tide.errors.TideWarning`."""
    least = min(LEAST, source.n_images)
    found = unseen(source, trained_on(models), least)
    if found.kind == "training":
        warnings.warn(
            f"fewer than {least} images of {source.shown or source.name} are left without those that trained this "
            "model, so training images are measured; give other data, or collect (or train live) with a larger "
            "--hold-out",
            TideWarning,
            stacklevel=stacklevel,
        )
    return found


def trained_on(models: Iterable[TIDE]) -> TrainedOn | None:
    """The images that trained any of the models; None if one of them does not record its own."""
    recorded = [model.trained_on for model in models]
    known = [each for each in recorded if each is not None]
    return reduce(or_, known) if len(known) == len(recorded) else None


def shared(batches: list[Prepared], fit: float) -> tuple[int, int]:
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


def _reconstructions(
    adapter: Adapter,
    models: Mapping[int, TIDE],
    pcas: Mapping[int, PCA],
    images: list[Prepared],
    options: dict[str, Any],
) -> dict[int, dict[str, dict[str, Any]]]:
    """The figures of each block's model and baselines on images that nothing was fitted to."""
    measured = {block: _begun(model, pcas[block]) for block, model in models.items()}
    for batches in _collected(adapter, models, images, {**options, "seed": options["seed"] + 1}):
        for block, batch in batches.items():
            for each in measured[block].values():
                each.add(batch)
    return {block: _figures(models[block], each) for block, each in measured.items()}


def _begun(model: TIDE, pca: PCA) -> dict[str, Reconstructed]:
    scale = float(model.output_units.scale)
    found = {"tide": Reconstructed(with_sae(model), n_latents=model.n_latents, scale=scale)}
    for name, rank in _ranks(model).items():
        found[name] = Reconstructed(pca.reconstruct(rank), scale=scale)
    return found


def _ranks(model: TIDE) -> dict[str, int]:
    """The ranks of the baselines by their names; beyond the width a PCA is the identity."""
    return {name: min(rank, model.d_model) for name, rank in reversed(baseline_ranks(model.config.k).items())}


def _figures(model: TIDE, measured: Mapping[str, Reconstructed]) -> dict[str, dict[str, Any]]:
    found = {"tide": measured["tide"].figures()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the same activations, which was given once
        for name, rank in _ranks(model).items():
            found[name] = {**measured[name].figures(), "rank": rank}
    return found


def between(batches: list[Prepared], start: int, stop: int | None) -> list[Prepared]:
    """The images from ``start`` on and before ``stop``."""
    found, first = [], 0
    for latents, text in batches:
        part = slice(max(0, start - first), None if stop is None else max(0, stop - first))
        if len(latents[part]):
            found.append(Prepared(latents[part], {name: value[part] for name, value in text.items()}))
        first += len(latents)
    return found


def _on_device(data: list[Prepared], device: torch.device) -> list[Prepared]:
    return [
        Prepared(latents.to(device), {name: value.to(device) for name, value in text.items()}) for latents, text in data
    ]
