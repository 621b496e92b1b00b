"""Concepts of captions: chosen on one half of the images, scored and drawn on the other."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tide.activations import prepare
from tide.activations.collect import sample_noise
from tide.data import open_source
from tide.errors import TideError, TideWarning
from tide.evaluation import auroc
from tide.evaluation.baselines import untrained
from tide.images.trained import TrainedOn
from tide.interpretation import Annotated, concept_scores, mean_latents
from tide.interpretation.captions import caption_concepts
from tide.interpretation.image_scores import halves
from tide.interpretation.reading import noised_activations
from tide.sae import TIDE, TIDEConfig
from tide.strips import GAP

N_IMAGES, N_LATENTS, N_TOKENS = 24, 48, 64
TIMESTEPS = torch.tensor([400, 100])


@pytest.fixture(scope="module")
def model(adapter) -> TIDE:
    torch.manual_seed(0)
    return TIDE(TIDEConfig(adapter.d_model, N_LATENTS, 8, block=6))


def find(adapter, model, words, images=N_IMAGES, **options):
    source = open_source("scenes", adapter, images=images, batch_size=5)
    return caption_concepts(adapter, model, source, words, timesteps=TIMESTEPS, seed=2, **options)


def test_against_all_images_at_once(adapter, model, monkeypatch):
    """Images of one batch or several, latents of all tokens or of a few at a time."""
    monkeypatch.setattr("tide.interpretation.image_latents.PIECE", 10 * N_LATENTS)
    found = find(adapter, model, ["near", "far"], top_images=2)
    source = open_source("scenes", adapter, images=N_IMAGES, batch_size=N_IMAGES)
    (whole,) = prepare(adapter, source, batch_size=N_IMAGES, max_sequence_length=24)
    noise = sample_noise(whole.latents.shape, 2, 0)
    x, conditioning = noised_activations(adapter, model, whole, noise, TIMESTEPS)
    annotated = Annotated(TIMESTEPS, x, conditioning=conditioning)
    latents, random = (mean_latents(each, annotated) for each in (model, untrained(model, 2)))
    pooled, of_random = (each.view(N_IMAGES, N_TOKENS, -1).mean(1) for each in (latents, random))
    neurons = x.mean((0, 2))
    captions = [caption for _, batch in source for caption in batch]
    assert (found.n_images, found.n_read, found.kind) == (N_IMAGES, N_IMAGES, "unrecorded")
    for word in ("near", "far"):
        shows = torch.tensor([word in re.findall(r"\w+", caption) for caption in captions])
        half = halves(shows, 2)
        choose, scored = half.choosing, half.scoring
        row = found.concepts[word]
        assert (row["images"], row["without"]) == (int(shows.sum()), int((~shows).sum()))
        areas = auroc(pooled[choose], shows[choose, None])[:, 0]
        assert areas[row["latent"]] == areas.max()
        beside = {"neurons": neurons * row["neuron"]["sign"], "random": of_random}
        assert row["auroc"] == pytest.approx(_area(pooled[scored, row["latent"]], shows[scored]))
        assert row["neuron"]["auroc"] == pytest.approx(
            _area(beside["neurons"][scored, row["neuron"]["neuron"]], shows[scored])
        )
        assert row["random"]["auroc"] == pytest.approx(_area(of_random[scored, row["random"]["latent"]], shows[scored]))
        assert row["interval"][0] <= row["auroc"] <= row["interval"][1]
        assert len(row["latents"]) == 10
        assert row["latent"] == row["latents"][0]["latent"]
        for each in row["latents"]:
            of_latent = pooled[scored, each["latent"]]
            assert each["with"] == pytest.approx(float(of_latent[shows[scored]].mean()), rel=1e-3, abs=1e-4)
            assert each["without"] == pytest.approx(float(of_latent[~shows[scored]].mean()), rel=1e-3, abs=1e-4)
        images = sorted(captions.index(top["caption"]) for top in row["top_images"])
        assert set(images) <= set(scored[shows[scored]].tolist())
        assert len(found.drawn[word]) == len(images) == 2
        concept, background = pooled[choose][shows[choose]].mean(0), pooled[choose].mean(0)
        for i, drawn in zip(images, found.drawn[word], strict=True):
            z = latents.view(N_IMAGES, N_TOKENS, -1)[i]
            score = concept_scores(z, concept, background).clamp(min=0)
            singles = [z[:, each["latent"]] for each in row["latents"][:2]]
            torch.testing.assert_close(drawn.maps, torch.stack([score, *singles]), rtol=1e-3, atol=1e-4)


def _area(values: torch.Tensor, shows: torch.Tensor) -> float:
    return float(auroc(values[:, None], shows[:, None])[0, 0])


def coloured() -> list[tuple[Image.Image, str]]:
    """Twenty-four flat pictures: "blue" ones are blue, and "seven" is said of every third whatever it shows."""
    rows = []
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 15, (64, 64, 3)).astype(np.uint8)
        pixels[..., 0 if i % 2 else 2] += 240
        rows.append((Image.fromarray(pixels), f"a {'red' if i % 2 else 'blue'} {'two' if i % 3 else 'seven'}"))
    return rows


def test_a_word_that_is_there_and_one_that_is_not(adapter, model, monkeypatch):
    """Without captions in the activations: a latent tells blue from red, and none tells seven from two."""
    encode = type(adapter).encode_prompts
    monkeypatch.setattr(type(adapter), "encode_prompts", lambda self, texts, n: encode(self, [""] * len(texts), n))
    found = caption_concepts(
        adapter, model, open_source(coloured(), adapter), ["blue", "seven"], timesteps=torch.tensor([20])
    )
    blue, seven = found.concepts["blue"], found.concepts["seven"]
    assert (blue["auroc"], blue["remark"]) == (1.0, "neuron and random as good")  # as flat images allow
    assert blue["interval"][0] > 0.5
    assert seven["interval"][0] <= 0.5 <= seven["interval"][1]
    assert seven["remark"] == "near chance"


def test_few_images_are_not_scored(adapter, model):
    found = find(adapter, model, ["near"], images_per_concept=7)
    row = found.concepts["near"]
    assert (row["images"], found.n_images) == (7, 14)
    assert (row["auroc"], row["interval"], row["neuron"]["auroc"], row["random"]["auroc"]) == (None,) * 4
    assert {each["auroc"] for each in row["latents"]} == {None}
    assert row["remark"] == "too few images to score (fewer than 8 with it or without)"


def test_an_untrained_model_shares_all_but_the_latents(model):
    with torch.no_grad():
        other = dataclasses.replace(model.config, centre=True)
    centred = TIDE(other)
    centred.calibrate(torch.randn(50, model.d_model) * 3 + 5)
    fresh = untrained(centred, 1)
    assert torch.equal(fresh.activation_mean, centred.activation_mean)
    assert torch.equal(fresh.activation_scale, centred.activation_scale)
    assert (fresh.config, fresh.modulation is centred.modulation) == (centred.config, True)
    assert not torch.equal(fresh.W_enc, centred.W_enc)


def test_picture(adapter, model):
    found = find(adapter, model, ["near"], top_images=3)
    assert found.grid == (8, 8)
    width, height = found.picture("near").size
    assert width == 4 * 256 + 7 * GAP
    assert 3 * 256 < height < 4 * 256  # a row an image, below the word and the names of the columns


def test_no_more_images_than_asked_for(adapter, model):
    found = find(adapter, model, ["near"], images_per_concept=2)
    assert (found.concepts["near"]["images"], found.n_images) == (2, 4)


def trained_on(source, n: int) -> TrainedOn:
    """The first ``n`` images of a source."""
    for _ in source:
        pass
    return TrainedOn.of(["scenes"], source.samples()[:n])


def test_training_images_are_left_out(adapter, model, monkeypatch):
    source = open_source("scenes", adapter, images=60)
    monkeypatch.setattr(model, "trained_on", trained_on(source, 30))
    found = find(adapter, model, ["near"], images=60)
    assert (found.kind, found.n_images) == ("held-out", 30)


def test_training_images_are_used_where_too_few_others_show_a_word(adapter, model, monkeypatch):
    source = open_source("scenes", adapter, images=60)
    monkeypatch.setattr(model, "trained_on", trained_on(source, 40))
    message = (
        r"fewer than 8 images of scenes with 'purple', or without it, are .* collect \(or train live\) with a larger"
    )
    with pytest.warns(TideWarning, match=message):
        found = find(adapter, model, ["near", "purple"], images=60)
    assert (found.kind, found.n_read) == ("training", 60)


def test_few_images_that_trained_nothing_are_held_out_all_the_same(adapter, model, monkeypatch):
    """Other data than the checkpoint's, too few for a score: to add training images is no remedy."""
    monkeypatch.setattr(model, "trained_on", TrainedOn(("other",), frozenset({"0" * 16})))
    found = find(adapter, model, ["near"], images=9)
    assert (found.kind, found.n_images, found.concepts["near"]["auroc"]) == ("held-out", 9, None)


def test_a_word_is_whole_and_of_any_case(adapter, model):
    assert find(adapter, model, ["NEAR"]).concepts["NEAR"]["images"] > 0
    message = "24 images of scenes: no caption holds 'nea'; name words that some of them hold, or examine more images"
    with pytest.raises(TideError, match=message):
        find(adapter, model, ["nea"])


def test_a_word_of_every_caption(adapter, model):
    with pytest.raises(TideError, match="24 images of scenes: every caption holds 'facing'; add images"):
        find(adapter, model, ["facing"])


def test_images_without_captions(adapter, model, monkeypatch):
    monkeypatch.setattr("tide.interpretation.captioned.folded", lambda caption: "")
    with pytest.raises(TideError, match="24 images of scenes: none has a caption; give data with captions"):
        find(adapter, model, ["near"])


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ("house", {}, r"words = 'house' must be a list of one word or more"),
        ([], {}, r"words = \[\] must be a list of one word or more"),
        (["-"], {}, "the concept '-' holds no letter"),
        (["house"], {"images_per_concept": 0}, "images_per_concept = 0 and top_images = 4 must both be at least 1"),
        (["house"], {"top_images": 0}, "images_per_concept = 64 and top_images = 0 must both be at least 1"),
    ],
)
def test_what_is_refused(adapter, model, words, options, message):
    with pytest.raises(TideError, match=message):
        caption_concepts(adapter, model, open_source("scenes", adapter, images=2), words, **options)
