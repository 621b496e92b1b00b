"""k-sparse probes: which features are chosen, and that the fit is the minimum of its loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tide.errors import TideError
from tide.evaluation.probing import RIDGE, choose_features, fit_probes

ROWS = 400


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(ROWS, 12, generator=torch.Generator().manual_seed(0))


def by_least_squares(features: torch.Tensor, mask: torch.Tensor, n: int) -> list[int]:
    """The same greedy choice by a regression for every candidate."""
    chosen: list[int] = []
    y = mask.double() - mask.double().mean()
    for _ in range(n):
        errors = []
        for i in range(features.shape[1]):
            x = features[:, [*chosen, i]].double()
            x = x - x.mean(0)
            errors.append(float((y - x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0]).square().sum()))
        errors = [torch.inf if i in chosen else e for i, e in enumerate(errors)]
        chosen.append(errors.index(min(errors)))
    return chosen


def test_features_are_chosen_as_by_regressions(features):
    features[:, 5] = features[:, :3].sum(1)  # what several hold together
    masks = torch.stack([features[:, 0] + features[:, 3] > 0.5, features[:, 5] - features[:, 7] > 0], dim=1)
    found = choose_features(features, masks, 3)
    assert found.tolist() == [by_least_squares(features, masks[:, c], 3) for c in range(2)]


def test_a_copy_adds_nothing(features):
    """Ranked one by one, the copy of the best feature would be the second best."""
    features[:, 4] = features[:, 0]
    features[:, 6] = 3.0
    mask = features[:, 0] + 0.3 * features[:, 9] > 0
    assert choose_features(features, mask[:, None], 2).tolist() == [[0, 9]]
    every = choose_features(features, mask[:, None], 12)[0].tolist()
    assert sorted(every) == list(range(12))
    assert set(every[-2:]) == {4, 6}


def test_a_fit_is_the_minimum_of_its_loss(features):
    masks = (features[:, :2] + 0.5 * features[:, 2:4] + 0.7 * features[:, 4:6]) > 0.4
    chosen = torch.tensor([[0, 2, 7], [1, 3, 8]])
    probes = fit_probes(features, masks, chosen)
    for c, columns in enumerate(chosen):
        x = features[:, columns].double()
        deviation = x.std(0, correction=0)
        weights = (probes.weights[c] * deviation).requires_grad_()
        logits = (x - x.mean(0)) / deviation @ weights
        bias = torch.zeros((), dtype=torch.float64)
        for _ in range(100):  # the best bias for these weights
            share = (logits.detach() + bias).sigmoid()
            bias = bias - (share - masks[:, c].double()).mean() / (share * (1 - share)).mean()
        loss = F.binary_cross_entropy_with_logits(logits + bias, masks[:, c].double())
        (gradient,) = torch.autograd.grad(loss + RIDGE * weights.square().sum() / 2, weights)
        assert gradient.abs().max() < 1e-7


def test_separable_concepts_have_finite_probes(features):
    mask = features[:, 3:4] > 0
    probes = fit_probes(features, mask, choose_features(features, mask, 1))
    assert probes.features.tolist() == [[3]]
    assert torch.isfinite(probes.weights).all()
    assert probes.auroc(features, mask).tolist() == [1.0]


def test_two_sparse_features_tell_what_one_cannot():
    """A concept in two parts, each with a latent: a single latent ties on all of the other part."""
    part = torch.arange(ROWS) % 4
    features = torch.stack([part == 0, part == 1, torch.zeros(ROWS)], dim=1).float()
    mask = (part < 2)[:, None]
    areas = [
        float(fit_probes(features, mask, choose_features(features, mask, m)).auroc(features, mask)) for m in (1, 2)
    ]
    assert areas == [0.75, 1.0]


def test_chance_on_other_rows():
    """What was fitted to noise tells nothing of other rows: the standard error of an AUROC of 200 and 200 is 0.029."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2 * ROWS, 50, generator=generator)
    mask = torch.rand(2 * ROWS, 1, generator=generator) < 0.5
    probes = fit_probes(features[:ROWS], mask[:ROWS], choose_features(features[:ROWS], mask[:ROWS], 5))
    assert float(probes.auroc(features[:ROWS], mask[:ROWS])) > 0.55
    assert abs(float(probes.auroc(features[ROWS:], mask[ROWS:])) - 0.5) < 3 * 0.029


@pytest.mark.parametrize("n", [0, 13])
def test_more_features_than_there_are(features, n):
    with pytest.raises(TideError, match=f"{n} features of a probe are asked for; there are 12"):
        choose_features(features, features[:, :1] > 0, n)
