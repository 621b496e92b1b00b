"""The ranges beside a training's figures are those of the committed files."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.trainings import model
from tide.sae import TIDE, TIDEConfig
from tide.training import LossConfig, TrainConfig
from tide.training.known import KNOWN, Range, known_of

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
#: (activation, modulation) -> the name of its cells.
CELLS = {
    ("jumprelu", True): "TIDE-JumpReLU", ("jumprelu", False): "JumpReLU", ("batch_topk", True): "TIDE-BatchTopK",
    ("batch_topk", False): "BatchTopK", ("topk", True): "TIDE-TopK", ("topk", False): "TopK",
}  # fmt: skip
FIGURES = {"explained_variance": 5e-5, "l0": 0.06, "dead": 6e-4}  # with what they are rounded by


def of_cells(name: str) -> list[dict[str, float]]:
    with tarfile.open(RESULTS / "sparsity/cells.tgz") as cells:
        files = [cells.extractfile(f"cells/{name}-64-seed-{seed}.json") for seed in range(3)]
        return [json.load(file)["result"]["held_out"] for file in files if file is not None]


def of_reuse() -> list[dict[str, float]]:
    return [row for rows in json.loads((RESULTS / "reuse.json").read_text())["uses"].values() for row in rows]


def assert_range(known: Range, values: Iterable[float], rounding: float) -> None:
    values = list(values)
    assert known.low == pytest.approx(min(values), abs=rounding)
    assert known.high == pytest.approx(max(values), abs=rounding)


@pytest.mark.parametrize("kind", KNOWN, ids=str)
def test_ranges_of_held_out_tokens(kind):
    rows = of_cells(CELLS[kind])
    assert len(rows) == 3
    if kind == ("jumprelu", True):
        rows += of_reuse()
    for figure, rounding in FIGURES.items():
        assert_range(getattr(KNOWN[kind], figure), (row[figure] for row in rows), rounding)


def test_the_fall_is_that_of_a_committed_training():
    found = json.loads((RESULTS / "training-screen.json").read_text())["blocks"].values()
    assert_range(KNOWN["jumprelu", True].fall, (block["fall"] for block in found), 5e-4)
    assert all(each.fall is None for kind, each in KNOWN.items() if kind != ("jumprelu", True))


WIDE = TIDE(TIDEConfig(d_model=8, n_latents=128, k=64, activation="jumprelu"))


def test_a_training_is_compared_with_those_of_its_kind_alone():
    default = TrainConfig()
    assert known_of(WIDE, default) is KNOWN["jumprelu", True]
    assert known_of(WIDE, replace(default, modulation=False, steps=9, seed=3)) is KNOWN["jumprelu", False]
    for other in (
        replace(default, k=32),
        replace(default, n_latents=64),
        replace(default, lr=1e-3),
        replace(default, centre=True),
        replace(default, loss=LossConfig(temporal=1e-2)),
        replace(default, activation="relu"),
    ):
        assert known_of(WIDE, other) is None
    assert known_of(model(target="attention", tensor="attention_input"), default) is None
