"""The downstream test (eq. 4, Fig. 4cd): the diffusion loss with a reconstruction put back into the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from tide.activations.collect import Prepared, sample_noise
from tide.adapters.base import Adapter
from tide.adapters.hooks import Call, tap
from tide.errors import TideError
from tide.sae.model import TIDE

#: A change of a block's image tokens ``[B, T, d_model]`` during one call of the transformer.
Intervention = Callable[[Tensor, Call], Tensor]


def sae_intervention(model: TIDE) -> Intervention:
    """Replaces the tokens by their reconstruction."""

    def reconstruct(x: Tensor, call: Call) -> Tensor:
        return model(x.float(), call).to(x.dtype)

    return reconstruct


def zero_ablation(x: Tensor, call: Call) -> Tensor:
    """Replaces the tokens by zeros: the worst case that :func:`recovered` measures against."""
    return torch.zeros_like(x)


@torch.no_grad()
def diffusion_loss(
    adapter: Adapter,
    data: Iterable[Prepared],
    block: int,
    interventions: dict[str, Intervention],
    *,
    timesteps: Tensor,
    tensor: str = "output",
    seed: int = 0,
) -> dict[str, Any]:
    """Mean squared error of the predicted noise (eq. 4), clean and under each intervention.

    Every image of ``data`` is noised once at every timestep, with the same noise for all interventions; the noise
    depends on ``seed``, the image and the timestep, not on how ``data`` is batched. Returns
    ``{"clean": {"loss", "timestep": {t: loss}}, name: {...}}``.
    """
    if "clean" in interventions:
        raise TideError("an intervention is named 'clean', which is what the untouched model is called; rename it")
    sums: dict[str, dict[float, list[float]]] = {}
    first = 0
    for images in data:
        latents = images.latents.to(adapter.device)
        for step, t in enumerate(timesteps.tolist()):
            noise = sample_noise(latents.shape, seed, first, step).to(latents)
            steps = torch.full((len(noise),), t, device=noise.device)
            noisy = adapter.add_noise(latents, noise, steps)
            for name, change in {"clean": None, **interventions}.items():
                hooks = {} if change is None else {block: change}
                with tap(adapter, hooks, tensor=tensor):
                    prediction = adapter.denoise(noisy, steps, images.text)
                error = (adapter.predicted_noise(prediction, noisy, steps) - noise).float().square()
                sums.setdefault(name, {}).setdefault(t, []).extend(error.flatten(1).mean(1).tolist())
        first += len(latents)
    if not sums:
        raise TideError("there are no images to measure the diffusion loss on; give a folder that holds some")
    return {
        name: {
            "loss": sum(map(sum, by_t.values())) / sum(map(len, by_t.values())),
            "timestep": {f"{t:g}": sum(values) / len(values) for t, values in by_t.items()},
        }
        for name, by_t in sums.items()
    }


def recovered(clean: float, reconstructed: float, ablated: float) -> float:
    """The share of the loss that the reconstruction recovers, (ablated - reconstructed) / (ablated - clean); NaN if the
    ablation costs nothing."""
    if ablated == clean:
        return float("nan")
    return (ablated - reconstructed) / (ablated - clean)
