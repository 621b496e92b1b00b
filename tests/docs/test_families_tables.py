"""The tables of model families are those of the specs."""

from __future__ import annotations

import families_table
import pytest

from tests.helpers.pages import ROOT
from tide.adapters.pipelines import REFUSED, SUPPORTED
from tide.adapters.registry import specs


@pytest.mark.parametrize("page", families_table.PAGES)
def test_a_page_has_the_tables_of_the_specs(page):
    """After a change of a spec: scripts/families_table.py --write."""
    text = (ROOT / page).read_text()
    assert families_table.made(text) == text


def test_the_tables_name_every_family_and_every_pipeline():
    page = (ROOT / "docs" / "adapters.md").read_text()
    for spec in specs():
        assert page.count(f"| `{spec.family}` |") == 2
        assert spec.transformer in page
    for name in (*SUPPORTED, *REFUSED):
        assert f"{name}" in page
    readme = (ROOT / "README.md").read_text()
    assert all(spec.models in readme for spec in specs())


def test_models_are_named_for_every_family():
    assert all(spec.models for spec in specs())
