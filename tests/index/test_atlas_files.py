"""The atlas of an index against one that was read from the same images."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tide.data import open_source
from tide.errors import TideError
from tide.index import Index, build_index, write_atlas_files
from tide.index.atlas_files import thumbnails
from tide.index.layout import TOP
from tide.interpretation import Atlas, read_atlas
from tide.pictures import to_image
from tide.sae import TIDE, TIDEConfig
from tide.scenes import images_of, prompts

N_IMAGES, N_LATENTS = 10, 48
TIMESTEPS = torch.tensor([700, 200])


@pytest.fixture(scope="module")
def model(adapter) -> TIDE:
    torch.manual_seed(0)
    found = TIDE(TIDEConfig(adapter.d_model, N_LATENTS, 8, block=6))
    with torch.no_grad():
        found.b_enc[3] = -1e6  # a dead one
    return found


@pytest.fixture(scope="module")
def scenes(adapter):
    return open_source("scenes", adapter, images=N_IMAGES, batch_size=4)


@pytest.fixture(scope="module")
def index(adapter, model, scenes, tmp_path_factory) -> Index:
    with pytest.MonkeyPatch.context() as patch:
        # Of few tokens some concept fits even a random pipeline's latents.
        patch.setattr("tide.interpretation.atlas.LEAST_TOKENS", 1)
        return build_index(adapter, model, scenes, tmp_path_factory.mktemp("run"), timesteps=TIMESTEPS, seed=5)


@pytest.fixture(scope="module")
def read(adapter, model, scenes) -> tuple[Atlas, list[np.ndarray]]:
    """What is read of the same images, labelled by the same masks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tide.interpretation.atlas.LEAST_TOKENS", 1)
        masks = scenes.batches.masks(N_IMAGES, (8, 8))
        labels = {"masks": masks, "level_of": scenes.batches.level_of}
        return read_atlas(adapter, model, scenes, TIMESTEPS, top_images=TOP, seed=5, **labels)


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(images_of([scene for scene, _ in prompts("train", 2, 3)])):
        to_image(image).save(folder / f"{i}.png")
    return folder


def test_is_the_atlas_of_the_same_images(index, read):
    atlas, (wanted, _) = index.atlas(), read
    for name in ("timesteps", "frequency", "mean", "top_images", "top_values", "maps"):
        found, expected = getattr(atlas, name), getattr(wanted, name)
        assert found.dtype == expected.dtype, name
        assert torch.equal(found, expected), name
    assert (atlas.n_images, atlas.n_tokens) == (wanted.n_images, wanted.n_tokens) == (N_IMAGES, 64)
    assert atlas.labels == wanted.labels
    assert any(atlas.labels)
    assert atlas.images == wanted.images
    assert atlas.dead[3]


def test_has_the_scores_of_the_index(index):
    scores = index.atlas().monosemanticity
    np.testing.assert_array_equal(scores.numpy(), index.columns()["monosemanticity"])
    assert scores[3].isnan()
    assert scores.isfinite().any()


def test_without_labels(adapter, model, tmp_path, images):
    """Too few captions hold any word."""
    source = open_source(images, adapter, batch_size=2)
    atlas = build_index(adapter, model, source, tmp_path, timesteps=TIMESTEPS).atlas()
    assert atlas.labels is None
    assert {each.name for each in atlas.images.values()} <= {"0.png", "1.png"}


def test_thumbnails_are_those_that_were_read(index, read):
    """But for JPEG's loss."""
    for found, wanted in zip(thumbnails(index), read[1], strict=True):
        assert found.shape == wanted.shape
        assert np.abs(found.astype(float) - wanted).mean() < 2


def test_the_files_of_an_atlas(adapter, model, scenes, index, tmp_path):
    entered = []

    @contextmanager
    def writing():
        entered.append(not list(tmp_path.iterdir()))
        yield

    made = write_atlas_files(index, adapter, model, scenes, tmp_path, limit=7, writing=writing())
    assert entered == [True]
    loaded = Atlas.load(tmp_path)
    assert torch.equal(loaded.maps, made.maps)
    assert loaded.labels == made.labels
    assert torch.equal(loaded.monosemanticity.isnan(), made.monosemanticity.isnan())
    page = (tmp_path / "atlas.html").read_text()
    assert f"The page holds the 7 most active of the {int((~made.dead).sum())} latents that fire." in page
    assert f"measured on the same {N_IMAGES} scenes" in page
    assert "Monosemanticity is how alike the captions are" in page
    with pytest.raises(TideError, match="a page of 0 latents shows nothing"):
        write_atlas_files(index, adapter, model, scenes, tmp_path, limit=0)
