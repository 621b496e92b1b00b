"""The one-pass monosemanticity score against the sum over pairs that defines it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tide.errors import TideError
from tide.interpretation.monosemanticity import Monosemanticity


def over_pairs(a: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    a = a.double()
    a = (a - a.amin(0)) / (a.amax(0) - a.amin(0))
    likeness = F.normalize(e.double(), dim=1) @ F.normalize(e.double(), dim=1).T
    i, j = torch.triu_indices(len(a), len(a), 1)
    weight = a[i] * a[j]
    return (weight * likeness[i, j, None]).sum(0) / weight.sum(0)


def scored(a: torch.Tensor, e: torch.Tensor, batch: int = 7) -> torch.Tensor:
    running = Monosemanticity(a.shape[1], e.shape[1])
    for start in range(0, len(a), batch):
        running.update(a[start : start + batch], e[start : start + batch])
    return running.scores()


@pytest.mark.parametrize("batch", [1, 7, 50], ids=["one by one", "the last batch is short", "at once"])
def test_one_pass_is_the_sum_over_pairs(batch):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, 12, generator=generator) * 10 - 3  # raw neurons have both signs
    a[:, :6] = a[:, :6].clamp(min=0)
    e = torch.randn(50, 5, generator=generator)
    # Float64 sums of 50 terms around 100, scaled back by their range.
    torch.testing.assert_close(scored(a, e, batch).double(), over_pairs(a, e), rtol=1e-6, atol=1e-6)


def test_a_feature_of_one_kind_of_image_scores_one_and_a_mixed_one_less():
    kinds = torch.eye(4).repeat_interleave(5, 0)
    pure, mixed = kinds[:, 0], kinds[:, 0] + kinds[:, 1]
    scores = scored(torch.stack([pure, mixed], dim=1), 3 * kinds)
    assert scores[0] == pytest.approx(1.0)
    # Of the 45 pairs of ten images 20 are of one kind.
    assert scores[1] == pytest.approx(20 / 45)


def test_features_without_a_pair():
    a = torch.zeros(6, 3)
    a[2, 1] = 4.0
    a[:, 2] = 0.7
    assert scored(a, torch.eye(6)).isnan().all()


def test_bad_input():
    running = Monosemanticity(2, 3)
    running.update(torch.ones(1, 2), torch.ones(1, 3))
    with pytest.raises(TideError, match="1 images form no pair; give two or more"):
        running.scores()
    with pytest.raises(TideError, match="2 images have activations and 1 embeddings"):
        running.update(torch.ones(2, 2), torch.ones(1, 3))
    with pytest.raises(TideError, match="not finite; leave that image out"):
        running.update(torch.tensor([[1.0, torch.nan]]), torch.ones(1, 3))
