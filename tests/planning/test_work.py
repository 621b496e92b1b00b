"""The counts of a plan."""

from __future__ import annotations

import pytest

from tests.helpers.plans import sizes, work
from tide.activations import CollectOptions
from tide.adapters import Adapter
from tide.errors import TideError
from tide.training import TrainConfig, build_model


def test_rows_and_steps():
    found = work()
    assert (found.image_rows, found.rows, found.steps, found.owned) == (8, 800, 8, 2)
    assert work(epochs=3).steps == 24
    assert work(batch_tokens=10**6).steps == 1
    assert work(blocks=tuple(range(28)), n_gpus=8).owned == 4
    assert work(options=CollectOptions(paired=False, token_fraction=1.0)).rows == 100 * 64


def test_parameters_are_those_of_a_model(adapter: Adapter):
    model = build_model(adapter, 6, TrainConfig(n_latents=96, k=8, activation="topk"))
    found = work(pipeline=sizes(d_model=adapter.d_model), n_latents=96)
    assert found.parameters + found.modulation_parameters == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("name", ["n_images", "n_gpus", "epochs", "reuse", "shard_latents"])
def test_counts_begin_at_one(name):
    with pytest.raises(TideError, match=f"{name} 0 is too small; give at least 1"):
        work(**{name: 0})
