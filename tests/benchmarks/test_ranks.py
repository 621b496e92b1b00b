"""The figures of ranks: what travels in a step, and ratios within a round."""

from __future__ import annotations

import pytest

from benchmarks.ranks import MEASURES, bytes_a_step, page, ratios
from benchmarks.table import RESULTS
from tests.helpers.pages import ROOT
from tide.files import read_json


def test_the_bytes_of_docs_scale():
    """28 blocks of PixArt-XL on 8 ranks: 116 MB of tokens, or 297 MB of one block's gradients."""
    found = bytes_a_step(1152, 18432, 28, 16384, 8)
    assert found["tokens of all blocks"] == 28 * 16384 * 2 * 1152 * 7 / 8 / 8
    assert round(found["tokens of all blocks"] / 1e6) == 116
    assert round(found["gradients of one block"] / 1e6) == 297


def test_one_rank_sends_nothing():
    assert set(bytes_a_step(8, 16, 2, 64, 1).values()) == {0}


def test_a_ratio_is_of_one_round():
    """A machine that is twice as slow in the second round changes no ratio."""
    rounds = iter([(10.0, 18.0), (5.0, 9.5), (10.0, 17.0)])
    found = ratios(3, lambda: next(rounds))
    assert found["median"] == pytest.approx(1.8)
    assert found["rounds"] == pytest.approx([1.7, 1.8, 1.9])


def test_the_page_says_what_was_measured():
    (file,) = RESULTS.glob("ranks-*.json")
    figures = read_json(file)["figures"]
    assert figures.keys() == MEASURES.keys()
    assert page(figures) in (ROOT / "docs/scale.md").read_text()
    assert file.name in (ROOT / "docs/scale.md").read_text()
