"""Blocks by number and by name, without a transformer."""

import pytest

from tide.adapters.blocks import block_number, block_numbers
from tide.errors import TideError


def test_names_numbers_from_the_end_and_repeats():
    assert block_number("penultimate", 8) == 6
    assert block_numbers([7, -1, "penultimate", "all"], 8) == [7, 6, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("block", "n"), [(8, 8), (-9, 8), ("last", 8), ("penultimate", 1)])
def test_a_block_that_does_not_exist(block, n):
    with pytest.raises(TideError, match=rf"^block {block} does not exist; this transformer has blocks 0\.\.{n - 1}$"):
        block_number(block, n)
