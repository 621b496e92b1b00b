"""Latents of one run that match those of another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tide.browser.comparing import compared
from tide.errors import TideError
from tide.index import Index


@pytest.fixture(scope="session")
def permuted(model):
    """The model with its latents in another order, and the order: latent ``order[i]`` of the model is ``i``."""
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    other = type(model)(model.config, seed=0)
    state = {}
    for name, value in model.state_dict().items():
        axes = [i for i, n in enumerate(value.shape) if n == 96]
        state[name] = value.index_select(axes[0], order) if axes else value
    other.load_state_dict(state)
    return other.eval(), order.numpy()


@pytest.fixture(scope="session")
def of_permuted(permuted, make_run, tmp_path_factory) -> Index:
    return Index(make_run(permuted[0], tmp_path_factory.mktemp("permuted") / "tide"))


def test_a_model_matches_itself(made):
    found = compared(Index(made), Index(made))
    fires = np.arange(96) != 5
    np.testing.assert_array_equal(found["match"], np.where(fires, np.arange(96), -1))
    np.testing.assert_allclose(found["cosine"], fires, atol=1e-3)
    np.testing.assert_array_equal(found["mutual"], fires)
    assert [found[name].dtype for name in ("match", "cosine", "mutual")] == ["i4", "f4", "i4"]


def test_permuted_latents_are_found(made, of_permuted, permuted):
    _, order = permuted
    found, back = compared(of_permuted, Index(made)), compared(Index(made), of_permuted)
    fires = order != 5
    np.testing.assert_array_equal(found["match"], np.where(fires, order, -1))
    np.testing.assert_array_equal(found["mutual"], fires)
    np.testing.assert_allclose(found["cosine"][fires], 1, atol=1e-3)
    np.testing.assert_array_equal(back["match"][order[fires]], np.flatnonzero(fires))


@pytest.mark.parametrize("options", [{"images": 4}, {"seed": 1}])
def test_other_images_are_refused(made, make_run, model, tmp_path, options):
    other = Index(make_run(model, tmp_path / "other", **options))
    with pytest.raises(TideError, match="were indexed on different images; make both indexes on the same data, size"):
        compared(Index(made), other)


def test_an_index_that_is_made_anew_is_compared_anew(folder, made, permuted, make_run):
    assert compared(Index(folder), Index(made))["match"][0] == 0
    other, order = permuted
    make_run(other, folder)
    assert compared(Index(folder), Index(made))["match"][0] == (order[0] if order[0] != 5 else -1)
