"""A mistyped folder never becomes a request: where folders are asked for, a name is one."""

from __future__ import annotations

import pytest

import tide
from tide.errors import TideError


def test_loading_beside_a_pipeline_asks_nobody(hub, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TideError, match="run/tide"):
        tide.load_sae("run/tide", adapter)
    assert hub.asked == []


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--data", "scenes", "--sae"],
        ["concepts", "--concepts", "near", "--data", "scenes", "--sae"],
        ["atlas", "--data", "scenes", "--sae"],
        ["edit", "--prompt", "near", "--erase", "1", "--sae"],
        ["trajectory", "--prompt", "near", "--sae"],
        ["effect", "--prompt", "near", "--towards", "far", "--sae"],
        ["sweep", "--data", "scenes", "--sae"],
        ["bank", "--concepts", "near", "--data", "scenes", "--sae"],
        ["guard", "make", "--concept", "house", "--put", "tree", "--sae"],
        ["reproduce", "bars", "--sae"],
        ["convert", "--to", "saelens"],
    ],
    ids=lambda words: words[0],
)
def test_commands_ask_nobody(hub, tmp_path, monkeypatch, words, capsys):
    from tide.cli.app import main

    monkeypatch.chdir(tmp_path)
    assert main([*words, "run/tide", "--out", "out"]) == 2
    assert "run/tide" in capsys.readouterr().err
    assert hub.asked == []
