"""The latents that carry most, and where they fire."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.trainings import batch, model
from tide.activations import CollectOptions, collect
from tide.adapters.sizes import caption_length
from tide.data import open_source
from tide.training.latent_pictures import Gallery, most_active, n_images, strip
from tide.training.live_gallery import galleries

PICTURES = [np.full((8, 8, 3), shade, np.uint8) for shade in (0, 80, 160, 255)]


@pytest.fixture
def gallery() -> Gallery:
    return Gallery(batch(0), PICTURES, (4, 4))  # 64 rows: four images of 16 tokens


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_they_have_the_most_energy(gallery, activation):
    sae = model(activation=activation)
    found = most_active(sae, gallery, 3)
    dense = torch.zeros(64, 32, dtype=torch.float64)
    with torch.no_grad():
        codes = sae.eval().encode(gallery.batch.x, gallery.batch.position)
        dense = codes.dense(32).double()
        energy = dense.square().sum(0) * sae.W_dec.double().square().sum(1)
    assert found.latents == energy.topk(3).indices.tolist()
    assert found.share == pytest.approx((energy.topk(3).values / energy.sum()).tolist())
    assert np.allclose(found.maps[0].reshape(-1), dense[:, found.latents[0]].numpy())
    assert found.frequency[0] == pytest.approx(float((dense[:, found.latents[0]] != 0).double().mean()))


def test_drawing_leaves_the_model_and_the_random_numbers_as_they_are(gallery):
    sae = model(activation="batch_topk").train()
    before, state = {n: v.clone() for n, v in sae.state_dict().items()}, torch.get_rng_state()
    picture = strip(sae, gallery, "step 3")
    assert picture.width > 2 * 128
    assert sae.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def test_a_gallery_is_bounded():
    assert [n_images(tokens) for tokens in (64, 1024, 4096, 16384)] == [8, 8, 2, 1]


def test_a_gallery_has_the_images_and_all_their_tokens(adapter):
    source = open_source("scenes", adapter, images=3)
    found = galleries(adapter, source, [2, 3], CollectOptions(n_timesteps=20), 0)
    assert set(found) == {2, 3}
    rows, columns = found[3].grid
    assert len(found[3].batch) == 3 * rows * columns
    assert len(found[3].pictures) == 3
    assert found[3].pictures[0].dtype == np.uint8
    assert found[3].batch.token[: rows * columns].tolist() == list(range(rows * columns))
    (timestep,) = set(found[3].batch.timestep.tolist())
    options = CollectOptions(token_fraction=1.0, paired=False, batch_size=8)
    # Of captions of the same length: padding changes how sums are rounded on some CPUs.
    length = caption_length(adapter)
    alone = collect(adapter, source, [3], options, timesteps=torch.tensor([timestep]), max_sequence_length=length)
    assert torch.equal(next(iter(alone))[3].x, found[3].batch.x)
