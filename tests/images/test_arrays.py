"""Images as numbers: uint8 is converted, floats are taken in [-1, 1] or refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from tide.errors import TideError, TideWarning
from tide.images.arrays import as_channels_first, from_array, signed

RAMP = np.arange(0, 240, 5, dtype=np.uint8).reshape(4, 4, 3)


@pytest.mark.parametrize(
    "given",
    [RAMP, RAMP.transpose(2, 0, 1), torch.from_numpy(RAMP), torch.from_numpy(RAMP).permute(2, 0, 1)],
    ids=["HWC", "CHW", "tensor HWC", "tensor CHW"],
)
def test_arrays_of_either_layout_are_the_same_picture(given):
    assert np.array_equal(np.asarray(from_array(given, "x")), RAMP)


@pytest.mark.parametrize(("shape", "mode"), [((4, 5), "L"), ((4, 5, 1), "L"), ((1, 4, 5), "L"), ((4, 5, 4), "RGBA")])
def test_arrays_of_greys_and_with_transparency(shape, mode):
    picture = from_array(np.zeros(shape, np.uint8), "x")
    assert (picture.mode, picture.size) == (mode, (5, 4))


@pytest.mark.parametrize("given", [np.zeros((4, 4, 3)), torch.zeros(3, 4, 4), np.zeros((4, 4, 3), np.int64)])
def test_numbers_whose_range_is_not_known_are_refused(given):
    with pytest.raises(TideError, match=r"^row 3 holds \w+ numbers, whose range is not known; give pictures of Pillow"):
        from_array(given, "row 3")


@pytest.mark.parametrize("shape", [(4,), (2, 4, 4, 3), (5, 4, 2), (0, 4, 3)])
def test_shapes_that_are_no_picture_are_refused(shape):
    with pytest.raises(TideError, match=r"x has the shape \[.*\]; give images as \[H, W, 3\]"):
        from_array(np.zeros(shape, np.uint8), "x")


def test_uint8_becomes_minus_one_to_one():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    torch.testing.assert_close(signed(images, "x"), torch.tensor([-1.0, -0.6, 1.0]).reshape(1, 3, 1, 1))


def test_floats_in_range_are_passed_on_as_they_are():
    images = torch.tensor([-1.0, 0.5, 1.004]).reshape(1, 3, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert signed(images, "x") is images
        assert signed(torch.ones(1, 3, 2, 2), "x").max() == 1  # white


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (
            torch.tensor([0.0, 255.0]),
            "the images have values from 0 to 255, and images are taken in [-1, 1]; give uint8",
        ),
        (torch.tensor([-2.5, 1.0]), "the images have values from -2.5 to 1, and"),
        (torch.tensor([0.0, float("nan")]), "the images have values from nan to nan"),
        (torch.tensor([0, 255]), "the images are int64; give uint8, or floats in [-1, 1]"),
    ],
)
def test_other_ranges_are_refused(images, said):
    with pytest.raises(TideError) as raised:
        signed(images.reshape(1, 1, 1, 2), "the images")
    assert str(raised.value).startswith(said)


def test_what_may_be_zero_to_one_is_said():
    with pytest.warns(TideWarning, match=r"x have values from 0\.1 to 0\.9 and are taken to be in \[-1, 1\]; if they"):
        signed(torch.tensor([0.1, 0.9]).reshape(1, 1, 1, 2), "x")


def test_channels_come_first():
    assert as_channels_first(torch.zeros(2, 5, 6, 3)).shape == (2, 3, 5, 6)
    assert as_channels_first(torch.zeros(2, 3, 5, 3)).shape == (2, 3, 5, 3)
    assert as_channels_first(torch.zeros(2, 4, 5, 6)).shape == (2, 4, 5, 6)
