"""Training with thresholds that know the timestep, on tokens whose noise depends on it."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
import torch

from tests.helpers.trainings import MODULATION, D, batch, trainer
from tide.activations import ActivationBatch
from tide.sae import TIDE, TIDEConfig
from tide.sae.activation import TIMED
from tide.training import LossConfig

N, K, ROWS = 64, 4, 256


def noisy(seed: int) -> ActivationBatch:
    """Three directions a row, under noise that is ten times as large at the earlier timestep."""
    given = batch(seed, rows=ROWS)
    deviation = torch.tensor([2.0, 0.2])[given.group.long()]
    noise = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(10**6 + seed))
    return replace(given, x=given.x + deviation[:, None] * noise, timestep=torch.tensor([900.0, 100.0]))


def trained(out, activation: str, *, timed: bool) -> TIDE:
    options = {"activation": activation, "timestep_thresholds": timed}
    sae = TIDE(TIDEConfig(D, N, K, modulation=MODULATION, **options), seed=3)
    job = trainer(
        out, sae, n_latents=N, k=K, steps=100, batch_tokens=ROWS, checkpoint_every=100, lr=1e-2,
        loss=LossConfig(temporal=0.0, sparsity=0.1), **options,
    )  # fmt: skip
    return job.fit(noisy(seed) for seed in count())


def held_out(sae: TIDE) -> tuple[float, float]:
    """Mean squared error and L0."""
    batches = [noisy(10**5 + seed) for seed in range(40)]
    with torch.no_grad():
        errors = [float((sae(each.x, each.position) - each.x).square().mean()) for each in batches]
        active = [float((sae.encode(each.x, each.position).values > 0).sum()) for each in batches]
    return sum(errors) / 40, sum(active) / (40 * ROWS)


@pytest.mark.filterwarnings("ignore:the channels' means")
@pytest.mark.parametrize("activation", TIMED)
def test_reconstructs_better_with_as_many_active_latents(tmp_path, activation):
    error, l0 = held_out(trained(tmp_path / "plain", activation, timed=False))
    timed_error, timed_l0 = held_out(trained(tmp_path / "timed", activation, timed=True))
    assert (l0, timed_l0) == (pytest.approx(K, rel=0.03), pytest.approx(K, rel=0.03))
    assert timed_error < 0.95 * error
