"""Thumbnails on sheets, each where the page looks for it."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
from PIL import Image

from tide.index.layout import SHEET_SIDE, TILE
from tide.index.sheets import write_sheets


def colour(i: int) -> tuple[int, int, int]:
    return 40 * (i % 7), 25 * (i // 7 % 11), 15 * (i % 17)


@cache
def jpeg(i: int, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour(i)).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def check(folder, n: int, height: int, width: int) -> None:
    """Every pixel of a thumbnail's place, with nothing of its neighbours."""
    for i in range(n):
        number, place = divmod(i, SHEET_SIDE**2)
        sheet = np.asarray(Image.open(folder / f"{number}.jpg")).astype(int)
        y, x = place // SHEET_SIDE * height, place % SHEET_SIDE * width
        assert abs(sheet[y : y + height, x : x + width] - colour(i)).max() <= 8, i


@pytest.mark.parametrize(
    ("size", "tile"),
    [
        ((64, 64), (64, 64)),
        ((384, 384), (64, 64)),
        ((384, 216), (32, 64)),
        ((216, 384), (64, 32)),
        ((16, 16), (64, 64)),
        ((384, 9), (8, 64)),
        ((1, 384), (64, 8)),
    ],
)
def test_pictures_of_any_aspect_ratio(tmp_path, size, tile):
    """``size``: width and height; ``tile``: height and width, multiples of 8, which JPEG compresses by themselves."""
    found = write_sheets(tmp_path / "sheets", 18, lambda i: jpeg(i, size))
    assert found == tile
    with Image.open(tmp_path / "sheets" / "0.jpg") as sheet:
        assert sheet.size == (SHEET_SIDE * tile[1], 2 * tile[0])
    check(tmp_path / "sheets", 18, *tile)


@pytest.mark.parametrize(("n", "sheets"), [(1, 1), (256, 1), (257, 2), (530, 3)])
def test_sixteen_by_sixteen_on_a_sheet(tmp_path, n, sheets):
    assert write_sheets(tmp_path / "sheets", n, lambda i: jpeg(i, (16, 8))) == (TILE // 2, TILE)
    assert {path.name for path in (tmp_path / "sheets").iterdir()} == {f"{i}.jpg" for i in range(sheets)}
    check(tmp_path / "sheets", n, TILE // 2, TILE)


def test_a_picture_of_another_size_fills_its_place(tmp_path):
    sizes = [(64, 64), (32, 96)]
    assert write_sheets(tmp_path / "sheets", 2, lambda i: jpeg(i, sizes[i])) == (64, 64)
    check(tmp_path / "sheets", 2, 64, 64)


def test_sheets_that_were_there_are_gone(tmp_path):
    write_sheets(tmp_path / "sheets", 300, lambda i: jpeg(i, (8, 8)))
    write_sheets(tmp_path / "sheets", 3, lambda i: jpeg(i, (8, 8)))
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["0.jpg"]
