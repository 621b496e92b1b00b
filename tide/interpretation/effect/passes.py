"""Passes of the transformer at one step, with what a block holds read or replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tide.adapters import Adapter, Call, tap
from tide.editing.context import check_sae
from tide.editing.reading import CHUNK_ELEMENTS
from tide.errors import TideError
from tide.interpretation.effect.metric import Asked, Measure, Metric
from tide.interpretation.effect.steps import Steps
from tide.sae.model import TIDE, Codes, inference


@dataclass(frozen=True)
class Held:
    """What a step holds: the block's tokens ``x [images, tokens, d_model]``, their sparse latents, and the metric.

    ``x`` and latents are float32, or float64 in a pipeline of it.
    """

    asked: Asked
    x: Tensor
    codes: Codes
    measure: Measure
    adapter: Adapter
    model: TIDE

    @property
    def base(self) -> Tensor:
        """The metric of the model as it is, ``[images]``."""
        return self.measured(self.asked.own)

    def measured(self, prediction: Tensor) -> Tensor:
        """The metric of ``prediction [..., images, c, h, w]``, ``[..., images]``."""
        found = self.measure(prediction)
        each = prediction.shape[: 1 - self.asked.latents.ndim]
        if found.shape != each:
            raise TideError(
                f"the metric of predictions {list(prediction.shape)} has shape {list(found.shape)}; let it return one "
                f"number for each, {list(each)}"
            )
        return found

    def of(self, x: Tensor) -> Tensor:
        """The metric with the block's tokens replaced by ``x [n, images, tokens, d_model]``: ``[n, images]``."""
        n, config, asked = len(x), self.model.config, self.asked
        text = {name: value.repeat(n, *[1] * (value.ndim - 1)) for name, value in asked.text.items()}
        with tap(self.adapter, {config.trained_block: lambda _, call: x.flatten(0, 1)}, config.tensor):
            latents = asked.latents.repeat(n, *(1,) * (asked.latents.ndim - 1))
            prediction = self.adapter.denoise(latents, asked.timestep, text)
        return self.measured(prediction.unflatten(0, (n, -1)))

    def columns(self, features: Sequence[int]) -> Tensor:
        """The latents ``features`` of every token, ``[images * tokens, features]``."""
        values, indices = self.codes
        place = {feature: i for i, feature in enumerate(dict.fromkeys(features))}
        column = torch.full((self.model.n_latents + 1,), len(place), device=indices.device)
        column[list(place)] = torch.arange(len(place), device=indices.device)
        # Places that hold no latent have the index -1, the last entry: what is not asked for falls into a last column.
        found = values.new_zeros(len(values), len(place) + 1).scatter_add_(1, column[indices.long()], values)
        return found[:, [place[feature] for feature in features]]

    def written(self) -> Tensor:
        """What all latents write into ``x`` together, in its shape: decoded, without bias and mean."""
        n_rows, n_latents = max(1, CHUNK_ELEMENTS // self.model.n_latents), self.model.n_latents
        parts = zip(self.codes.values.split(n_rows), self.codes.indices.split(n_rows), strict=True)
        with torch.no_grad():
            return torch.cat([self.model.decode_dense(Codes(*part).dense(n_latents)) for part in parts]).view_as(self.x)


def held_at_steps(adapter: Adapter, model: TIDE, steps: Steps, metric: Metric) -> Iterator[Held]:
    """What each of the steps holds, one after the other.

    Raises :class:`~tide.errors.TideError` for a model that cannot edit this transformer, and for a metric that is not
    finite.
    """
    check_sae(adapter, model)
    for timestep, latents in zip(steps.timesteps.tolist(), steps.latents, strict=True):
        yield _held(adapter, model, timestep, latents.to(adapter.device), steps, metric)


def _held(adapter: Adapter, model: TIDE, timestep: float, latents: Tensor, steps: Steps, metric: Metric) -> Held:
    seen: list[tuple[Tensor, Call]] = []
    config = model.config

    def keep(x: Tensor, call: Call) -> None:
        seen.append((x.detach().clone(), call))

    with torch.no_grad(), tap(adapter, {config.trained_block: keep}, config.tensor):
        own = adapter.denoise(latents, timestep, steps.text)
    x, call = seen[0]
    if model.W_enc.device != x.device:
        raise TideError(f"the SAE is on {model.W_enc.device} and the transformer on {x.device}; move it with .to()")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    with inference(model):
        codes = model.encode(x, call)
    asked = Asked(timestep, latents, steps.text, own)
    found = Held(asked, x, codes, metric(asked), adapter, model)
    if not bool(torch.isfinite(found.base).all()):
        raise TideError(f"the metric is not finite at timestep {timestep:g}; load the pipeline in fp32")
    return found


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """While open, no weight of ``module`` takes part in a backward pass, which then keeps nothing for it."""
    trained = [each for each in module.parameters() if each.requires_grad]
    for each in trained:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in trained:
            each.requires_grad_(True)
