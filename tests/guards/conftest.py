"""A TIDE of the tiny pipeline's block, and the pipeline's unguarded images."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.edit_samples import BLOCK, draw, make_sae
from tide.adapters import adapter_for
from tide.sae import TIDE

PROMPTS = ("a red cube", "a green tree")


@pytest.fixture(scope="session")
def sae(alpha) -> TIDE:
    """JumpReLU-like in that latents do not compete: a part of them is a model of its own."""
    return make_sae(alpha, BLOCK, activation="relu")


@pytest.fixture(scope="session")
def adapter(alpha):
    return adapter_for(alpha)


@pytest.fixture(scope="session")
def width(adapter) -> int:
    return adapter.encode_prompts(["a"])["encoder_hidden_states"].shape[-1]


@pytest.fixture(scope="session")
def plain(alpha) -> dict[float, torch.Tensor]:
    """Unguarded images, by guidance scale."""
    return {guidance: draw(alpha, PROMPTS, guidance=guidance) for guidance in (1.0, 3.0)}
