"""What the browser's bars are compared with, and that the page says what was measured."""

from __future__ import annotations

import pytest

from benchmarks.browse import BARS, SLACK, missed, page
from tests.helpers.pages import ROOT
from tide.files import read_json


def found(medians: dict[str, float]) -> dict:
    return {name: {"median": value, "rounds": [value]} for name, value in medians.items()}


@pytest.mark.parametrize(
    ("figures", "slack", "n"),
    [
        ({"frames a second": 50.0}, 1.0, 0),
        ({"frames a second": 49.9}, 1.0, 1),
        ({"frames a second": 50.0 / SLACK + 1}, SLACK, 0),
        ({"frames a second": 50.0 / SLACK - 1}, SLACK, 1),
        ({"first paint, s": 1.1}, 1.0, 1),
        ({"first paint, s": 1.1}, SLACK, 0),
        ({"durations of a step after a cancel": 1.2}, 1.0, 1),
        ({"durations of a step after a cancel": 1.2}, SLACK, 0),  # its steps are of 15 ms
        ({"axe violations": 1}, SLACK, 1),  # a count has no noise
        ({"memory of the server, MB": 501}, SLACK, 1),
        ({"durations of a step after a cancel": float("nan")}, SLACK, 1),  # it was never cancelled
        ({"index of 3072 latents and 512 images, s": float("nan")}, SLACK, 1),  # not measured is not met
    ],
)
def test_a_bar_is_missed(figures, slack, n):
    assert len(missed(found(figures), slack)) == n


def test_what_must_never_be_is_counted_by_its_worst_round():
    rounds = {"median": 0.0, "rounds": [0.0, 0.0, 250.0]}
    assert len(missed({"longest blank card, ms": rounds})) == 1
    assert missed({"text search, ms": rounds}) == []


def test_the_page_says_what_was_measured():
    (file,) = (ROOT / "benchmarks/results").glob("browse-*.json")
    figures = read_json(file)["figures"]
    assert figures.keys() == BARS.keys()
    text = (ROOT / "docs/browse.md").read_text()
    assert page(figures) in text
    assert file.name in text
