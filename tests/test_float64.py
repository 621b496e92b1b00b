"""Sums in float64 of tensors on a device that has none are made on the CPU, and are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.helpers.single import Single, single
from tide import devices
from tide.activations.batch import ActivationBatch
from tide.evaluation.baselines import PCA
from tide.evaluation.reconstruction import evaluate_reconstruction
from tide.evaluation.statistics import auroc
from tide.interpretation.concepts import best_iou
from tide.interpretation.monosemanticity import Monosemanticity
from tide.sae.normalisation import Moments
from tide.training import learner


def batch(x: torch.Tensor) -> ActivationBatch:
    n = len(x)
    place = torch.arange(n, dtype=torch.int32)
    return ActivationBatch(x, torch.zeros(n), place, None, sample=place.long(), token=place)


def monosemanticity(x: torch.Tensor) -> torch.Tensor:
    found = Monosemanticity(4, 4)
    found.update(x, x)
    return found.scores()


def reconstruction(x: torch.Tensor) -> list[float]:
    found = evaluate_reconstruction(lambda b: (0.5 * b.x, None), [batch(x)])
    return [found[name] for name in ("mse", "cosine", "explained_variance")]


SUMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "PCA": lambda x: PCA.fit([batch(x)]).mean,
    "reconstruction": reconstruction,
    "auroc": lambda x: auroc(x, x > 0.3),
    "best_iou": lambda x: best_iou(x[:, 0], x[:, 1] > 0),
    "moments": lambda x: Moments.of([x]).variance,
    "monosemanticity": monosemanticity,
    "figures of a step": lambda x: learner._read({"loss": x.sum()})["loss"],
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_a_device_without_float64(name, monkeypatch):
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    expected = SUMS[name](x)
    has = devices.has_float64
    monkeypatch.setattr(devices, "has_float64", lambda device: False)
    found = SUMS[name](single(x))
    monkeypatch.setattr(devices, "has_float64", has)
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected))


def test_the_stand_in_has_no_float64():
    x = single(torch.ones(3))
    with pytest.raises(TypeError, match="float64"):
        x.double()
    assert isinstance(x + 1, Single)
    assert x.cpu().double().dtype == torch.float64
