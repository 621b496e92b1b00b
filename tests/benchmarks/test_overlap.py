"""The figures of passes beside steps: ratios within a round, and what docs/scale-live.md says of them."""

from __future__ import annotations

import pytest
import torch

from benchmarks import overlap
from benchmarks.overlap import measure, page
from benchmarks.table import RESULTS
from tests.helpers.pages import ROOT
from tide.files import read_json
from tide.training import live_source
from tide.world import World


def test_a_ratio_is_of_one_round(monkeypatch):
    """A machine that is twice as slow in the second round changes none."""
    runs = iter([(10.0, 6.0), (7.0, 6.0), (20.0, 12.0), (15.0, 12.0), (10.0, 6.0), (8.0, 6.0)])
    beside = []

    def blocks(world, n_blocks, overlap):
        beside.append(live_source.overlaps(torch.device("cpu")))
        return dict(zip(("seconds", "learners"), next(runs), strict=True))

    monkeypatch.setattr(overlap, "blocks", blocks)
    monkeypatch.setattr(overlap, "on_ranks", lambda count, function, *arguments: function(World(), *arguments))
    figures = measure(3, 8, torch.get_num_threads())
    assert beside == [False, True] * 3
    assert figures["ratio"] == {"median": 0.75, "rounds": [0.7, 0.75, 0.8]}
    assert figures["seconds of a step"] == {"one after the other": 10.0, "beside each other": 8.0}
    assert figures["best possible ratio"] == pytest.approx(0.6)


def test_the_page_says_what_was_measured():
    (file,) = RESULTS.glob("overlap-*.json")
    text = (ROOT / "docs/scale-live.md").read_text()
    assert page(read_json(file)["figures"]) in text
    assert file.name in text
