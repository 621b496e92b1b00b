"""An atlas of a source against one of activations that were read before."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tide.activations import prepare
from tide.activations.collect import sample_noise
from tide.data import open_source
from tide.errors import TideError
from tide.interpretation import Atlas, build_atlas, make_atlas, read_atlas
from tide.interpretation.atlas import ImageText
from tide.interpretation.atlas_reading import most_labelled
from tide.interpretation.reading import noised_activations
from tide.sae import TIDE, TIDEConfig

N_IMAGES, N_LATENTS = 6, 48
TIMESTEPS = torch.tensor([700, 200])


@pytest.fixture(scope="module")
def model(adapter) -> TIDE:
    torch.manual_seed(0)
    return TIDE(TIDEConfig(adapter.d_model, N_LATENTS, 8, block=6))


def read(adapter, model, batch_size=4, **options):
    source = open_source("scenes", adapter, images=N_IMAGES, batch_size=batch_size)
    return read_atlas(adapter, model, source, TIMESTEPS, top_images=2, seed=5, **options)


def test_is_the_atlas_of_all_images(adapter, model):
    atlas, thumbnails = read(adapter, model)
    source = open_source("scenes", adapter, images=N_IMAGES, batch_size=N_IMAGES)
    (whole,) = prepare(adapter, source, batch_size=N_IMAGES, max_sequence_length=24)
    noise = sample_noise(whole.latents.shape, 5, 0)
    batches = [noised_activations(adapter, model, whole, noise, TIMESTEPS)]
    at_once = build_atlas(model, TIMESTEPS, batches, (8, 8), top_images=2)
    torch.testing.assert_close(atlas.mean, at_once.mean, rtol=1e-3, atol=1e-3)
    assert (atlas.top_images == at_once.top_images).float().mean() > 0.9
    assert atlas.labels is None
    names, captions = [each.name for each in source.samples()], [text for _, texts in source for text in texts]
    assert atlas.images == {i: ImageText(names[i], captions[i]) for i in atlas.named_images()}
    assert len(atlas.images) > 1
    assert [image.shape for image in thumbnails] == [(64, 64, 3)] * N_IMAGES


def test_labels_are_of_the_first_images(adapter, model, monkeypatch):
    """A mask that is where a latent fires names that latent."""
    monkeypatch.setattr("tide.interpretation.atlas.LEAST_TOKENS", 1)
    seen = []
    monkeypatch.setattr(
        "tide.interpretation.atlas_reading.label_latents", lambda latents, masks, level_of: seen.append(latents)
    )
    read(adapter, model, masks={"any": torch.ones(3, 64, dtype=torch.bool)}, level_of={"any": "all"})
    (latents,) = seen
    assert latents.shape == (3 * 64, N_LATENTS)
    monkeypatch.undo()
    monkeypatch.setattr("tide.interpretation.atlas.LEAST_TOKENS", 1)
    latent = int((latents > 0).sum(0).argmax())
    masks = {"fires": (latents[:, latent] > 0).view(3, 64)}
    atlas, _ = read(adapter, model, masks=masks, level_of={"fires": "all"})
    assert (atlas.labels[latent].concept, atlas.labels[latent].level, atlas.labels[latent].auroc) == ("fires", "all", 1)


def test_masks_that_do_not_fit(adapter, model):
    masks = {"any": torch.ones(N_IMAGES + 1, 64, dtype=torch.bool)}
    with pytest.raises(TideError, match=r"the masks are of 448 tokens and the images have 384; give masks of them"):
        read(adapter, model, masks=masks, level_of={"any": "all"})
    with pytest.raises(TideError, match=r"the level of the concept 'any' is not known; add it to level_of"):
        read(adapter, model, masks=masks)


def test_how_many_images_are_labelled(monkeypatch):
    assert most_labelled(3072, 64) == 2730
    monkeypatch.setattr("tide.interpretation.atlas_reading.LABEL_BYTES", 100)
    assert most_labelled(3072, 64) == 1


@pytest.mark.parametrize("kind", [str, Path])
def test_an_atlas_in_one_call(adapter, model, monkeypatch, tmp_path, kind):
    """Labelled where the images know their concepts; the files hold what is returned."""
    monkeypatch.setattr("tide.interpretation.atlas.LEAST_TOKENS", 1)
    source = open_source("scenes", adapter, images=N_IMAGES, batch_size=4)
    entered = []

    @contextmanager
    def writing():
        entered.append(not list(tmp_path.iterdir()))
        yield

    made = make_atlas(adapter, model, source, kind(tmp_path), timesteps=TIMESTEPS, seed=5, writing=writing())
    assert entered == [True]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["atlas.html", "atlas.json", "atlas.safetensors"]
    loaded = Atlas.load(tmp_path)
    assert torch.equal(loaded.mean, made.mean)
    masks = source.batches.masks(N_IMAGES, (8, 8))
    atlas, _ = read(adapter, model, masks=masks, level_of=source.batches.level_of)
    assert loaded.labels == atlas.labels
    assert loaded.images == atlas.images
    assert f"{source.described}." in (tmp_path / "atlas.html").read_text()
    assert loaded.labels is not None


def test_the_timesteps_are_those_of_a_short_run(adapter, model):
    atlas, _ = read_atlas(adapter, model, open_source("scenes", adapter, images=2))
    assert torch.equal(atlas.timesteps, adapter.sampling_timesteps(10).float())
