"""Small trainings on activations of a known sparse dictionary, which tests share."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, islice

import torch

from tide.activations import ActivationBatch
from tide.sae import TIDE, ModulationConfig, TIDEConfig
from tide.training import LossConfig, RevivalConfig, TrainConfig, Trainer

D, N, K, ROWS = 16, 32, 3, 64
MODULATION = ModulationConfig(d_model=D, d_embedding=8, n_frequencies=8)


def batch(seed: int, *, paired: bool = True, rows: int = ROWS) -> ActivationBatch:
    """Rows that are each three of 16 fixed orthonormal directions, with positive weights, around a mean; the two rows
    of a pair share their directions."""
    dictionary = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(9)))[0]
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(rows // 2, D, generator=generator).topk(3).indices.repeat_interleave(2, 0)
    weights = 1 + torch.rand(rows, 3, generator=generator)
    x = 4 * torch.einsum("nk,nkd->nd", weights, dictionary[active]) + 2
    return ActivationBatch(
        x=x,
        timestep=torch.tensor([900.0, 850.0]),
        group=torch.arange(rows, dtype=torch.int32) % 2,
        conditioning=None,
        sample=torch.zeros(rows, dtype=torch.int64),
        token=torch.zeros(rows, dtype=torch.int32),
        paired=paired,
    )


def with_target(rows: ActivationBatch) -> ActivationBatch:
    """The rows with what a known map makes of them: each direction becomes another one, scaled and shifted."""
    turned = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(4)))[0]
    return replace(rows, target=3 * rows.x @ turned + 1)


def config(**options) -> TrainConfig:
    defaults = {
        "activation": "topk", "n_latents": N, "k": K, "steps": 60, "lr": 2e-2, "batch_tokens": ROWS, "log_every": 10,
        "checkpoint_every": 20, "loss": LossConfig(temporal=1e-3, sparsity=0.1),
        "revival": RevivalConfig(after_tokens=6 * ROWS, every=5),
    }  # fmt: skip
    return TrainConfig(**{**defaults, **options})


def model(**options) -> TIDE:
    return TIDE(TIDEConfig(D, N, K, modulation=MODULATION, **{"family": "pixart", "block": 6, **options}), seed=3)


def trainer(out, sae: TIDE | None = None, **options) -> Trainer:
    return Trainer(model() if sae is None else sae, config(**options), out, progress=False)


def stream(start: int = 0):
    return (batch(seed) for seed in count(start))


def state(sae: TIDE) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in sae.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def interrupted(n: int, source=stream):
    """Batches up to number ``n`` alone, as of a run that stops there."""

    def batches(start: int):
        return islice(source(start), n - start)

    return batches
