"""Pictures that are drawn: outlines, heat maps."""

from __future__ import annotations

import numpy as np
import pytest

from tide.pictures import INK, VEIL, heat_key, heat_overlay, mask_overlay, outline_path


def test_the_outline_follows_the_pixel_edges():
    mask = np.zeros((4, 4), bool)
    mask[1:3, 0:2] = True
    assert outline_path(mask) == "M0 1H2M0 3H2M0 1V3M2 1V3"
    assert outline_path(np.zeros((4, 4), bool)) == ""
    ring = np.ones((3, 3), bool)
    full = outline_path(ring)
    ring[1, 1] = False
    assert outline_path(ring) == full


RED = np.full((8, 8, 3), (220, 30, 30), np.uint8)


def heat_of(value: float) -> np.ndarray:
    """Of one height everywhere, which no line surrounds."""
    return heat_overlay(RED, np.full((8, 8), value), 2.0)


def test_heat_shows_the_colours_of_the_image():
    """In full where it is strongest; less with less heat, and the same hue all the way."""
    np.testing.assert_array_equal(heat_of(2.0), RED)
    np.testing.assert_array_equal(heat_of(9.0), RED)
    saturation = [np.ptp(heat_of(v).astype(int)[0, 0]) for v in (0.0, 0.1, 0.5, 1.0, 2.0)]
    assert saturation == sorted(set(saturation))
    assert saturation[0] > 30
    assert heat_of(0.0)[0, 0].argmax() == 0


@pytest.mark.parametrize("value", [0, 255], ids=["black", "white"])
def test_silent_places_differ_from_strong_ones_on_every_ground(value):
    ground, zero = np.full((8, 8, 3), value, np.uint8), np.zeros((8, 8))
    silent, strong = (heat_overlay(ground, zero + v, 1.0).astype(int).mean() for v in (0.0, 1.0))
    assert abs(silent - strong) > 80


def test_no_heat_and_unknown_heat_are_silent():
    cold = heat_of(0.0)
    np.testing.assert_array_equal(cold, heat_overlay(RED, np.zeros((8, 8)), 0.0))
    np.testing.assert_array_equal(cold, heat_overlay(RED, np.full((8, 8), np.nan), 1.0))


def test_a_line_surrounds_the_strong_places():
    heat = np.zeros((8, 8))
    heat[2:5, 2:5] = 1.0
    drawn = heat_overlay(RED, heat, 1.0)
    line = (drawn == INK).all(-1)
    ring = np.zeros((8, 8), bool)
    ring[2:5, 2:5] = True
    ring[3, 3] = False
    np.testing.assert_array_equal(line, ring)
    assert (drawn[1, 2:5] == 0).all()
    heat[:] = 1.0
    assert not (heat_overlay(RED, heat, 1.0) == INK).all(-1).any()  # none along the frame


def test_a_mask_keeps_the_colours_of_its_cells_and_fades_the_others():
    """Each cell at its own place, in an image whose sides are no multiples of the grid's."""
    image, mask = np.full((24, 37, 3), (220, 30, 30), np.uint8), np.zeros((2, 3), bool)
    mask[1, 2] = True
    drawn = mask_overlay(image, mask)
    inside = (drawn == image).all(-1)
    assert inside[14:, 27:].all()  # within the line, up to the frame
    assert inside.sum() == inside[14:, 27:].sum()
    line = (drawn == INK).all(-1)
    assert line[12:14, 25:].all()
    assert line[12:, 25:27].all()
    assert line.sum() == 2 * 12 + 2 * 12 - 4
    assert (drawn[11, 25:] == 0).all()
    faded = drawn[0, 0].astype(int)
    assert 0 < np.ptp(faded) < 100
    assert abs(faded - VEIL).max() < abs(np.array([220, 30, 30]) - VEIL).max()


def test_masks_of_all_and_of_nothing_have_no_line():
    np.testing.assert_array_equal(mask_overlay(RED, np.ones((2, 2), bool)), RED)
    assert not (mask_overlay(RED, np.zeros((2, 2), bool)) == INK).all(-1).any()


def test_heat_of_a_few_cells_is_interpolated():
    image = np.zeros((4, 16, 3), np.uint8)
    drawn = heat_overlay(image, np.array([[0.0, 0.4]]), 1.0)[0, :, 0].astype(int)
    assert drawn[:4].tolist() == [96] * 4  # up to the centre of the first cell
    assert (np.diff(drawn[4:12]) < 0).all()


def test_the_key_ends_in_full_colour():
    assert heat_key().startswith("linear-gradient(90deg, rgb(128 128 128 / 0.75), rgb(128 128 128 / 0))")
