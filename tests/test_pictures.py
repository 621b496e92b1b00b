"""Pictures that are drawn: outlines, heat maps."""

from __future__ import annotations

import numpy as np

from tide.pictures import heat_overlay, outline_path


def test_the_outline_follows_the_pixel_edges():
    mask = np.zeros((4, 4), bool)
    mask[1:3, 0:2] = True
    assert outline_path(mask) == "M0 1H2M0 3H2M0 1V3M2 1V3"
    assert outline_path(np.zeros((4, 4), bool)) == ""
    ring = np.ones((3, 3), bool)
    full = outline_path(ring)
    ring[1, 1] = False
    assert outline_path(ring) == full


def test_heat_is_on_the_scale_given():
    grey, zero = np.full((2, 2, 3), 128, np.uint8), np.zeros((2, 2))
    cold = heat_overlay(grey, zero, 1.0)
    np.testing.assert_array_equal(cold, heat_overlay(grey, zero, 0.0))
    np.testing.assert_array_equal(cold, heat_overlay(grey, np.full((2, 2), np.nan), 1.0))
    assert np.ptp(cold.reshape(-1, 3), axis=1).max() == 0  # no colour where the latent is silent
    brightness = [heat_overlay(grey, np.full((2, 2), v), 2.0).astype(int).sum() for v in (0.5, 1.0, 2.0, 9.0)]
    assert brightness == sorted(brightness)
    assert brightness[2] == brightness[3]
