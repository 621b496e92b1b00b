"""Charts of a page: what cannot be drawn is left out, names and numbers are shown as they are."""

from __future__ import annotations

import base64
import math
import re

import pytest

from tide.charts import Series, bars_svg, line_svg


def svg(address: str) -> str:
    return base64.b64decode(address.partition(",")[2]).decode()


def texts(chart: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", chart)


def test_points_that_cannot_be_drawn_are_left_out():
    points = [(0.0, 1.0), (1.0, math.nan), (2.0, 0.0), (3.0, 0.1)]
    notes = ["first", "NaN", "not positive", "last"]
    chart = svg(line_svg([Series("a", "blue", points, notes=notes)], x_label="x", log_y=True))
    assert [text for text in texts(chart) if text in notes] == ["first", "last"]


@pytest.mark.parametrize("series", [[], [Series("a", "blue", [(0.0, 0.0)])], [Series("a", "blue", [])]])
def test_nothing_to_draw(series):
    assert line_svg(series, x_label="", log_y=True) == ""


def test_a_single_point_is_a_dot():
    one, two = (svg(line_svg([Series("a", "blue", [(5.0, 5.0)] * n)], x_label="step")).count("<use") for n in (1, 2))
    assert one > two


def test_names_are_written_as_they_are():
    name = "<b>$x_1$ & y"
    chart = svg(line_svg([Series(name, "blue", [(0.0, 1.0), (1.0, 2.0)])], x_label=name))
    assert texts(chart).count("&lt;b&gt;$x_1$ &amp; y") == 2


def test_shares_are_percentages():
    chart = svg(line_svg([Series("a", "blue", [(0.0, 0.5), (1.0, 1.0)])], x_label="", percent="xy", y_range=(0, 1)))
    assert {"20 %", "100 %"} <= set(texts(chart))


def test_a_wide_logarithmic_axis_has_powers_of_ten():
    chart = svg(line_svg([Series("a", "blue", [(0.0, 1e-5), (1.0, 1.0)])], x_label="", log_y=True))
    assert {"0.001", "0.1"} <= set(texts(chart))
    assert "0.002" not in texts(chart)


def test_bars_carry_their_values():
    chart = svg(bars_svg(["3D", "part"], [("latent", "blue", [0.91, math.nan])], base=0.5, top=1.0))
    assert "0.91" in texts(chart)
    assert {"3D", "part", "latent"} <= set(texts(chart))
    assert bars_svg([], [], base=0, top=1) == ""
    assert bars_svg(["3D"], [], base=0, top=1) == ""


def test_a_band_of_one_error_to_either_side():
    """In the ink of its line; an error that is not known leaves no width, and points that are not drawn have none."""
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, math.nan)]
    plain, band = (
        svg(line_svg([Series("a", "green", points, errors=errors)], x_label="block", whole_x=True))
        for errors in ((), (0.5, math.inf, 0.5))
    )
    assert "fill-opacity" not in plain
    assert "fill: var(--green); fill-opacity: 0.18" in band
    assert "nan" not in band


def test_ticks_at_whole_numbers():
    points = [(0.0, 1.0), (1.0, 2.0)]
    some, whole = (svg(line_svg([Series("a", "blue", points)], x_label="", whole_x=each)) for each in (False, True))
    assert ">0.4</text>" in some.split("matplotlib.axis_2")[0]
    assert ">0.4</text>" not in whole.split("matplotlib.axis_2")[0]
