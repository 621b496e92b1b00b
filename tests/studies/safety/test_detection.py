"""What a concept is told by, beside latents."""

from __future__ import annotations

import torch

from tide.interpretation import Annotated
from tide.sae import TIDE, TIDEConfig
from tide.studies.baselines import linear_readout
from tide.studies.safety.detection import detection


def images(seed: int) -> Annotated:
    """Images whose fourth channel is lower where they show a house."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 60, 4, 6, generator=generator)
    house = torch.rand(60, generator=generator) < 0.5
    x[..., 3] -= 4.0 * house[None, :, None]
    return Annotated(torch.tensor([900.0, 100.0]), x, labels={"house": house})


def test_a_readout_has_both_signs_of_its_directions():
    latents = linear_readout(torch.eye(3)).dense(torch.tensor([[1.0, -2.0, 0.0]]))
    assert latents.tolist() == [[1.0, 0.0, 0.0, 0.0, 2.0, 0.0]]


def test_neurons_and_components_tell_what_a_channel_tells():
    """The model's latents are none of that channel, so they tell nothing."""
    blind = TIDE(TIDEConfig(6, 8, 8, activation="relu")).eval()
    with torch.no_grad():
        blind.W_enc[:, 3] = 0.0
    found = detection(blind, images(0), images(1), ["house"])
    assert found["raw neurons"]["house"]["mean"] == 1.0
    assert found["principal components"]["house"]["first"] == 1.0
    assert found["random dictionary"]["house"]["mean"] > 0.7  # 8 random directions
    assert found["latents"]["house"]["mean"] < 0.8
