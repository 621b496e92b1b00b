"""Baselines: what each is, against the same written out."""

from __future__ import annotations

import pytest
import torch

from tide.evaluation.baselines import PCA, StrongestNeurons, random_autoencoder
from tide.sae import TIDE, Position, TIDEConfig

D, N_ROWS = 12, 400


@pytest.fixture
def rows() -> torch.Tensor:
    return 3 + torch.randn(N_ROWS, D, generator=torch.Generator().manual_seed(0)) * torch.arange(1, D + 1)


def test_the_strongest_neurons_of_a_token(rows):
    mean = rows.mean(0)
    found = StrongestNeurons(mean, 2).project(rows)
    kept = (found != mean).sum(1)
    assert bool((kept == 2).all())
    away = (rows - mean).abs()
    assert torch.equal((rows - found).abs().amax(1), away.sort(1, descending=True).values[:, 2])


def test_coordinates_are_the_variance_in_order(rows):
    pca = PCA.fit_rows(rows.split(100))
    variance = pca.coordinates(rows).var(0)
    assert torch.equal(variance, variance.sort(descending=True).values)
    torch.testing.assert_close(pca.coordinates(rows) @ pca.components + pca.mean, rows, rtol=1e-4, atol=1e-4)


def test_a_random_autoencoder_has_the_sizes_and_other_directions(rows):
    model = TIDE(TIDEConfig(D, 40, 4), seed=1)
    random = random_autoencoder(model, rows, Position(3.0), seed=2)
    assert random.config == model.config
    assert not torch.equal(random.W_enc, model.W_enc)
    assert int((random.encode(rows).values != 0).sum(1).max()) <= 4


def test_its_factor_is_the_best_by_least_squares(rows):
    """No other factor on the decoder makes a smaller error."""
    random = random_autoencoder(TIDE(TIDEConfig(D, 40, 4)), rows, Position(3.0), seed=2)

    @torch.no_grad()
    def error() -> float:
        return float((random(rows) - rows).square().sum())

    best = error()
    for factor in (0.9, 1.1):
        with torch.no_grad():
            random.W_dec.mul_(factor)
        assert error() > best
        with torch.no_grad():
            random.W_dec.div_(factor)
    assert best < float((rows - rows.mean(0)).square().sum())
