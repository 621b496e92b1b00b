"""A plan as text."""

from __future__ import annotations

import pytest

from tests.helpers.plans import machine, sizes
from tide.planning import plan, plan_text
from tide.planning.model import FORMULAS, SYMBOLS
from tide.planning.report import duration
from tide.training import TrainConfig


@pytest.fixture
def found():
    config = TrainConfig(activation="topk", n_latents=50, k=5, batch_tokens=100)
    return plan(sizes(), images=100, machine=machine(), config=config, blocks=["all"], gpus=2, memory=4 * 10**6)


def test_it_says_what_is_planned_and_what_each_way_takes(found):
    text = plan_text(found)
    assert "100 images through round: 64 tokens an image, width 8 (from a test)" in text
    assert "all 4 blocks: topk of 50 latents, k = 5, on 800 tokens a block in 8 steps of 100" in text
    assert "2 ranks of round" in text
    assert "from stores" in text.splitlines()[4]
    (total,) = (line.split() for line in text.splitlines() if line.startswith("total"))
    assert total[1] == duration(found.ways[0].total_seconds).split()[0]


def test_every_constant_is_measured_or_assumed(found):
    text = plan_text(found)
    assert "rate: 1e+09 FLOP/s (of the diffusion transformer); ASSUMED: the rate" in text
    assert "write: 1e+06 B/s (to disk, a rank); measured: the write" in text


def test_it_says_what_does_not_fit(found):
    last = plan_text(found).splitlines()[-2:]
    assert last[0].startswith("The fastest that fits is from stores: ")
    assert last[1].startswith("live, block parallel does not fit: a rank needs ")


def test_formulas_are_printed_on_demand(found):
    text = plan_text(found, formulas=True)
    assert all(formula in text for formula in FORMULAS.values())
    assert all(f"{letter} {meaning}" in text for letter, meaning in SYMBOLS.items())
    assert "Formulas" not in plan_text(found)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "0.0123 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (180_000, "2.08 days")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
