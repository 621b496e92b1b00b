"""How much of an effect a few latents have: the strongest by each ranking are removed together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tide.adapters import Adapter
from tide.interpretation.effect.ablation import ablated_effects
from tide.interpretation.effect.effects import Effects
from tide.interpretation.effect.metric import Metric
from tide.interpretation.effect.steps import Steps
from tide.sae.model import TIDE

#: Numbers of latents that are removed together.
COUNTS = (1, 2, 4, 8, 16, 32, 64)


def effect_curves(
    adapter: Adapter,
    model: TIDE,
    steps: Steps,
    metric: Metric,
    effects: Effects,
    counts: Sequence[int] = COUNTS,
    *,
    seed: int = 0,
    batch_size: int = 16,
) -> dict[str, list[float]]:
    """Ranking -> the measured effect, averaged over the steps, of removing its strongest latents together, for each of
    ``counts``: by attribution, by integrated where there is one, by activation alone, and random ones of the active
    latents, drawn with ``seed``.

    One list of latents is removed at all steps. Where a ranking has fewer latents than asked for, all of them are.

    Args:
        adapter: of the pipeline.
        model: the autoencoder of the block.
        steps: what the model is asked.
        metric: of its predictions.
        effects: of the same steps; they rank the latents.
        counts: how many latents are removed.
        seed: of the random latents.
        batch_size: images of a pass.

    Raises:
        TideError: as :func:`~tide.interpretation.effect.latent_effects`.
    """
    most = max(counts)
    ranked = {"attribution": effects.strongest(most)}
    if effects.integrated is not None:
        ranked["integrated"] = effects.strongest(most, by="integrated")
    ranked["activation"] = effects.strongest(most, by="activation")
    active = effects.activation.any(0).nonzero().flatten()
    ranked["random"] = active[torch.randperm(len(active), generator=torch.Generator().manual_seed(seed))].tolist()
    sets = [features[:k] for features in ranked.values() for k in counts]
    found = ablated_effects(adapter, model, steps, metric, sets, batch_size=batch_size).mean(0)
    return {name: row.tolist() for name, row in zip(ranked, found.view(len(ranked), -1), strict=True)}
