"""Masks over pixels and over tokens."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tests.helpers import families
from tide.adapters import adapter_for
from tide.adapters.sizes import image_grid, image_size
from tide.editing import image_mask, read_mask, token_mask
from tide.errors import TideError


@pytest.mark.parametrize(("covered", "expected"), [(7, False), (8, False), (9, True)], ids=["less", "half", "more"])
def test_a_token_belongs_by_more_than_half_of_its_area(covered, expected):
    pixels = torch.zeros(8, 8, dtype=torch.bool)
    cell = torch.zeros(16, dtype=torch.bool)  # the token in the second row, first column
    cell[:covered] = True
    pixels[4:, :4] = cell.view(4, 4)
    assert token_mask(pixels, (2, 2)).tolist() == [False, False, expected, False]


def test_tokens_are_in_row_major_order():
    pixels = torch.zeros(2, 4, 12, dtype=torch.bool)
    pixels[0, :2, 4:8] = True
    pixels[1, 2:, 8:] = True
    masks = token_mask(pixels, (2, 3))
    assert masks.dtype == torch.bool
    assert masks.nonzero().tolist() == [[0, 1], [1, 5]]


def test_sizes_that_do_not_divide():
    with pytest.raises(TideError, match=r"^a mask of 10 x 8 pixels does not divide into 4 x 4 tokens; resize it$"):
        token_mask(torch.zeros(10, 8, dtype=torch.bool), (4, 4))


def test_image_mask_enlarges_a_token_map():
    tokens = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    found = image_mask(tokens, (2, 2), (4, 8))
    assert found.shape == (1, 4, 8)
    assert torch.equal(found[0, :, 0], torch.zeros(4))
    assert torch.equal(found[0, :, -1], torch.ones(4))
    assert (found.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(image_mask(torch.full((4,), 3.0), (2, 2), (6, 6)), torch.full((6, 6), 3.0))


def test_there_and_back():
    mask = torch.rand(5, 64, generator=torch.Generator().manual_seed(0)) > 0.5
    pixels = mask.view(5, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(token_mask(pixels, (8, 8)), mask)


def test_a_picture(alpha, tmp_path):
    """Bright where it is above mid-grey; what is transparent is dark."""
    path = tmp_path / "mask.png"
    picture = Image.new("LA", (64, 64), (127, 255))
    picture.paste((128, 255), (0, 0, 64, 16))
    picture.paste((255, 0), (0, 48, 64, 64))
    picture.save(path)
    assert read_mask(str(path), adapter_for(alpha)).nonzero().flatten().tolist() == list(range(16))


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
@pytest.mark.parametrize("moves", [True, False])
def test_of_a_clip_frame_by_frame(tmp_path, suffix, moves):
    """A mask that moves has the clip's frames, and a picture holds for all of them; what is transparent is dark."""
    own = families.adapter("latte")
    n, height, width = image_size(own)
    f, h, w = image_grid(own, (n, height, width))
    pictures = []
    for i in range(n if moves else 1):
        picture = Image.new("RGBA", (width, height), (255, 255, 255, 0))
        left = width // w * (i % w)
        picture.paste((255, 255, 255, 255), (left, 0, left + width // w, height))
        pictures.append(picture)
    path = tmp_path / f"mask{suffix}"
    pictures[0].save(path, save_all=moves, append_images=pictures[1:], lossless=True, duration=100, disposal=2)
    columns = read_mask(path, own).view(f, h, w)
    for i in range(f):
        assert columns[i].any(0).nonzero().flatten().tolist() == [i % w if moves else 0]


def test_pictures_that_are_no_mask(alpha, tmp_path):
    path = tmp_path / "mask.png"
    Image.new("L", (64, 64), 127).save(path)
    with pytest.raises(TideError, match="covers no token by more than half; make the mask larger or brighter"):
        read_mask(path, adapter_for(alpha))
    with pytest.raises(TideError, match="is 64 x 64 pixels and the image 64 x 128; make the mask of the image's size"):
        read_mask(path, adapter_for(alpha), (64, 128))
