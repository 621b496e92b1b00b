"""Edits that swap a word of a caption, judged by the real pictures of both captions."""

from __future__ import annotations

import json
import sys

import draw_pictures
import pytest
import swap_words
import torch
from PIL import Image
from swap_words import Pair, judged, pairs_of

from tests.helpers.banks import small_bank
from tests.helpers.image_folders import list_captions, save
from tide.editing import save_bank
from tide.sae import TIDE, TIDEConfig

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
OBJECTS = ("house", "tree", "ball")


def test_pairs_differ_by_the_whole_word_and_their_targets_are_of_the_first_folder():
    captions = ["woman farmer", "a woman, dark", "man farmer", "a man, dark", "human farmer", "woman singer"]
    found = pairs_of(captions, 1, ("man", "woman"))
    assert found == [Pair("man farmer", "woman farmer", 2, 0)]
    assert len(pairs_of(captions, 2, ("man", "woman"))) == 2
    assert pairs_of(captions, 6, ("man", "woman")) == pairs_of(captions, 2, ("man", "woman"))  # no man is a singer


def test_an_image_reaches_the_target_where_it_is_nearer_to_it_than_to_the_source():
    gallery = torch.tensor([0, 200, 100], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    pair = Pair("a", "b", 0, 1)
    images = torch.tensor([180.0, 20.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2) / 127.5 - 1
    found = judged(images, gallery, [pair, pair])
    assert found["reached"]["share"] == 0.5
    assert found["nearness"] == pytest.approx(0.5)  # the target is nearest to one image, and farthest from the other


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of pictures for each colour, a TIDE and a bank."""
    path = tmp_path_factory.mktemp("folders")
    for name, colour in COLOURS.items():
        for thing in OBJECTS:
            save(path / name / f"{thing}.png", colour)
        list_captions(path / name, [{"file_name": f"{thing}.png", "text": f"{name} {thing}"} for thing in OBJECTS])
    model = TIDE(TIDEConfig(192, 96, 8, block=6, family="pixart", pipeline="scenes"), seed=0)
    model.save_pretrained(path / "tide")
    (path / "bank").mkdir()
    save_bank(path / "bank/bank.safetensors", small_bank(model))
    return path


def run(folders, out, swaps, monkeypatch):
    monkeypatch.setattr(draw_pictures, "STEPS", 2)
    given = {"sae": "tide", "bank": "bank/bank.safetensors", "data": "blue", "beside": "red"}
    options = [f"--{name}={folders / value}" for name, value in given.items()]
    argv = ["swap_words.py", "--pipeline=scenes", *options, f"--out={out}", "--swap", *swaps]
    monkeypatch.setattr(sys, "argv", argv)
    swap_words.main()


def test_every_edit_of_every_pair_is_drawn_and_judged(folders, tmp_path, monkeypatch):
    drawn = []

    def keep(images, gallery, pairs):
        drawn.append(images)
        return judged(images, gallery, pairs)

    monkeypatch.setattr(swap_words, "judged", keep)
    run(folders, tmp_path / "out", ["red=blue"], monkeypatch)
    swap = json.loads((tmp_path / "out/swaps.json").read_text())["swaps"]["red=blue"]
    assert swap["pairs"] == len(OBJECTS)
    assert [*swap["edits"]][:2] == ["drawn", "caption: activations"]
    assert len(drawn) == len(swap["edits"])
    assert all(not torch.equal(each, drawn[0]) for each in drawn[1:])  # every edit changes the picture
    assert len(swap["edits"]) == 5 + 3 * len(swap_words.STRENGTHS)
    assert Image.open(tmp_path / "out/swaps.png").width > len(swap["edits"]) * swap_words.SIDE / 2


@pytest.mark.parametrize(
    ("swap", "line"),
    [
        ("red=green", "no pair of captions differs by red=green"),
        ("blue=blue", "'blue=blue' is not WORD=WORD"),
    ],
)
def test_a_swap_that_cannot_be_measured_is_named(folders, tmp_path, swap, line, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(folders, tmp_path / "out", [swap], monkeypatch)
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
