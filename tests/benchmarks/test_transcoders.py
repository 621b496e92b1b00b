"""The benchmark of transcoders, at toy sizes."""

from __future__ import annotations

import json

from benchmarks import transcoders
from tide.sae.config import TARGETS


def test_runs_at_toy_sizes(tmp_path, capsys):
    out = tmp_path / "transcoders.json"
    assert transcoders.main(["--dry-run", "--out", str(out)]) == 0
    modules = json.loads(out.read_text())["modules"]
    compared = {"affine map", "PCA of the output", *(f"transcoder, {start}" for start in transcoders.STARTS)}
    assert {name: set(figures) for name, figures in modules.items()} == dict.fromkeys(TARGETS, compared)
    assert f"{modules['attention']['affine map']['explained_variance']:.1%}" in capsys.readouterr().out
