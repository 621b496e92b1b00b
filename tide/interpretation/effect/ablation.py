"""Effects of removing latents, measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.editing.edits import Erase
from tide.errors import TideError
from tide.interpretation.effect.metric import Metric
from tide.interpretation.effect.passes import Held, held_at_steps
from tide.interpretation.effect.steps import Steps
from tide.sae.model import TIDE


@torch.no_grad()
def ablated_effects(
    adapter: Adapter,
    model: TIDE,
    steps: Steps,
    metric: Metric,
    sets: Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
) -> Tensor:
    """``[steps, sets]`` float32: what it does to the metric, averaged over the images, to set each of ``sets`` of
    latents to zero at all tokens of a step, as :class:`~tide.editing.Erase` does. Exactly 0 where none of them is
    active.

    Args:
        adapter: the pipeline.
        model: the TIDE, on the pipeline's device.
        steps: what the transformer is asked.
        metric: what is measured.
        sets: lists of latents; those of one list are removed together.
        batch_size: images of a forward pass.

    Raises:
        TideError: as :func:`~tide.interpretation.effect.latent_effects`.
    """
    if batch_size < 1:
        raise TideError(f"batch_size = {batch_size} must be at least 1")
    for features in sets:
        Erase(features).check(model.n_latents)
    n = max(1, batch_size // steps.n_images)
    rows = [torch.tensor(list(_of_step(held, sets, n))) for held in held_at_steps(adapter, model, steps, metric)]
    return torch.stack(rows).float()


def _of_step(held: Held, sets: Sequence[Sequence[int]], n: int) -> Iterator[float]:
    """The effect of each set at one step; ``n`` sets share a pass."""
    named = sorted({feature for features in sets for feature in features})
    columns, place = held.columns(named), {feature: i for i, feature in enumerate(named)}
    chosen = [tuple(sorted({place[feature] for feature in features})) for features in sets]
    active = columns.any(0).tolist()
    # Each once: rankings have latents in common, and some are shorter than asked for.
    changing = list(dict.fromkeys(own for own in chosen if any(active[each] for each in own)))
    weight = held.model.W_dec[named].to(held.x.dtype) * held.model.output_units.scale.to(held.x.dtype)
    base = held.base.mean()
    effects: dict[tuple[int, ...], float] = {}
    for start in range(0, len(changing), n):
        part = changing[start : start + n]
        without = [held.x - (columns[:, list(own)] @ weight[list(own)]).view_as(held.x) for own in part]
        effects |= dict(zip(part, (held.of(torch.stack(without)).mean(1) - base).tolist(), strict=True))
    yield from (effects.get(own, 0.0) for own in chosen)
