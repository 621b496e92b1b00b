"""Means, spreads and tables."""

from __future__ import annotations

import math

import pytest

from tide.tables import mean, spread, with_spread, write_csv


def test_mean_and_spread():
    assert (mean([1.0, 3.0]), spread([1.0, 3.0])) == (2.0, pytest.approx(math.sqrt(2)))
    assert spread([5.0]) == 0.0
    assert math.isnan(mean([]))
    assert with_spread([1.0, 3.0], 1) == "2.0 ± 1.4"


def test_csv(tmp_path):
    write_csv(tmp_path / "t.csv", [{"model": "a, b", "value": 1.5}, {"model": "c", "value": None}])
    assert (tmp_path / "t.csv").read_text() == 'model,value\n"a, b",1.5\nc,\n'
