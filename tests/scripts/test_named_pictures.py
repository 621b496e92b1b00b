"""A folder of named pictures in memory."""

from __future__ import annotations

import pytest
import torch
from named_pictures import SIZE, Pictures, captions_of, words_of

from tests.helpers.image_folders import list_captions, save
from tide.errors import TideError


def folder(path, *rows, colour=(255, 0, 0)):
    for row in rows:
        save(path / row["file_name"], colour, (40, 40))
    list_captions(path, rows)
    return path


def test_pictures_are_resized_and_weighed(tmp_path):
    found = Pictures.read(folder(tmp_path, {"file_name": "a.png", "text": "A red square"}, colour=(255, 0, 0)))
    assert found.images.shape == (1, 3, SIZE, SIZE)
    assert torch.equal(found.image(0)[:, 9, 9], torch.tensor([1.0, -1.0, -1.0]))
    assert found.weights.tolist() == [1]


def test_captions_are_lower_case_and_the_usual_one_is_first():
    row = {"file_name": "a.png", "text": "A Cat", "texts": ["Pet", "animal"]}
    assert captions_of(row) == ["a cat", "pet", "animal"]


def test_words_by_frequency_and_the_longest_caption_with_its_end_mark():
    rows = [{"file_name": "a", "text": "red cat, small"}, {"file_name": "b", "text": "cat", "texts": ["Cat"]}]
    assert words_of(rows) == (["cat", ",", "red", "small"], 5)


@pytest.mark.parametrize("flip", [True, False])
def test_only_pictures_whose_mirror_image_fits_are_mirrored(tmp_path, flip):
    found = Pictures.read(folder(tmp_path, {"file_name": "a.png", "text": "left", "flip": flip}))
    found.images[0, :, :, : SIZE // 2] = 0  # dark on the left
    source = torch.Generator().manual_seed(0)
    moved = [found.moved(0, source) for _ in range(20)]
    mirrored = [bool(each[0, 20:44, : SIZE // 2].mean() > each[0, 20:44, SIZE // 2 :].mean()) for each in moved]
    assert any(mirrored) == flip
    assert not all(mirrored)


def test_a_moved_picture_keeps_its_background(tmp_path):
    found = Pictures.read(folder(tmp_path, {"file_name": "a.png", "text": "dot"}, colour=(255, 255, 255)))
    found.images[0, :, 30:34, 30:34] = 0
    moved = torch.stack([found.moved(0, torch.Generator().manual_seed(seed)) for seed in range(8)])
    torch.testing.assert_close(moved[:, :, :, [0, -1]], torch.ones(8, 3, SIZE, 2))
    assert moved.amin() < -0.5  # the dot is still there
    assert len({tuple(each[0].flatten().tolist()) for each in moved}) == 8


def test_some_pictures_at_even_distances(tmp_path):
    found = Pictures.read(folder(tmp_path, *({"file_name": f"{i}.png", "text": "x"} for i in range(5))))
    assert len(found.some(2)) == 2
    assert len(found.some(9)) == 5


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"file_name": "a.png"}, "line 1 has no text; add what is missing"),
        ({"file_name": "a.png", "text": "a", "weight": "often"}, "line 1 has a weight of another kind"),
        ({"file_name": "a.png", "text": "a", "texts": "b"}, "line 1 has a texts of another kind"),
        ({"file_name": "a.png", "text": "a", "texts": ["b", 3]}, "line 1 has a texts of another kind"),
        ({"file_name": "a.png", "text": "a", "weight": -1}, "line 1: weight is -1; give a number from 0 to"),
        ({"file_name": "a.png", "text": "a", "weight": float("nan")}, "line 1: weight is nan; give a number from 0 to"),
        ({"file_name": "a.png", "text": "a", "weight": 0}, "gives every picture the weight 0; leave the weights out"),
    ],
)
def test_faulty_lines_are_named(tmp_path, row, said):
    with pytest.raises(TideError, match=said):
        Pictures.read(folder(tmp_path, row))


def test_an_empty_list(tmp_path):
    with pytest.raises(TideError, match="lists no pictures"):
        Pictures.read(folder(tmp_path))
