"""A fresh model for one block of a pipeline, its modulation started as asked."""

from __future__ import annotations

import pytest
import torch

from tide.adapters import adapter_for
from tide.training import TrainConfig, build_model


def test_build_model(alpha):
    adapter = adapter_for(alpha)
    sae = build_model(adapter, 6, TrainConfig(expansion=2), tensor="attention")
    assert (sae.config.family, sae.config.block, sae.config.tensor) == ("pixart", 6, "attention")
    assert (sae.d_model, sae.n_latents, sae.config.k) == (192, 384, 19)
    timestep = torch.tensor([10.0, 700.0])
    torch.testing.assert_close(sae.modulation(timestep), adapter.modulation(6)(timestep), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "trainable", "like_the_model"),
    [
        ({"modulation_trainable": False}, False, True),
        ({"modulation_init": "random"}, True, False),
        ({"modulation_chunk": "mlp"}, True, False),
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
