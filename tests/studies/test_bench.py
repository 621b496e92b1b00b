"""What cells share: activations, the sample of their tokens, training and measuring."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tide.studies.bench import Bench, reordered
from tide.training import TrainConfig

SMALL = TrainConfig(n_latents=64, k=8, steps=3, batch_tokens=64, checkpoint_every=3)


def test_pools(bench: Bench):
    assert len(bench.train) == 12 * 64 * 2
    assert len(bench.wide) == 24 * 4 * 2
    assert len(bench.held_out) == len(bench.shifted) == 4 * 64 * 2
    assert all(pool.all.paired for pool in (bench.train, bench.wide, bench.held_out, bench.shifted))
    assert bench.train is bench.train


def test_a_sample_is_a_sixteenth_of_each_image_in_pairs(bench: Bench):
    pool, whole = bench.sampled(0), bench.train.all
    rows = pool.all
    assert len(rows) == len(whole) // 16
    assert rows.paired
    assert torch.equal(rows.sample.bincount(), torch.full((12,), 8))
    assert torch.equal(rows.token[0::2], rows.token[1::2])
    # Each row is that of the same image, token and timestep in the whole.
    key = {(int(s), int(t), float(whole.timestep[g])): x for s, t, g, x in zip(whole.sample, whole.token, whole.group.long(), whole.x, strict=True)}  # fmt: skip # noqa: E501
    for i in range(0, len(rows), 17):
        place = int(rows.sample[i]), int(rows.token[i]), float(rows.timestep[int(rows.group[i])])
        assert torch.equal(rows.x[i], key[place])
    assert torch.equal(bench.sampled(0).all.token, rows.token)
    assert not torch.equal(bench.sampled(1).all.token, rows.token)


def test_the_order_is_that_of_the_seed(bench: Bench):
    first, other = (next(reordered(bench.train, seed).from_step(0)).x for seed in (0, 1))
    assert not torch.equal(first, other)
    assert bench.train.seed == 0


def test_a_fit_depends_on_its_configuration_alone(bench: Bench):
    seen = []
    first, history = bench.fit(SMALL, bench.train, lambda model, step: seen.append(step))
    again, _ = bench.fit(SMALL, bench.train)
    other, _ = bench.fit(replace(SMALL, seed=1), bench.train)
    assert seen == [0, 1, 2]
    assert history[-1]["step"] == 3
    assert torch.equal(first.W_dec, again.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_measurements(bench: Bench, activation):
    config = replace(SMALL, activation=activation)
    model, _ = bench.fit(config, bench.train)
    figures = bench.reconstruction(model, bench.held_out)
    assert set(figures) == {"mse", "mse_raw", "cosine", "explained_variance", "l0", "dead", "l0 at"}
    assert figures["mse"] == pytest.approx(figures["mse_raw"] / bench.scale**2)
    assert min(figures["l0 at"].values()) <= figures["l0"] <= max(figures["l0 at"].values())
    loss = bench.diffusion(model)
    assert set(loss) == {"loss", "clean", "recovered", "timestep"}
    assert len(loss["timestep"]) == 2
    assert loss["clean"] < loss["loss"]
    assert loss["recovered"] < 1
    assert bench.seconds(config, bench.train) > 0
