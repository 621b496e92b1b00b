"""The bars for a CPU, at toy sizes."""

from __future__ import annotations

import json

from benchmarks import cpu_bars


def test_cpu_bars_run_at_toy_sizes(tmp_path, capsys):
    out = tmp_path / "cpu.json"
    assert cpu_bars.main(["--dry-run", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert set(cpu_bars.KINDS) == {name.split()[0] for name in record["figures"]}
    printed = capsys.readouterr().out
    assert all(bar["what"] in printed for bar in record["bars"])
