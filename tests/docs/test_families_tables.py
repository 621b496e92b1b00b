"""The tables of model families are those of the specs."""

from __future__ import annotations

import json

import families_report
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
        assert page.count(f"| `{spec.family}` |") == 3  # of what is hooked, of modulations, of the last run
        assert spec.transformer in page
    for name in (*SUPPORTED, *REFUSED):
        assert f"{name}" in page
    readme = (ROOT / "README.md").read_text()
    assert all(spec.models in readme for spec in specs())


def test_models_are_named_for_every_family():
    assert all(spec.models for spec in specs())


def test_the_last_run_of_the_suite_has_every_family_and_no_failure():
    run = json.loads(families_report.RESULTS.read_text())
    assert run["families"].keys() == {spec.family for spec in specs()}
    assert not any(each["failed"] for each in run["families"].values())
    assert "with changes" not in run["commit"]


def test_outcomes_are_counted_by_family(tmp_path):
    (tmp_path / "report.xml").write_text(
        "<testsuites><testsuite>"
        '<testcase name="test_a[flux]" time="1.5"/><testcase name="test_b[flux-msa]" time="0.5"/>'
        '<testcase name="test_a[dit]" time="1"><skipped message="one image"/></testcase>'
        '<testcase name="test_b[dit]" time="1"><failure message="x"/></testcase><testcase name="test_of_none"/>'
        "</testsuite></testsuites>"
    )
    assert families_report.families_of(tmp_path / "report.xml") == {
        "dit": {"passed": 0, "failed": 1, "skipped": 1, "seconds": 2.0, "reasons": ["one image"]},
        "flux": {"passed": 2, "failed": 0, "skipped": 0, "seconds": 2.0, "reasons": []},
    }
