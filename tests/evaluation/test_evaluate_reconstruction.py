"""Figures of a reconstruction against direct computation over all rows at once."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from tide.activations import ActivationBatch
from tide.errors import TideError
from tide.evaluation import PCA, evaluate_reconstruction, with_sae
from tide.sae import TIDE, Codes, TIDEConfig

D, N, K = 10, 30, 4


def batch(n: int, timestep: list[float], seed: int = 0) -> ActivationBatch:
    generator = torch.Generator().manual_seed(seed)
    return ActivationBatch(
        x=torch.randn(n, D, generator=generator) * torch.linspace(0.5, 3, D) + 5,
        timestep=torch.tensor(timestep),
        group=torch.randint(len(timestep), (n,), generator=generator, dtype=torch.int32),
        conditioning=None,
        sample=torch.zeros(n, dtype=torch.int64),
        token=torch.zeros(n, dtype=torch.int32),
    )


BATCHES = [batch(40, [0.0, 99.0, 100.0, 999.0], 0), batch(25, [450.0, 950.0], 1), batch(1, [555.0], 2)]
X = torch.cat([b.x for b in BATCHES])
TIMESTEP = torch.cat([b.timestep[b.group.long()] for b in BATCHES])


def sae() -> TIDE:
    model = TIDE(TIDEConfig(D, N, K))
    model.calibrate(X)
    with torch.no_grad():
        model.b_enc[[2, 11]] = -1e6
    return model


def direct(x: torch.Tensor, x_hat: torch.Tensor) -> dict[str, float]:
    x, x_hat = x.double(), x_hat.double()
    error = (x - x_hat).square().sum()
    return {
        "mse": float((x - x_hat).square().mean()),
        "cosine": float(torch.cosine_similarity(x, x_hat).mean()),
        "explained_variance": float(1 - error / (x - x.mean(0)).square().sum()),
        "tokens": len(x),
    }


def test_figures_of_an_sae():
    model = sae()
    figures = evaluate_reconstruction(with_sae(model), BATCHES, n_latents=N, scale=2.0)
    with torch.no_grad():
        z = model.encode(X).dense(N)
        expected = direct(X, model(X))
    # float32 products over batches of other sizes: a few roundings apart.
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert figures["mse_normalised"] == pytest.approx(figures["mse"] / 4)
    assert figures["l0"] == pytest.approx(float((z > 0).sum(1).double().mean()))
    assert figures["dead"] == pytest.approx(float((z == 0).all(0).double().mean()))
    assert figures["dead"] >= 2 / N


def test_l0_counts_after_selection():
    """A code of three places, one of them unused: two count."""

    def reconstruct(b):
        values = torch.tensor([[1.0, 2.0, 0.0]]).expand(len(b), 3)
        return b.x, Codes(values, torch.tensor([[3, 7, -1]], dtype=torch.int32).expand(len(b), 3))

    figures = evaluate_reconstruction(reconstruct, BATCHES, n_latents=8)
    assert figures["l0"] == 2.0
    assert figures["dead"] == 6 / 8
    assert "dead" not in evaluate_reconstruction(reconstruct, BATCHES)
    assert (figures["mse"], figures["explained_variance"]) == (0.0, 1.0)


def test_bins_are_of_100_timesteps_and_agree_with_the_whole():
    def reconstruct(b):
        return b.x * 0.9, None

    figures = evaluate_reconstruction(reconstruct, BATCHES)
    bins = figures["timestep"]
    assert list(bins) == ["0-100", "100-200", "400-500", "500-600", "900-1000"]
    assert "l0" not in figures
    for name, found in bins.items():
        low, high = map(int, name.split("-"))
        rows = (low <= TIMESTEP) & (high > TIMESTEP)
        expected = direct(X[rows], 0.9 * X[rows])
        if found["tokens"] == 1:
            assert torch.tensor(expected.pop("explained_variance")).isinf()
            assert torch.tensor(found["explained_variance"]).isnan()  # one token does not vary
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    for name in ("mse", "cosine"):
        mean = sum(b[name] * b["tokens"] for b in bins.values()) / sum(b["tokens"] for b in bins.values())
        assert figures[name] == pytest.approx(mean)
    assert figures["tokens"] == len(X)


def test_explained_variance_is_exact_far_from_the_origin():
    """Activations of a mean 1000 times their spread, as some channels have."""
    b = batch(500, [500.0])
    b.x = torch.randn(500, D, generator=torch.Generator().manual_seed(3)) + 1000
    x_hat = b.x + 0.5
    figures = evaluate_reconstruction(lambda _: (x_hat, None), [b])
    assert figures["explained_variance"] == pytest.approx(direct(b.x, x_hat)["explained_variance"], rel=1e-6)


def test_rows_that_do_not_vary_have_no_variance_to_explain():
    """Sums of squares less squares of sums would leave a rounding, and divide by it."""
    b = batch(10, [500.0])
    b.x = torch.linspace(0.1, 30.3, D).expand(10, D)
    assert torch.tensor(evaluate_reconstruction(lambda b: (b.x + 1, None), [b])["explained_variance"]).isnan()


@pytest.mark.parametrize("value", [0.1, 3e4])
def test_rows_that_vary_by_rounding_alone_have_no_variance_to_explain(value):
    """An error of rounding over a variance of rounding is any number."""
    b = batch(20, [450.0])
    b.x.fill_(value)
    b.x[::2] = torch.nextafter(b.x[::2], torch.tensor(torch.inf))
    assert math.isnan(evaluate_reconstruction(lambda b: (b.x + 1e-3, None), [b])["explained_variance"])


def test_a_token_of_zeros_has_no_cosine():
    """It is left out of the mean, not counted as orthogonal to its reconstruction."""
    b = batch(20, [450.0])
    b.x[:5] = 0
    found = evaluate_reconstruction(lambda b: (b.x * 0.9, None), [b])
    assert found["cosine"] == pytest.approx(1)
    b.x.zero_()
    found = evaluate_reconstruction(lambda b: (b.x + 1, None), [b])
    assert math.isnan(found["cosine"])
    assert math.isnan(found["explained_variance"])
    assert found["mse"] == 1


@pytest.mark.parametrize(("mean", "said"), [(300.0, True), (0.0, False)], ids=["a channel rules", "none does"])
def test_a_channel_that_rules_the_figures_is_said(mean, said):
    """The reconstruction knows nothing but the means: explained variance says so, cosine does not."""
    b = batch(500, [500.0])
    b.x = torch.randn(500, D, generator=torch.Generator().manual_seed(3))
    b.x[:, 4] += mean
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figures = evaluate_reconstruction(lambda b: (b.x.mean(0).expand_as(b.x), None), [b])
    assert figures["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert (figures["cosine"] > 0.99) is said
    found = [str(each.message) for each in caught]
    assert len(found) == said
    assert all(each.startswith("channel 4 holds 100% of the energy") for each in found)
    # Said of any reconstruction, a centred model's too: no advice that is not for all of them.
    assert not any("and train with" in each for each in found)


def test_the_mean_explains_nothing_and_a_full_pca_everything():
    pca = PCA.fit(BATCHES)
    figures = [evaluate_reconstruction(pca.reconstruct(rank), BATCHES) for rank in range(D + 1)]
    explained = [f["explained_variance"] for f in figures]
    assert explained[0] == pytest.approx(0, abs=1e-6)
    assert explained[D] == pytest.approx(1, abs=1e-6)
    assert explained == sorted(explained)


def test_nothing_to_evaluate():
    with pytest.raises(TideError, match="there are no activations to evaluate; collect some first"):
        evaluate_reconstruction(with_sae(sae()), [])


# -- PCA ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1, 4, D, 3 * D], ids=["the mean", "one", "four", "full", "beyond full"])
def test_pca_against_the_singular_values(rank):
    """The best approximation of a rank in the least squares, by another route."""
    pca = PCA.fit(BATCHES)
    mean = X.double().mean(0)
    u, s, v = torch.linalg.svd(X.double() - mean, full_matrices=False)
    s[rank:] = 0
    torch.testing.assert_close(pca.mean, mean.float())
    expected = (mean + (u * s) @ v).float()
    torch.testing.assert_close(pca.project(X, rank), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(pca.project(X.view(3, 22, D), rank), expected.view(3, 22, D), rtol=1e-5, atol=1e-4)


def test_pca_components():
    pca = PCA.fit(iter(BATCHES))
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(D), rtol=0, atol=1e-5)
    variance = ((X - X.mean(0)) @ pca.components.T).var(0)
    assert (variance.diff() < 0).all()


def test_pca_refuses():
    with pytest.raises(TideError, match="a PCA needs at least two activations"):
        PCA.fit([BATCHES[2]])
    with pytest.raises(TideError, match="a PCA needs at least two activations"):
        PCA.fit([])
    with pytest.raises(TideError, match="rank = -1 must be at least 0"):
        PCA.fit(BATCHES).project(X, -1)
