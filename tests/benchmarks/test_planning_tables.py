"""The page on planning shows what the commands print."""

from __future__ import annotations

import json

import pytest

from benchmarks import planning_tables, simulate_collection
from benchmarks.environment import ROOT
from benchmarks.table import RESULTS
from tide.planning.model import FORMULAS

PAGE = (ROOT / "docs" / "scale-planning.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("title", ["1024 px", "512 px", "1024 px, 8 GPUs", planning_tables.WIDE])
def test_tables_of_plans(title):
    assert planning_tables.tables()[title] in PAGE


def test_formulas():
    assert all(f"| {what} | `{formula}` |" in PAGE for what, formula in FORMULAS.items())


def test_the_table_of_the_simulation():
    figures = json.loads((simulate_collection.OUT / "figures.json").read_text())
    assert simulate_collection.table(figures["cases"]) in PAGE
    assert (simulate_collection.OUT / "table.md").read_text().strip() in PAGE


def test_the_check_against_a_real_run():
    (record,) = RESULTS.glob("planning-check-*.json")
    off = json.loads(record.read_text())["planned / real"]
    for name, value in off.items():
        assert f"{name} {value:.2f}" in PAGE
