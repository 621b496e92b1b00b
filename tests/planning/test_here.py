"""Measuring this machine, at sizes that take a few seconds."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import pytest

from tide.activations import CollectOptions
from tide.errors import TideError
from tide.planning import here, measure
from tide.planning.machines import CONSTANTS
from tide.training import TrainConfig

CONFIG = TrainConfig(n_latents=96, k=8, batch_tokens=64)


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(here, "_BUDGET", 0.1)
    monkeypatch.setattr(here, "_MOST_STEPS", 6)
    monkeypatch.setattr(here, "_WRITTEN", 2**20)


@pytest.mark.usefixtures("quick")
def test_every_constant_is_found_and_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = measure("scenes", CONFIG, CollectOptions(batch_size=2))
    assert {name.rpartition(".")[2] for name in found.constants} == set(CONSTANTS)
    assert (found.name, found.device, found.itemsize) == ("here", "cpu", 4)
    for name in ("pixel", "encode_rate", "rate", "jumprelu.dense", "jumprelu.match", "write"):
        assert found[name] > 0, name
        assert found.constants[name].measured, name
    assert not found.constants["wire_inside"].measured
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pipeline", ["PixArt-alpha/PixArt-XL-2-1024-MS", Path("nowhere"), None])
def test_a_pipeline_that_is_not_here_is_not_downloaded(pipeline):
    with pytest.raises(TideError, match=r"it is not in a folder here; give its folder, or another --machine"):
        measure(pipeline, CONFIG, CollectOptions())


def test_batches_are_timed_as_they_are_asked_for():
    drawn = []
    batches = here._timed(iter([1, 2, 3]), drawn)
    begin = time.perf_counter()
    assert list(islice(batches, 2)) == [1, 2]
    assert begin <= drawn[0] <= drawn[1] <= time.perf_counter()
    assert len(drawn) == 2
