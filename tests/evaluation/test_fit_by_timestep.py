"""Reconstruction by timestep: the figures of ``evaluate_reconstruction``, and standard errors over the images."""

from __future__ import annotations

import math

import pytest
import torch

from tide.activations import ActivationBatch
from tide.evaluation import evaluate_reconstruction, with_sae
from tide.evaluation.block_tokens import BlockTokens
from tide.evaluation.fit_by_timestep import by_model, by_projection, fit_by_timestep, ratio
from tide.sae import TIDE, ModulationConfig, TIDEConfig

D, N_IMAGES, N_TOKENS = 16, 6, 10
TIMESTEPS = torch.tensor([850.0, 350.0])
CPU = torch.device("cpu")


@pytest.fixture
def tokens() -> BlockTokens:
    x = 1 + torch.randn(2, N_IMAGES, N_TOKENS, D, generator=torch.Generator().manual_seed(1))
    return BlockTokens(TIMESTEPS, x * torch.tensor([1.0, 2.0])[:, None, None, None])


@pytest.fixture
def model() -> TIDE:
    modulation = ModulationConfig(d_model=D, d_embedding=8, n_frequencies=8)
    return TIDE(TIDEConfig(D, 64, 4, modulation=modulation), seed=2).eval()


def as_batch(tokens: BlockTokens) -> ActivationBatch:
    """The same rows, a group an image and timestep."""
    rows = 2 * N_IMAGES * N_TOKENS
    group = torch.arange(2 * N_IMAGES, dtype=torch.int32).repeat_interleave(N_TOKENS)
    sample = torch.arange(N_IMAGES).repeat_interleave(N_TOKENS).repeat(2)
    x, timestep = tokens.x.flatten(0, 2), TIMESTEPS.repeat_interleave(N_IMAGES)
    return ActivationBatch(x, timestep, group, None, sample, torch.zeros(rows, dtype=torch.int32))


@pytest.mark.filterwarnings("ignore:the channels' means")
def test_figures_are_those_of_the_reconstruction(tokens, model):
    found = fit_by_timestep(by_model(model), tokens, CPU, scale=2.0, n_latents=64)
    with torch.no_grad():
        expected = evaluate_reconstruction(with_sae(model), [as_batch(tokens)], n_latents=64, scale=2.0)
    for name in ("explained_variance", "cosine", "mse_normalised", "l0", "dead"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    for t, name in (("850", "800-900"), ("350", "300-400")):
        for figure in ("explained_variance", "cosine", "mse_normalised"):
            assert found["timestep"][t][figure] == pytest.approx(expected["timestep"][name][figure], rel=1e-5)


def test_a_projection_has_no_latents(tokens):
    found = fit_by_timestep(by_projection(lambda x: x.mean(0).expand_as(x)), tokens, CPU, scale=1.0)
    assert found["timestep"]["850"]["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert "l0" not in found
    assert "dead" not in found


def test_a_latent_is_alive_if_it_fires_at_any_timestep(tokens, model):
    found = fit_by_timestep(by_model(model), tokens, CPU, scale=1.0, n_latents=64)
    assert found["dead"] <= min(each["dead"] for each in found["timestep"].values())


def test_the_error_of_a_ratio_is_that_of_the_jackknife():
    """To the order of 1/n, by which the two differ."""
    generator = torch.Generator().manual_seed(0)
    under = 5 + torch.rand(200, dtype=torch.float64, generator=generator)
    over = under * 0.3 + 0.2 * torch.randn(200, dtype=torch.float64, generator=generator)
    value, error = ratio(over, under)
    left_out = torch.stack([(over.sum() - over[i]) / (under.sum() - under[i]) for i in range(200)])
    jackknife = math.sqrt(199 / 200 * float((left_out - left_out.mean()).square().sum()))
    assert value == pytest.approx(float(over.sum() / under.sum()))
    assert error == pytest.approx(jackknife, rel=0.02)


def test_a_single_image_has_no_error():
    assert ratio(torch.ones(1), torch.full((1,), 4.0)) == (0.25, math.inf)
    assert math.isnan(ratio(torch.ones(3), torch.zeros(3))[0])
