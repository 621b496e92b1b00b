"""Pictures in labelled rows."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFont

from tests.helpers.sheets import places
from tide import strips
from tide.strips import GAP, Row, labelled, shown, tiled

FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"
DEJAVU = str(FONTS / "DejaVuSans.ttf")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), (256, 256)),
        ((64, 32), (256, 128)),
        ((100, 100), (200, 200)),
        ((256, 256), (256, 256)),
        ((300, 300), (300, 300)),
        ((512, 512), (512, 512)),
        ((1024, 1024), (512, 512)),
        ((768, 1344), (256, 448)),
        ((1, 1), (256, 256)),
    ],
)
def test_pictures_are_scaled_by_whole_factors(size, expected):
    assert shown(noise(*size)).size == expected


def test_pixels_are_repeated_or_averaged():
    small, large = noise(64, 64), noise(1024, 1024)
    assert np.array_equal(np.asarray(shown(small))[::4, ::4], np.asarray(small))
    assert np.array_equal(np.asarray(shown(small))[3::4, 3::4], np.asarray(small))
    means = np.asarray(large, float).reshape(512, 2, 512, 2, 3).mean((1, 3))
    assert abs(np.asarray(shown(large)) - means).max() <= 1


def test_every_picture_stands_under_its_label():
    pictures = [noise(64, 64, seed) for seed in range(3)]
    plain = labelled([Row(pictures, ["", "", ""])])
    named = labelled([Row(pictures, ["", "strength 1, and more to say than fits above it", ""])])
    (x, y), _ = places(named, shown(pictures[1])), places(named, shown(pictures[2]))
    dark = np.argwhere(np.asarray(named.convert("L"))[:y] < 100)
    assert len(dark)
    assert dark[:, 1].min() >= x
    assert dark[:, 1].max() < x + 256
    assert plain.width == named.width == 3 * 256 + 6 * GAP
    top = places(plain, shown(pictures[0]))[1]
    assert (np.asarray(plain)[:top] == 255).all()
    assert top < y


def test_tiles_stand_under_the_names_of_their_columns():
    red, blue = (np.full((4, 8, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    picture = np.asarray(tiled(("a", "b"), [[red, blue], [blue, red]], ("first", "second"), "both"))
    is_red, is_blue = ((picture == tile[0, 0]).all(-1) for tile in (red, blue))
    assert is_red.sum() == is_blue.sum() == 2 * 256 * 128
    left, right = slice(0, 2 * GAP + 256), slice(2 * GAP + 256, None)
    for tile, columns in ((is_red, (left, right)), (is_blue, (right, left))):
        tops = [int(np.nonzero(tile[:, column].any(1))[0][0]) for column in columns]
        assert tops == sorted(tops)
        assert tops[1] - tops[0] > 128


def test_long_titles_are_wrapped_and_nothing_is_cut_off():
    one = labelled([Row([noise(64, 64)])], "a red house")
    long = labelled([Row([noise(64, 64)])], "a red house near a tree " * 6 + "x" * 200)
    assert long.width == one.width
    assert long.height > one.height + 100
    assert (np.asarray(long)[:, -GAP:] == 255).all()


def test_a_row_that_is_too_wide_is_broken():
    pictures = [noise(64, 64, seed) for seed in range(12)]
    sheet = labelled([Row(pictures, [str(i) for i in range(12)], "a red house")])
    assert sheet.width <= strips.WIDTH + 6 * GAP
    tops = {places(sheet, shown(each))[1] for each in pictures}
    assert len(tops) == 2


def test_text_of_any_kind_is_drawn():
    for text in ("", " ", "line\nbreak", "tab\there", "$x_1^{", "\x00\x1b[31m", "тёмный дом", "房子", "🏠", "x" * 5000):
        labelled([Row([noise(8, 8)], [text], text)], text)


def test_a_font_that_has_the_letters(monkeypatch):
    """DejaVu where it has them, then a font of the system that has, whatever else lies in its folders."""
    monkeypatch.setattr(strips, "_system_fonts", lambda: (str(FONTS), str(FONTS / "STIXGeneral.ttf"), __file__))
    strips._path_for.cache_clear()
    monkeypatch.setattr(strips, "_path_for", strips._path_for.__wrapped__)
    stix = strips._letters_of(str(FONTS / "STIXGeneral.ttf"))
    (letter, *_) = sorted(stix - strips._letters_of(DEJAVU))
    assert strips._font("тёмный дом, Ærø", 16).path == DEJAVU
    assert strips._font(f"a {chr(letter)}", 16).path == str(FONTS / "STIXGeneral.ttf")
    assert strips._font("房", 16).path == DEJAVU  # no font has it
    assert isinstance(strips._font("", 16), ImageFont.FreeTypeFont)
