"""The downstream test (eq. 4, Fig. 4cd): the diffusion loss with a reconstruction put back into the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tide.activations.collect import Prepared, sample_noise
from tide.adapters.base import Adapter
from tide.adapters.hooks import Call, tap
from tide.errors import TideError
from tide.sae.model import TIDE

#: A change of a block's image tokens ``[B, T, d_model]`` during one call of the transformer.
Intervention = Callable[[Tensor, Call], Tensor]
#: Losses by timestep, one for each image.
Losses = dict[float, list[float]]
#: The share of the clean loss that an ablation must add for :func:`recovered` to be measured against it.
LEAST_HARM = 0.01


def sae_intervention(model: TIDE) -> Intervention:
    """Replaces the tokens by their reconstruction, or by what a transcoder makes of the module's input, for which
    :func:`diffusion_loss` needs ``inputs``.

    ``model`` is on the adapter's device.
    """

    def reconstruct(x: Tensor, call: Call) -> Tensor:
        given = x if model.config.target is None else call.inputs
        if given is None:
            raise TideError("a transcoder reads the module's input; measure its diffusion loss with inputs=True")
        return model(given.float(), call).to(x.dtype)

    return reconstruct


def zero_ablation(x: Tensor, call: Call) -> Tensor:
    """Replaces the tokens by zeros: the worst case that :func:`recovered` measures against.

    ``x [B, T, d_model]`` are the tokens of ``call``; returns as many zeros.
    """
    return torch.zeros_like(x)


class Change(NamedTuple):
    """An intervention on one of the blocks."""

    block: int
    intervention: Intervention


@torch.no_grad()
def image_losses(
    adapter: Adapter,
    data: Iterable[Prepared],
    changes: Mapping[str, Change | None],
    *,
    timesteps: Tensor,
    tensor: str = "output",
    inputs: bool = False,
    seed: int = 0,
) -> dict[str, Losses]:
    """The mean squared error of the predicted noise (eq. 4) of every image at every timestep, under each of
    ``changes``; None is the untouched model. The noise is the same for all, as :func:`diffusion_loss` draws it.
    ``tensor`` and ``inputs`` are those of :func:`~tide.adapters.tap`."""
    losses: dict[str, Losses] = {name: {t: [] for t in timesteps.tolist()} for name in changes}
    first = 0
    for images in data:
        latents = images.latents.to(adapter.device)
        for step, t in enumerate(timesteps.tolist()):
            noise = sample_noise(latents.shape, seed, first, step).to(latents)
            steps = torch.full((len(noise),), t, device=noise.device)
            noisy = adapter.add_noise(latents, noise, steps)
            for name, change in changes.items():
                hooks = {} if change is None else {change.block: change.intervention}
                with tap(adapter, hooks, tensor=tensor, inputs=inputs):
                    prediction = adapter.denoise(noisy, steps, images.text)
                error = (adapter.predicted_noise(prediction, noisy, steps) - noise).float().square()
                losses[name][t].extend(error.flatten(1).mean(1).tolist())
        first += len(latents)
    return losses


def clean_losses(adapter: Adapter, data: Iterable[Prepared], *, timesteps: Tensor, seed: int = 0) -> Losses:
    """:func:`image_losses` of the untouched model, which several calls of :func:`diffusion_loss` can share.

    Raises :class:`~tide.errors.TideError` if there are no images, or a loss is not finite.
    """
    clean = image_losses(adapter, data, {"clean": None}, timesteps=timesteps, seed=seed)["clean"]
    _check_clean(clean)
    return clean


def diffusion_loss(
    adapter: Adapter,
    data: Iterable[Prepared],
    block: int,
    interventions: Mapping[str, Intervention],
    *,
    timesteps: Tensor,
    tensor: str = "output",
    inputs: bool = False,
    seed: int = 0,
    clean: Losses | None = None,
) -> dict[str, Any]:
    """Mean squared error of the predicted noise (eq. 4), clean and under each intervention. ``tensor`` and ``inputs``
    are those of :func:`~tide.adapters.tap`.

    Every image of ``data`` is noised once at every timestep, with the same noise for all interventions; the noise
    depends on ``seed``, the image and the timestep, not on how ``data`` is batched. ``clean``: :func:`clean_losses` of
    the same data, timesteps and seed; measured if it is None.

    Args:
        adapter: of the pipeline.
        data: encoded images with their prompts (:func:`tide.activations.prepare`).
        block: whose tokens the interventions replace.
        interventions: name -> a function of tokens and :class:`~tide.adapters.Call` that returns others.
        timesteps: ``[T]``.
        tensor: what of the block.
        inputs: interventions get what enters the module, too.
        seed: of the noise.
        clean: the clean losses, if they are known.

    Returns:
        ``{"clean": figures, name: figures}`` with figures ``"loss"``; ``"error"``, the standard error of what the
        intervention adds to the clean loss, over the images: each counts once, with the mean of its differences at
        the timesteps (0 for the clean loss, infinite for a single image); and both for each timestep under
        ``"timestep"`` and ``"timestep_error"``.

    Raises:
        TideError: there are no images, an intervention is named "clean", or the clean loss is not finite.
    """
    if "clean" in interventions:
        raise TideError("an intervention is named 'clean', which is what the untouched model is called; rename it")
    changes: dict[str, Change | None] = {} if clean is not None else {"clean": None}
    changes |= {name: Change(block, intervention) for name, intervention in interventions.items()}
    losses = image_losses(adapter, data, changes, timesteps=timesteps, tensor=tensor, inputs=inputs, seed=seed)
    if clean is not None:
        losses = {"clean": clean, **losses}
    _check_clean(losses["clean"])
    return {name: _figures(by_t, losses["clean"]) for name, by_t in losses.items()}


def _check_clean(clean: Losses) -> None:
    if not any(clean.values()):
        raise TideError("there are no images to measure the diffusion loss on; give a folder that holds some")
    if broken := [t for t, values in clean.items() if not math.isfinite(sum(values))]:
        raise TideError(
            f"the diffusion loss of the untouched model is not finite at timestep {broken[0]:g}; use a wider dtype "
            "(bf16 or fp32 instead of fp16)"
        )


def _figures(by_t: Losses, clean: Losses) -> dict[str, Any]:
    """The losses of one intervention, by timestep and image, against the clean ones."""
    added = {t: [x - y for x, y in zip(values, clean[t], strict=True)] for t, values in by_t.items()}
    return {
        "loss": sum(map(sum, by_t.values())) / sum(map(len, by_t.values())),
        "error": _standard_error([sum(each) / len(each) for each in zip(*added.values(), strict=True)]),
        "timestep": {f"{t:g}": sum(values) / len(values) for t, values in by_t.items()},
        "timestep_error": {f"{t:g}": _standard_error(values) for t, values in added.items()},
    }


def _standard_error(values: list[float]) -> float:
    """Of the mean of ``values``: their standard deviation (n - 1) over the root of their number."""
    spread = torch.tensor(values, dtype=torch.float64).std() if len(values) > 1 else math.inf
    return float(spread) / math.sqrt(len(values))


def recovered(clean: float, reconstructed: float, ablated: float, error: float = 0.0) -> float:
    """The share of the loss that the reconstruction recovers, (ablated - reconstructed) / (ablated - clean).

    NaN where it would say nothing. Let m be the larger of :data:`LEAST_HARM` of the clean loss and twice ``error``, the
    standard error of (ablated - clean). The share is NaN if the ablation adds no more than m, so that there is nothing
    to recover, and if the reconstruction's loss is more than m below the clean one, so that more than all would be.
    """
    least = max(LEAST_HARM * clean, 2 * error)
    if not ablated - clean > least or reconstructed < clean - least:
        return math.nan
    return (ablated - reconstructed) / (ablated - clean)
