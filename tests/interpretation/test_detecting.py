"""Detectors on activations whose latents were planted."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.planted_concepts import PLANTED, TIMESTEPS, images, model
from tide.editing.edits import Place
from tide.errors import TideError
from tide.interpretation import Annotated, fit_detectors, mean_scores, token_scores
from tide.sae import TIDE


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_finds_the_planted_latents_and_their_threshold(activation):
    found = fit_detectors(model(activation), images(0), images(1), list(PLANTED), n_latents=2)
    for concept, planted in PLANTED.items():
        each = found[concept]
        assert tuple(each.detector.features.tolist()) == planted
        assert each.auroc == [1.0, 1.0]
        held_out = images(2)
        scores = token_scores(each.detector, held_out)
        for t, own in enumerate(scores):
            assert torch.equal(own > each.detector.thresholds[t], held_out.masks[concept])


def test_latents_that_compete_are_encoded_once(monkeypatch):
    """Whatever the number of concepts: at two timesteps of the fitted and of the held-out images."""
    encoded = []
    plain = TIDE.encode
    monkeypatch.setattr(TIDE, "encode", lambda self, x, *rest: encoded.append(len(x)) or plain(self, x, *rest))
    fit_detectors(model("topk"), images(0), images(1), list(PLANTED), n_latents=2)
    assert encoded == [24 * 16] * 4


def test_images_are_told_by_the_mean_of_their_tokens():
    """Labels of images are enough."""
    fit, held_out = images(0, 64), images(1, 64)
    for each in (fit, held_out):
        each.masks.clear()
    found = fit_detectors(model(), fit, held_out, ["roof"], per="image", n_latents=4)["roof"]
    assert set(PLANTED["roof"]) <= set(found.detector.features.tolist())
    assert min(found.auroc) > 0.95
    scores = mean_scores(found.detector, held_out)
    assert torch.allclose(scores, token_scores(found.detector, held_out).mean(2), atol=1e-6)
    right = (scores > found.detector.thresholds[:, None]) == held_out.labels["roof"]
    assert right.float().mean() > 0.9


def test_labels_of_images_are_enough_for_tokens():
    fit, held_out = images(0, 64), images(1, 64)
    for each in (fit, held_out):
        each.masks.clear()
    found = fit_detectors(model(), fit, held_out, ["roof"], n_latents=4)["roof"]
    assert set(PLANTED["roof"]) <= set(found.detector.features.tolist())
    assert min(found.auroc) > 0.55  # a quarter of the tokens of its images are the concept's, the others tell nothing


def test_the_scores_are_those_that_a_mask_is_drawn_from():
    data = images(3, 4)
    detector = fit_detectors(model(), images(0), images(1), ["snow"])["snow"].detector
    place = Place(100.0, token=torch.arange(16), image=torch.zeros(16, dtype=torch.int64))
    assert torch.allclose(token_scores(detector, data)[1, 2], detector.scores(data.x[1, 2], place), atol=1e-5)


def test_what_no_latent_tells_is_told_by_its_figures():
    found = fit_detectors(model(), images(0, 96, told=("snow",)), images(1, 96, told=("snow",)), list(PLANTED))
    assert found["snow"].mean_auroc > 0.95
    assert abs(found["roof"].mean_auroc - 0.5) < 0.1  # 1536 tokens: the standard error of an area is 0.02
    assert found["snow"].nearest[0] == "roof"


def test_bad_input():
    other = Annotated(TIMESTEPS + 1, images(1).x, images(1).masks)
    with pytest.raises(TideError, match="different timesteps"):
        fit_detectors(model(), images(0), other, ["roof"])
    with pytest.raises(TideError, match="'door' is not labelled"):
        fit_detectors(model(), images(0), images(1), ["door"])
    with pytest.raises(TideError, match="no concept is named"):
        fit_detectors(model(), images(0), images(1), [])
    none, every = images(0), images(1)
    none.masks["roof"].zero_()
    every.masks["roof"].fill_(True)
    with pytest.raises(TideError, match="'roof' is on none of the fitted images; give images with and without it"):
        fit_detectors(model(), none, images(1), ["roof"])
    with pytest.raises(TideError, match="'roof' is on every one of the held out images"):
        fit_detectors(model(), images(0), every, ["roof"])
