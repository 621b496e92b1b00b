"""Effects of all latents at once, estimated from gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.editing.edits import Erase
from tide.editing.reading import CHUNK_ELEMENTS
from tide.errors import TideError
from tide.interpretation.effect.ablation import ablated_effects
from tide.interpretation.effect.effects import Effects
from tide.interpretation.effect.metric import Metric
from tide.interpretation.effect.passes import Held, frozen, held_at_steps
from tide.interpretation.effect.steps import Steps
from tide.sae.model import TIDE

#: Points of the path from no latents to all of them that :func:`latent_effects` takes the gradient at.
POINTS = 5


def latent_effects(
    adapter: Adapter,
    model: TIDE,
    steps: Steps,
    metric: Metric,
    *,
    points: int = POINTS,
    ablate: int | Sequence[int] = 0,
    batch_size: int = 16,
) -> Effects:
    """What removing each latent of ``model``'s block would do to ``metric``, at each of the steps on its own.

    The block's activation is x = (x - decode(z)) + decode(z), where the rest stays as it is. With m the metric of what
    the transformer predicts, averaged over the images, and f a latent, removed at all tokens of the step::

        attribution_f = -sum over tokens of z_f dm/dz_f                       (one backward pass)
        integrated_f  = -sum over tokens of z_f mean over a of dm/dz_f(a z)   (one for each point)
        ablation_f    = m(z without f) - m(z)                                 (the truth: one forward pass a latent)

    The points a are the middles of ``points`` equal parts of (0, 1). The sum of ``integrated`` over the latents tends
    to m(0) - m(z) as they grow in number.

    Args:
        adapter: the pipeline; its weights are frozen meanwhile.
        model: the TIDE, on the pipeline's device.
        steps: what the transformer is asked (:func:`steps_of_run`, :func:`steps_of_images`).
        metric: what is measured, such as :func:`towards_prompt`.
        points: of ``integrated``; 0 leaves it out.
        ablate: the latents whose ablation is measured too, or how many: of the largest attribution, of either sign.
        batch_size: images of a forward pass.

    Raises:
        TideError: the model cannot edit this transformer (a transcoder, another width, family or block), a latent does
            not exist, the metric or its gradient is not finite, or the pipeline passes no gradient on.
    """
    if points < 0:
        raise TideError(f"points = {points} must be at least 0")
    found: dict[str, list[Tensor]] = {"attribution": [], "activation": [], "integrated": []}
    for held in held_at_steps(adapter, model, steps, metric):
        found["attribution"].append(_effect(held, _gradient(held, held.x)))
        found["activation"].append(_per_latent(held, held.codes.values) / held.x.shape[:2].numel())
        if points:
            places = [1 - (i + 0.5) / points for i in range(points)]
            written = held.written()
            gradients = [_gradient(held, held.x - share * written) for share in places]
            found["integrated"].append(_effect(held, torch.stack(gradients).mean(0)))
    tables = {name: torch.stack(rows).float().cpu() if rows else None for name, rows in found.items()}
    assert tables["attribution"] is not None
    assert tables["activation"] is not None
    effects = Effects(steps.timesteps, tables["attribution"], tables["activation"], tables["integrated"])
    features = effects.largest(ablate) if isinstance(ablate, int) else list(ablate)
    if not features:
        return effects
    true = ablated_effects(adapter, model, steps, metric, [[each] for each in features], batch_size=batch_size)
    return effects.with_ablation(features, true)


def effect_maps(adapter: Adapter, model: TIDE, steps: Steps, metric: Metric, features: Sequence[int]) -> Tensor:
    """Where in the image the attribution of some latents is: ``[steps, features, images, tokens]`` float32 on the CPU.

    Its sum over the tokens, averaged over the images, is ``attribution`` of :func:`latent_effects`, whose arguments and
    errors are these.

    So ``adapter``, ``model``, ``steps`` and ``metric`` are as there; ``features`` are the numbers of the latents.
    """
    Erase(features).check(model.n_latents)
    chosen = list(features)
    maps = []
    for held in held_at_steps(adapter, model, steps, metric):
        with torch.no_grad():
            slopes = _gradient(held, held.x).flatten(0, 1) @ _written_by(held)[chosen].T
            maps.append((-held.columns(chosen) * slopes).T.unflatten(1, held.x.shape[:2]).float().cpu())
    return torch.stack(maps)


def _gradient(held: Held, x: Tensor) -> Tensor:
    """The metric's gradient, summed over the images, to the block's tokens at ``x``, in its shape."""
    x = x.detach().requires_grad_()
    with torch.enable_grad(), frozen(held.adapter.transformer):
        total = held.of(x[None]).sum()
        if not total.requires_grad:
            raise TideError(
                "no gradient reaches the block: the pipeline runs its transformer without gradients, or the metric "
                "cuts them off; load it without offloading, and let the metric be made of the prediction"
            )
        (gradient,) = torch.autograd.grad(total, x)
    if not bool(torch.isfinite(gradient).all()):
        raise TideError(
            f"the metric's gradient is not finite at timestep {held.asked.timestep:g}; load the pipeline in fp32"
        )
    return gradient


@torch.no_grad()
def _effect(held: Held, gradient: Tensor) -> Tensor:
    """``-sum over tokens of z_f dm/dz_f``, averaged over the images, ``[n_latents]``: decode is linear, so that
    ``dm/dz_f`` is the product of the gradient and what latent f writes."""
    values, indices = held.codes
    weight = _written_by(held)
    n_rows = max(1, CHUNK_ELEMENTS // held.model.n_latents)
    parts = zip(gradient.flatten(0, 1).split(n_rows), indices.split(n_rows), strict=True)
    slopes = torch.cat([(rows @ weight.T).gather(1, place.clamp(min=0).long()) for rows, place in parts])
    return _per_latent(held, -values * slopes) / len(held.x)


def _written_by(held: Held) -> Tensor:
    """What a latent of 1 writes into the block's activation, ``[n_latents, d_model]``."""
    return held.model.W_dec.to(held.x.dtype) * held.model.output_units.scale.to(held.x.dtype)


def _per_latent(held: Held, values: Tensor) -> Tensor:
    """Sums over the tokens of ``values``, which belong to the codes' latents, ``[n_latents]``."""
    indices = held.codes.indices
    out = values.new_zeros(held.model.n_latents)
    # Unused entries have the value 0, so adding them to latent 0 changes nothing.
    return out.index_add_(0, indices.clamp(min=0).long().flatten(), values.flatten())
