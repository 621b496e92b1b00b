"""A fresh model for one block of a pipeline, its modulation started as asked."""

from __future__ import annotations

import pytest
import torch

from tide.adapters import adapter_for
from tide.sae import Position
from tide.training import TrainConfig, build_model


def test_build_model(alpha):
    adapter = adapter_for(alpha)
    sae = build_model(adapter, 6, TrainConfig(expansion=2, density=0.05, modulation_init="adaln"), tensor="attention")
    assert (sae.config.family, sae.config.block, sae.config.tensor) == ("pixart", 6, "attention")
    assert (sae.d_model, sae.n_latents, sae.config.k) == (192, 384, 19)
    timestep = torch.tensor([10.0, 700.0])
    torch.testing.assert_close(sae.modulation(timestep), adapter.modulation(6)(timestep), rtol=0, atol=0)


def test_by_default_training_starts_from_the_plain_sae(alpha):
    """Scale and shift are zero, and follow the model's embedding of the timestep once they are learnt."""
    adapter = adapter_for(alpha)
    sae, plain = (build_model(adapter, 6, TrainConfig(expansion=1, modulation=m)) for m in (True, False))
    x, timestep = torch.randn(8, 192), torch.tensor([10.0, 700.0])
    assert all(not each.any() for each in sae.modulation(timestep))
    assert torch.equal(sae(x, Position(timestep, group=torch.arange(8) % 2)), plain(x))
    own = adapter.modulation(6)
    assert torch.equal(sae.modulation.linear_1.weight, own.linear_1.weight)
    assert torch.equal(sae.modulation.linear_2.weight, own.linear_2.weight)


@pytest.mark.parametrize(
    ("options", "trainable", "like_the_model"),
    [
        ({"modulation_init": "adaln", "modulation_trainable": False}, False, True),
        ({"modulation_init": "random"}, True, False),
        ({"modulation_init": "adaln", "modulation_chunk": "mlp"}, True, False),
    ],
    ids=["frozen", "random", "the other chunk"],
)
def test_build_model_modulation(alpha, options, trainable, like_the_model):
    adapter = adapter_for(alpha)
    sae = build_model(adapter, 6, TrainConfig(expansion=1, **options))
    assert {p.requires_grad for p in sae.modulation.parameters()} == {trainable}
    timestep = torch.tensor([300.0])
    found, own = sae.modulation(timestep)[0], adapter.modulation(6)(timestep)[0]
    assert torch.equal(found, own) is like_the_model


def test_build_model_of_the_plain_sae(alpha):
    sae = build_model(adapter_for(alpha), 6, TrainConfig(modulation=False, pre_norm="layernorm", expansion=1))
    assert sae.modulation is None
    assert sae.config.pre_norm == "none"
