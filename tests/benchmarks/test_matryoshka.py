"""The benchmark of nested dictionaries, at toy sizes."""

from __future__ import annotations

import json

from benchmarks import matryoshka


def test_runs_at_toy_sizes(tmp_path, capsys):
    out = tmp_path / "matryoshka.json"
    assert matryoshka.main(["--dry-run", "--out", str(out)]) == 0
    (seed,) = json.loads(out.read_text())["seeds"]
    assert {size: set(by) for size, by in seed["figures"].items()} == {
        "24": {"plain", "nested", "alone"},
        "48": {"plain", "nested", "alone"},
        "96": {"plain", "nested"},
    }
    printed = capsys.readouterr().out
    assert f"{seed['figures']['24']['nested']['explained_variance']:.1%}" in printed
