"""Features chosen on one half of the images and scored on the other: planted ones are found, others are chance."""

from __future__ import annotations

import pytest
import torch

from tide.evaluation import auroc_interval
from tide.interpretation.image_scores import FEWEST, halves, score, strongest

N_FEATURES, PLANTED = 2000, 1234


def planted(n: int, shows: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Sparse features of ``n`` images without meaning, but for one that the images of ``shows`` have."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(n, N_FEATURES, generator=generator)
    features *= torch.rand(n, N_FEATURES, generator=generator) < 0.4
    features[:, PLANTED] = features[:, PLANTED] / 2 + shows * 1.0
    return features


def chosen_and_scored(features, shows, seed, **options):
    half = halves(shows, seed)
    (best,), (sign,) = strongest(features[half.choosing], shows[half.choosing], 1, **options)
    return best, sign, score(sign * features[half.scoring, best], shows[half.scoring])


@pytest.mark.parametrize("n_with", [FEWEST, 30])
def test_a_planted_feature_is_found(n_with):
    shows = torch.arange(70) < n_with
    best, _, found = chosen_and_scored(planted(70, shows), shows, seed=3)
    assert (best, found["auroc"]) == (PLANTED, 1.0)
    n = n_with - n_with // 2
    assert found["interval"] == list(auroc_interval(1.0, n, (70 - n_with) - (70 - n_with) // 2))
    assert found["interval"][0] > 0.5


def test_a_word_without_a_feature_is_chance():
    """Whatever was chosen among 2000 features tells nothing of other images: 19 of 20 intervals hold 0.5."""
    generator = torch.Generator().manual_seed(1)
    held, chosen_on = 0, 0.0
    for seed in range(40):
        shows = torch.rand(48, generator=generator) < 0.4
        features = planted(48, torch.zeros(48), seed)
        best, _, found = chosen_and_scored(features, shows, seed)
        low, high = found["interval"]
        held += low <= 0.5 <= high
        half = halves(shows, seed)
        chosen_on += score(features[half.choosing, best], shows[half.choosing])["auroc"] / 40
    assert chosen_on > 0.85  # on the images that chose it, chance looks like a find
    assert held >= 34


def test_a_neuron_may_fall_silent_and_a_latent_may_not():
    shows = torch.arange(60) < 25
    features = planted(60, ~shows)
    best, sign, found = chosen_and_scored(features, shows, seed=0, signed=True)
    assert (best, sign, found["auroc"]) == (PLANTED, -1.0, 1.0)
    assert chosen_and_scored(features, shows, seed=0)[0] != PLANTED


def test_of_equal_areas_the_larger_difference_goes_first():
    shows = torch.arange(20) < 10
    features = torch.zeros(20, 5)
    spread = torch.linspace(0, 1, 10)
    for i, (size, gap) in {1: (1.0, 1.5), 3: (0.1, 9.0), 4: (100.0, 3.0)}.items():
        features[:, i] = size * torch.cat([gap + spread, spread])
    assert strongest(features, shows, 3)[0] == [3, 4, 1]  # whatever the sizes of their values
    assert strongest(features, shows, 10)[0] == [3, 4, 1, 0, 2]
    signs = torch.tensor([1.0, 1.0, 1.0, -1.0, 1.0])
    assert strongest(features * signs, shows, 3, signed=True) == ([3, 4, 1], [-1.0, 1.0, 1.0])


def test_a_larger_area_goes_first_however_large_the_difference():
    shows = torch.arange(4000) < 2000
    rank = torch.arange(4000.0)
    swapped = torch.cat([rank[:1999], rank[[2000, 1999]], rank[2001:]])  # one pair of four million
    features = torch.stack([-rank / 4000, -swapped], dim=1)
    assert strongest(features, shows, 2)[0] == [0, 1]


@pytest.mark.parametrize(("n_with", "n_without"), [(8, 8), (9, 30), (31, 12)])
def test_halves_are_stratified(n_with, n_without):
    shows = torch.randperm(n_with + n_without, generator=torch.Generator().manual_seed(5)) < n_with
    half = halves(shows, 2)
    assert half.scores
    both = torch.cat([half.choosing, half.scoring])
    assert both.sort().values.tolist() == list(range(n_with + n_without))
    counts = [(int(shows[part].sum()), int((~shows[part]).sum())) for part in (half.choosing, half.scoring)]
    assert counts == [(n_with // 2, n_without // 2), (n_with - n_with // 2, n_without - n_without // 2)]
    again, other = halves(shows, 2), halves(shows, 3)
    assert torch.equal(again.choosing, half.choosing)
    assert not torch.equal(other.choosing, half.choosing)


@pytest.mark.parametrize(("n_with", "n_without"), [(7, 40), (40, 7), (1, 1)])
def test_too_few_images_are_not_halved(n_with, n_without):
    half = halves(torch.arange(n_with + n_without) < n_with)
    assert not half.scores
    assert half.choosing.tolist() == half.scoring.tolist() == list(range(n_with + n_without))
