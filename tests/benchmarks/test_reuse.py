"""The benchmark of a live training's uses of each row, at toy sizes."""

from __future__ import annotations

import json

from benchmarks import reuse
from benchmarks.table import RESULTS
from tests.helpers.pages import ROOT


def test_runs_at_toy_sizes(tmp_path, capsys):
    out = tmp_path / "reuse.json"
    assert reuse.main(["--dry-run", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert {name: [row["block"] for row in rows] for name, rows in record["uses"].items()} == {"1": [6], "2": [6]}
    assert f"{record['PCA'][0]['explained_variance']:.2%}" in capsys.readouterr().out


def test_the_page_says_what_was_measured():
    record = json.loads((RESULTS / "reuse.json").read_text())
    assert reuse.table(record) in (ROOT / "docs/scale-live.md").read_text()
