"""Guards made by hand, for tests of what they do in a pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tests.helpers.edit_samples import BLOCK, N
from tide.adapters import Adapter
from tide.editing import Steer
from tide.editing.where import Detector, Where
from tide.guards import Guard, MadeFor, Refuge, Words
from tide.sae import TIDE

#: Thresholds that flag every image, and none.
ALWAYS, NEVER = -1e9, 1e9


def detector(sae: TIDE, threshold: float, features: Sequence[int] = (3, 20, 41)) -> Detector:
    return Detector.of_features(sae, features, threshold)


def words(width: int, scale: float = 0.5, rank: int = 4) -> Words:
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(width, rank, generator=generator) / width**0.5
    return Words(down, scale * torch.randn(rank, width, generator=generator))


def refuge(width: int, n_tokens: int = 3) -> Refuge:
    states = torch.randn(n_tokens, width, generator=torch.Generator().manual_seed(1))
    return Refuge(states, torch.ones(n_tokens, dtype=torch.bool))


def made_for(adapter: Adapter, block: int = BLOCK) -> MadeFor:
    return MadeFor.of(adapter, block, "output")


def guard_of(adapter: Adapter, sae: TIDE, threshold: float, width: int, **options) -> Guard:
    """A guard of "house" that maps words, flags above ``threshold``, and has no refuge unless it is given one."""
    parts = {"words": words(width), **options}
    return Guard("house", "tree", detector(sae, threshold), made_for(adapter), **parts)


def mover(sae: TIDE, threshold: float = ALWAYS, size: float = 5.0) -> dict:
    """``where`` and ``what`` of a guard: every token above the threshold moves along one direction."""
    direction = size * torch.randn(1, sae.d_model, generator=torch.Generator().manual_seed(2))
    return {
        "where": Where((detector(sae, threshold, (1, N - 1)),)),
        "what": Steer(torch.zeros(1), direction),
    }
