"""The values of options: how they are written, and their limits."""

from __future__ import annotations

import pytest

from tide.cli import values
from tide.errors import TideError


def test_how_values_are_written():
    assert values.size("64") == (64, 64)
    assert values.size("768x1024") == (768, 1024)
    assert values.n_bytes("50GB") == 50 * 10**9
    assert values.n_bytes("1.5 kb") == 1500
    assert values.fraction("1/16") == 0.0625 == values.fraction("0.0625")
    assert values.block("-2") == -2
    assert values.block("penultimate") == "penultimate"
    assert values.scaling("12,40=3.0") == ((12, 40), 3.0)
    assert values.words("House, tree,house") == ("house", "tree")


@pytest.mark.parametrize(
    ("convert", "text"),
    [
        (values.fraction, "1e400"),
        (values.fraction, "nan"),
        (values.fraction, "1/nan"),
        (values.fraction, "1e308/1e-308"),
        (values.n_bytes, "9" * 400 + "GB"),
        (values.n_bytes, "infGB"),
        (values.size, "65537"),
        (values.seed, str(10**30)),
        (values.positive, str(10**12)),
        (values.prompts, str(10**9)),
        (values.seeds, str(10**9)),
        (values.threads, "100000"),
        (values.scaling, "1=1e308"),
        (values.finite, "1e39"),
        (values.words, "../x"),
        (values.words, "x" * 200),
    ],
)
def test_numbers_beyond_what_anything_takes(convert, text):
    with pytest.raises(TideError):
        convert(text)


def test_the_largest_values():
    assert values.seed("4294967295") == 2**32 - 1
    assert values.positive("2147483647") == 2**31 - 1
    assert values.n_bytes("1000000 TB") == 10**18
    assert values.finite("-3e38") == -3e38


def test_more_digits_of_a_fraction_than_a_float_tells_apart():
    assert values.fraction("1/3") == 1 / 3
    assert values.fraction("0.1") == 0.1
