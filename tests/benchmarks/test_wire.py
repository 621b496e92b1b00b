"""Measuring what processes exchange."""

import json

import pytest

from benchmarks import wire


def test_two_processes_exchange_tensors(tmp_path, capsys):
    out = tmp_path / "wire.json"
    assert wire.main(["--megabytes", "1", "--repetitions", "3", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())["figures"]
    sent = {name: each["bytes_per_second"] * each["seconds"] for name, each in figures.items()}
    assert sent == pytest.approx({"all_reduce": 10**6, "all_to_all": 10**6 / 2})
    assert "all_to_all" in capsys.readouterr().out
