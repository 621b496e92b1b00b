"""Banks of planted concepts."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.planted_concepts import PLANTED, TIMESTEPS, N, images, model
from tide.editing.bank import Difference
from tide.editing.edits import Place
from tide.editing.record import ContrastRecording
from tide.errors import TideError
from tide.interpretation import difference, record_bank


@pytest.fixture(scope="module")
def recorded():
    return record_bank(model(), images(0), images(1), list(PLANTED), n_tokens=5, n_latents=2)


def test_a_concepts_tokens_are_those_of_its_mask(recorded):
    data = images(0)
    held = recorded.bank.concepts["roof"]
    assert held.tokens.shape == (2, 5, N)
    inside = data.x.flatten(1, 2)[:, data.masks["roof"].flatten()]
    torch.testing.assert_close(held.mean, inside.mean(1))
    # Token i of every timestep is the same token of the same image.
    rows = [(inside[0].half() == token).all(1).nonzero().item() for token in held.tokens[0]]
    assert rows == sorted(set(rows))
    assert torch.equal(held.tokens[1], inside[1, rows].half())


def test_mean_latents_are_those_with_and_without(recorded):
    data, sae = images(0), model()
    there = data.masks["snow"].flatten()
    held = recorded.bank.concepts["snow"]
    for step in range(2):
        z = sae.dense(data.x[step].flatten(0, 1), float(TIMESTEPS[step]))
        torch.testing.assert_close(held.present.dense(N)[step], z[there].mean(0))
        torch.testing.assert_close(held.absent.dense(N)[step], z[~there].mean(0))


def test_both_means_are_of_the_same_latents(monkeypatch):
    """A latent that only one of two lists of the strongest kept would differ by its whole mean."""
    monkeypatch.setattr("tide.interpretation.banking.MEANS", 3)
    data, sae = images(0), model()
    there = data.masks["snow"].flatten()
    held = record_bank(sae, data, images(1), ["snow"]).bank.concepts["snow"]
    for step in range(2):
        z = sae.dense(data.x[step].flatten(0, 1), float(TIMESTEPS[step]))
        means = torch.stack([z[there].mean(0), z[~there].mean(0)])
        kept = torch.zeros_like(means)
        strongest = means.amax(0).topk(3).indices
        kept[:, strongest] = means[:, strongest]
        torch.testing.assert_close(torch.stack([held.present.dense(N)[step], held.absent.dense(N)[step]]), kept)


def test_its_detector_finds_the_concept_in_other_images(recorded):
    data, sae = images(2), model()
    detector = recorded.bank.where("roof", sae).detectors[0]
    assert recorded.detectors["roof"].mean_auroc == 1.0
    assert detector.features.tolist() == list(PLANTED["roof"])
    x = data.x[0].flatten(0, 1)
    place = Place(900.0, token=torch.arange(len(x)), image=torch.zeros(len(x), dtype=torch.int64))
    assert torch.equal(detector.scores(x, place) > detector.threshold(900.0), data.masks["roof"].flatten())


def test_a_label_stands_for_all_tokens_of_its_images():
    fit, held_out = images(0), images(1)
    for data in (fit, held_out):
        del data.masks["roof"]
    held = record_bank(model(), fit, held_out, ["roof"]).bank.concepts["roof"]
    torch.testing.assert_close(held.mean, fit.x[:, fit.labels["roof"]].mean((1, 2)))


def test_the_same_seed_gives_the_same_bank_and_another_another():
    def tokens(seed: int) -> torch.Tensor:
        return record_bank(model(), images(0), images(1), ["roof"], n_tokens=5, seed=seed).bank.concepts["roof"].tokens

    assert torch.equal(tokens(0), tokens(0))
    assert not torch.equal(tokens(0), tokens(1))


def _recording() -> ContrastRecording:
    generator = torch.Generator().manual_seed(0)
    absent, present = torch.randn(2, 2, 3, 1, 16, N, generator=generator)
    return ContrastRecording(TIMESTEPS, present, absent)


def test_a_difference_is_taken_under_the_mask():
    recording, mask = _recording(), torch.zeros(3, 16, dtype=torch.bool)
    mask[1, 4], mask[2, 0] = True, True
    found = difference(recording, mask)
    absent, present = recording.absent[:, :, 0], recording.present[:, :, 0]
    for i, (image, token) in enumerate(((1, 4), (2, 0))):
        assert torch.equal(found.keys[:, i], absent[:, image, token].half())
        torch.testing.assert_close(found.values[:, i], (present - absent)[:, image, token].half())
    assert difference(recording, ~torch.zeros_like(mask), n_tokens=7).keys.shape == (2, 7, N)


def test_what_does_not_fit_is_refused():
    with pytest.raises(TideError, match="does not cover 48 recorded tokens"):
        difference(_recording(), torch.ones(2, 16, dtype=torch.bool))
    with pytest.raises(TideError, match="no token shows the concept"):
        difference(_recording(), torch.zeros(3, 16, dtype=torch.bool))
    other = Difference(torch.zeros(3, 2, N), torch.zeros(3, 2, N))
    with pytest.raises(TideError, match="contrast of roof and snow has 3 timesteps and the images 2"):
        record_bank(model(), images(0), images(1), ["roof"], {("roof", "snow"): other})
    with pytest.raises(TideError, match="'door' is not labelled"):
        record_bank(model(), images(0), images(1), ["door"])
