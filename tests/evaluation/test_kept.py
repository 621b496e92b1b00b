"""Figures that are kept: read back as they were, refused if they were made otherwise."""

from __future__ import annotations

import pytest

from tide.errors import TideError
from tide.evaluation.kept import Kept


def test_figures_are_read_back(tmp_path):
    kept = Kept(tmp_path / "new", {"seed": 1, "sizes": (1, 2)})
    assert kept.read("block-3") is None
    kept.write("block-3", {"cosine": 0.5, "unknown": None}, weights="a")
    assert kept.read("block-3", weights="a") == {"cosine": 0.5, "unknown": None}


def test_figures_of_other_options(tmp_path):
    Kept(tmp_path, {"seed": 1}).write("block-3", {}, weights="a")
    remedy = "; use the same options, or another folder$"
    with pytest.raises(TideError, match=rf"block-3.json was made with other options \(seed 1, now 2\){remedy}"):
        Kept(tmp_path, {"seed": 2}).read("block-3", weights="a")
    with pytest.raises(TideError, match=rf'\(weights "a", now "b"\){remedy}'):
        Kept(tmp_path, {"seed": 1}).read("block-3", weights="b")


def test_a_damaged_file(tmp_path):
    kept = Kept(tmp_path, {})
    kept.write("block-3", {"cosine": 0.5})
    path = tmp_path / "block-3.json"
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(
        TideError, match=r"block-3.json does not agree with its checksum; delete it to measure it again"
    ):
        kept.read("block-3")


def test_without_a_folder_nothing_is_kept():
    kept = Kept(None, {})
    kept.write("block-3", {})
    assert kept.read("block-3") is None
