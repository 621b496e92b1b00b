"""Arrays as bytes, and what the page makes of a few of them."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from tests.helpers.answers import unpacked
from tide.browser import wire
from tide.errors import TideError


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"none": np.zeros((0, 3), "i4")},
        {"odd": np.arange(5, dtype="u1"), "after": np.array([1.5, np.nan, np.inf], "f4")},
        {"turned": np.arange(6, dtype="i4").reshape(2, 3).T, "part": np.arange(20, dtype="f4")[::3]},
        {"big endian": np.array([1, -2], ">i4"), "é": np.array([[7]], "u1")},
    ],
    ids=lambda arrays: ", ".join(arrays) or "nothing",
)
def test_what_is_packed_is_unpacked(arrays):
    found = unpacked(wire.packed(arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape


def test_every_array_begins_at_a_multiple_of_four():
    """Or a typed array of the page could not be laid over it."""
    data = wire.packed({f"{'x' * i}": np.arange(i, dtype="u1") for i in range(1, 8)})
    (length,) = struct.unpack("<I", data[:4])
    assert len(data) % 4 == length % 4 == 0
    assert all(each["start"] % 4 == 0 for each in json.loads(data[4 : 4 + length]))


def test_kinds_that_the_page_cannot_read():
    with pytest.raises(KeyError):
        wire.packed({"x": np.zeros(2)})


@pytest.mark.parametrize("latents", [[96], [-1], [3, 2**40]])
def test_cards_of_latents_that_there_are_not(run, latents):
    with pytest.raises(TideError, match=f"latent {latents[-1]} does not exist; there are 0..95"):
        wire.cards(run.index, latents)


def test_no_cards(run):
    found = unpacked(wire.cards(run.index, []))
    assert found["maps"].shape == (0, 4, 8, 8)


def test_json_of_every_latent_is_json(run):
    """Without NaN, which no browser reads."""
    for latent in range(run.index.n_latents):
        json.dumps(wire.latent(run.index, latent), allow_nan=False)
