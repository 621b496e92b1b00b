"""Drawings beside the real pictures of their captions, and how near they are."""

from __future__ import annotations

import json
import sys

import draw_pictures
import pytest
import torch
from named_pictures import Pictures
from PIL import Image

from tests.helpers.image_folders import list_captions, save
from tide.errors import TideError

COLOURS = {"red house": (220, 30, 30), "blue house": (30, 30, 220), "green tree": (30, 200, 30)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    for name, colour in COLOURS.items():
        save(path / f"{name}.png", colour)
    rows = [{"file_name": f"{name}.png", "text": name.title(), "kind": name.split()[1]} for name in COLOURS]
    list_captions(path, rows)
    return path


def test_nearness_is_the_share_of_the_other_pictures_that_are_farther():
    pictures = torch.tensor([0, 100, 200, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    grey = torch.full((1, 3, 2, 2), 110 / 127.5 - 1)  # nearest to the second, then the third, the first, the fourth
    near = [draw_pictures.nearness(grey, pictures, torch.tensor([i])).item() for i in range(4)]
    assert near == pytest.approx([1 / 3, 1, 2 / 3, 0])


def test_only_pictures_with_a_column_are_measured_and_no_more_than_asked(data):
    pictures = Pictures.read(data)
    assert draw_pictures.rows_of(pictures, ("kind", "house"), 9, 0) == [0, 1]
    assert len(draw_pictures.rows_of(pictures, None, 2, 0)) == 2
    with pytest.raises(TideError, match="no picture has kind = car"):
        draw_pictures.rows_of(pictures, ("kind", "car"), 9, 0)


def test_the_script_writes_the_sheet_and_the_figures(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(draw_pictures, "STEPS", 2)
    options = ["--pipeline", "scenes", "--data", str(data), "--out", str(tmp_path / "out"), "--beside", str(data)]
    monkeypatch.setattr(sys, "argv", ["draw_pictures.py", *options, "--captions", "red house", "green tree"])
    draw_pictures.main()
    figures = json.loads((tmp_path / "out/drawn.json").read_text())
    assert (figures["captions"], figures["pictures"]) == (3, 6)
    assert list(figures["of"]) == list(COLOURS)
    assert all(0 <= figures[name]["mean"] <= 1 for name in ("nearness", "of_another"))
    assert f"{figures['nearness']['mean']:.1%}" in capsys.readouterr().out
    assert Image.open(tmp_path / "out/drawn.png").width > 2 * draw_pictures.SIDE


def test_a_caption_that_no_picture_has_is_named(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(draw_pictures, "load_adapter", lambda _: None)
    options = ["--pipeline", "scenes", "--data", str(data), "--out", str(tmp_path / "out"), "--captions", "a cow"]
    monkeypatch.setattr(sys, "argv", ["draw_pictures.py", *options])
    with pytest.raises(SystemExit, match="2"):
        draw_pictures.main()
    assert "no picture has the caption 'a cow'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
