"""Small trainings on activations of a known sparse dictionary, which tests share."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import torch

from tide.activations import ActivationBatch
from tide.activations.source import Source
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


def digests(source: Source) -> frozenset[str]:
    """Of all its images, which differ."""
    found = frozenset(sample.image for sample in source.samples_before(source.n_images))
    assert len(found) == source.n_images
    return found


def assert_apart_by_rounding(one: Path, other: Path, steps: int) -> None:
    """Two trainings that log every step differ by no more than rounding makes of them.

    In the first step: each figure is a sum of up to 2^17 terms in float32, added in pairs. Either training loses 17
    times 2^-24 of it at most, so that they are within 2^-18.

    After so many steps, in the root mean square of the weights: let gradients differ by e = 2^-21 of theirs. AdamW
    moves every weight by about lr, whatever the size of its gradient: where that is z times the root mean square, the
    moves differ by lr min(2, e / z). Normally distributed gradients make of it lr sqrt(3.2 e) in root mean square: 0.8
    times the integral of min(2, e / z)^2 over z, which is 4 e. That is wide: it finds sums that are wrong by a percent.
    The gradients of a single step are held to 1e-6 in tests/kernels/test_ranks.py.
    """
    written = [json.loads((folder / "training.json").read_text()) for folder in (one, other)]
    first, again = (training["history"][0] for training in written)
    for name in ("loss", "mse", "cosine", "gradient_norm"):
        assert abs(again[name] - first[name]) <= 2**-18 * abs(first[name]), name
    models = [TIDE.from_pretrained(folder) for folder in (one, other)]
    lr = TrainConfig.from_dict(written[0]["config"]).learning_rate(models[0].d_model)
    both = [model.state_dict() for model in models]
    assert both[0].keys() == both[1].keys()
    for name, value in both[0].items():
        apart = float((value - both[1][name]).double().square().mean().sqrt())
        assert apart <= steps * lr * math.sqrt(3.2 * 2**-21), name
