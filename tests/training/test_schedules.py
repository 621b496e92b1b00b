"""Learning rate and k over the steps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from tide.training.config import ProgressiveK
from tide.training.schedules import cosine_lr, progressive_k


def test_cosine_with_warm_up():
    rates = [cosine_lr(step, 101, 0.5, warmup=0.1, final=0.02) for step in range(101)]
    assert rates[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    assert rates[9] == rates[10] == 0.5  # warm-up ends at the peak, where the cosine starts
    assert rates[55] == pytest.approx(0.5 * (0.02 + 0.98 / 2))  # half way
    assert rates[100] == pytest.approx(0.01)
    assert all(a > b for a, b in pairwise(rates[10:]))
    for step in range(10, 101):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 10) / 90))
        assert rates[step] == pytest.approx(0.5 * (0.02 + 0.98 * cosine))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_short_runs_have_a_rate(steps, warmup):
    rates = [cosine_lr(step, steps, 1.0, warmup, 0.1) for step in range(steps)]
    assert all(0.1 <= rate <= 1.0 for rate in rates)


@pytest.mark.parametrize(
    ("shape", "half_way"), [("linear", 50), ("cosine", 50), ("exponential", 40)], ids=["80+20/2", "same", "sqrt(80*20)"]
)
def test_k_falls_to_k(shape, half_way):
    config = ProgressiveK(start=4.0, length=0.2, shape=shape)
    ks = [progressive_k(step, 1000, 20, 400, config) for step in range(1000)]
    assert ks[0] == 80
    assert ks[100] == half_way
    assert ks[200:] == [20] * 800
    assert all(a >= b for a, b in pairwise(ks))
    assert all(isinstance(k, int) for k in ks)


def test_k_never_exceeds_n():
    assert progressive_k(0, 100, 20, 30, ProgressiveK(start=4.0)) == 30
    assert progressive_k(0, 100, 30, 30, ProgressiveK(start=4.0)) == 30


@pytest.mark.parametrize("config", [ProgressiveK(shape="off"), ProgressiveK(length=0.0), ProgressiveK(start=1.0)])
def test_k_stays(config):
    assert {progressive_k(step, 50, 7, 100, config) for step in range(50)} == {7}
