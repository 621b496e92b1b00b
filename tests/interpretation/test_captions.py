"""Concepts of captions against the recipe on all images at once."""

from __future__ import annotations

import re

import pytest
import torch

from tide.activations import prepare
from tide.activations.collect import sample_noise
from tide.data import open_source
from tide.errors import TideError
from tide.interpretation import Annotated, concept_scores, mean_latents
from tide.interpretation.captions import caption_concepts
from tide.interpretation.reading import noised_activations
from tide.sae import TIDE, TIDEConfig
from tide.strips import GAP

N_IMAGES, N_LATENTS, N_TOKENS = 12, 48, 64
TIMESTEPS = torch.tensor([400, 100])


@pytest.fixture(scope="module")
def model(adapter) -> TIDE:
    torch.manual_seed(0)
    return TIDE(TIDEConfig(adapter.d_model, N_LATENTS, 8, block=6))


def find(adapter, model, words, **options):
    source = open_source("scenes", adapter, images=N_IMAGES, batch_size=5)
    return caption_concepts(adapter, model, source, words, timesteps=TIMESTEPS, seed=2, **options)


def test_is_the_recipe(adapter, model, monkeypatch):
    """Images of one batch or several, latents of all tokens or of a few at a time."""
    monkeypatch.setattr("tide.interpretation.captions.PIECE", 10 * N_LATENTS)
    found = find(adapter, model, ["near", "far"], top_images=2)
    source = open_source("scenes", adapter, images=N_IMAGES, batch_size=N_IMAGES)
    (whole,) = prepare(adapter, source, batch_size=N_IMAGES, max_sequence_length=24)
    noise = sample_noise(whole.latents.shape, 2, 0)
    x, conditioning = noised_activations(adapter, model, whole, noise, TIMESTEPS)
    latents = mean_latents(model, Annotated(TIMESTEPS, x, conditioning=conditioning))
    pooled = latents.view(N_IMAGES, N_TOKENS, -1).mean(1)
    captions = [caption for _, batch in source for caption in batch]
    assert found.n_images == N_IMAGES
    for word in ("near", "far"):
        shows = torch.tensor([word in re.findall(r"\w+", caption) for caption in captions])
        concept, rest = pooled[shows].mean(0), pooled[~shows].mean(0)
        row = found.concepts[word]
        assert row["images"] == int(shows.sum())
        assert len(row["latents"]) == 10
        values = [each["with"] - each["without"] for each in row["latents"]]
        torch.testing.assert_close(torch.tensor(values), (concept - rest).topk(10).values, rtol=1e-3, atol=1e-4)
        assert row["latent"] == row["latents"][0]["latent"]
        assert all(word in top["caption"] for top in row["top_images"])
        images = sorted(captions.index(top["caption"]) for top in row["top_images"])
        assert len(found.drawn[word]) == len(images) == 2
        for i, drawn in zip(images, found.drawn[word], strict=True):
            z = latents.view(N_IMAGES, N_TOKENS, -1)[i]
            score = concept_scores(z, concept, pooled.mean(0)).clamp(min=0)
            singles = [z[:, each["latent"]] for each in row["latents"][:2]]
            torch.testing.assert_close(drawn.maps, torch.stack([score, *singles]), rtol=1e-3, atol=1e-4)


def test_picture(adapter, model):
    found = find(adapter, model, ["near"], top_images=3)
    assert found.grid == (8, 8)
    width, height = found.picture("near").size
    assert width == 4 * 256 + 7 * GAP
    assert 3 * 256 < height < 4 * 256  # a row an image, below the word and the names of the columns


def test_no_more_images_than_asked_for(adapter, model):
    found = find(adapter, model, ["near"], images_per_concept=2)
    assert (found.concepts["near"]["images"], found.n_images) == (2, 4)


def test_a_word_is_whole_and_of_any_case(adapter, model):
    assert find(adapter, model, ["NEAR"]).concepts["NEAR"]["images"] > 0
    with pytest.raises(TideError, match="no caption of scenes holds 'nea'; name words that they do"):
        find(adapter, model, ["nea"])


def test_a_word_of_every_caption(adapter, model):
    with pytest.raises(TideError, match="every caption of scenes holds 'facing'; add images without it"):
        find(adapter, model, ["facing"])


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ("house", {}, r"words = 'house' must be a list of one word or more"),
        ([], {}, r"words = \[\] must be a list of one word or more"),
        (["house"], {"images_per_concept": 0}, "images_per_concept = 0 and top_images = 4 must both be at least 1"),
        (["house"], {"top_images": 0}, "images_per_concept = 64 and top_images = 0 must both be at least 1"),
    ],
)
def test_what_is_refused(adapter, model, words, options, message):
    with pytest.raises(TideError, match=message):
        caption_concepts(adapter, model, open_source("scenes", adapter, images=2), words, **options)
