"""k-sparse probes of concepts on the features of a block, at each timestep."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tide.evaluation.block_tokens import BlockTokens
from tide.evaluation.concept_labels import Labels
from tide.evaluation.probing import choose_features, fit_probes
from tide.sae.position import Position
from tide.tables import mean, spread

#: From rows and where they stand to their features ``[rows, n_features]``.
Features = Callable[[Tensor, Position], Tensor]

#: Numbers of features that probes read.
SIZES = (1, 5)
#: The most rows of either side; the features of all are held at once.
MOST_ROWS = 8192


@torch.no_grad()
def probes_by_timestep(
    features: Features, fit: BlockTokens, measured: BlockTokens, labels: Labels, device: torch.device
) -> dict[str, Any]:
    """The AUROC of probes that read one feature, and :data:`SIZES` of them: chosen and fitted on ``fit``, scored on
    ``measured``. Where ``labels`` are of images, a feature is its mean over the image's tokens.

    Returns, under the number of features as text: ``"auroc"``, the mean over timesteps and concepts; ``"timestep"``,
    that at each; ``"concepts"``, that of each concept over the timesteps. ``"errors"`` are standard errors over the
    concepts.
    """
    first, shown = _capped(fit, labels.fit, labels.per_token)
    second, there = _capped(measured, labels.measured, labels.per_token)
    shown, there = shown.to(device), there.to(device)
    areas: dict[int, list[Tensor]] = {size: [] for size in SIZES}
    for i in range(len(fit.timesteps)):
        x, y = (_read(features, side, i, labels.per_token, device) for side in (first, second))
        chosen = choose_features(x, shown, min(max(SIZES), x.shape[1]))
        for size in SIZES:
            areas[size].append(fit_probes(x, shown, chosen[:, :size]).auroc(y, there).cpu())
    timesteps = [f"{t:g}" for t in fit.timesteps.tolist()]
    return {str(size): _figures(torch.stack(found), timesteps, labels.names) for size, found in areas.items()}


def _capped(tokens: BlockTokens, shows: Tensor, per_token: bool) -> tuple[BlockTokens, Tensor]:
    """The first images of at most :data:`MOST_ROWS` tokens, and their labels."""
    each = tokens.x.shape[2]
    n = max(1, MOST_ROWS // each)
    conditioning = None if tokens.conditioning is None else tokens.conditioning[..., :n, :]
    return replace(tokens, x=tokens.x[:, :n], conditioning=conditioning), shows[: n * each if per_token else n]


def _read(features: Features, tokens: BlockTokens, i: int, per_token: bool, device: torch.device) -> Tensor:
    rows = features(*tokens.at(i, device))
    return rows if per_token else rows.view(*tokens.x.shape[1:3], -1).mean(1)


def _figures(areas: Tensor, timesteps: list[str], concepts: list[str]) -> dict[str, Any]:
    """``areas [timesteps, concepts]``."""
    return {
        **_over_concepts(areas.mean(0)),
        "timestep": {t: _over_concepts(each) for t, each in zip(timesteps, areas, strict=True)},
        "concepts": dict(zip(concepts, areas.mean(0).tolist(), strict=True)),
    }


def _over_concepts(areas: Tensor) -> dict[str, Any]:
    values = areas.tolist()
    error = spread(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return {"auroc": mean(values), "errors": {"auroc": error}}
