"""Whether two descriptions are of the same thing, and where they first differ."""

from __future__ import annotations

import pytest

from tide.errors import TideError
from tide.provenance import check_unchanged, first_difference


@pytest.mark.parametrize(
    ("before", "now", "defaults", "difference"),
    [
        pytest.param({"lr": 0.1}, {"lr": 0.1}, None, None, id="equal"),
        pytest.param({"lr": 0.1}, {"lr": 0.2}, None, "lr 0.1, now 0.2", id="an option"),
        pytest.param({"loss": {"mse": 1.0}}, {"loss": {"mse": 2.0}}, None, "loss.mse 1.0, now 2.0", id="inside"),
        pytest.param({}, {"undo": False}, {"undo": False}, None, id="missing, and its default"),
        pytest.param({}, {"undo": True}, {"undo": False}, "undo false, now true", id="missing, and not its default"),
        pytest.param({"loss": {}}, {"loss": {"k": 3}}, {"loss": {"k": 3}}, None, id="missing inside, and its default"),
        pytest.param({}, {"loss": {"k": 4}}, {"loss": {"k": 3}}, "loss.k 3, now 4", id="a missing group"),
        pytest.param({"new": 1}, {}, {}, "new 1, now null", id="an option of a newer version"),
        pytest.param({"new": 1}, {}, {"new": 1}, None, id="left out now, and its default"),
        pytest.param({"betas": [0.9, 0.99]}, {"betas": (0.9, 0.99)}, None, None, id="a tuple and a list"),
        pytest.param({"betas": [0.9, 0.99]}, {"betas": [0.9, 0.9]}, None, "betas[1] 0.99, now 0.9", id="in a list"),
        pytest.param(
            {"stores": [{"rows": 1}]},
            {"stores": [{"rows": 2}]},
            None,
            "stores[0].rows 1, now 2",
            id="in a list of groups",
        ),
        pytest.param({"a": [1]}, {"a": [1, 2]}, None, "a [1], now [1, 2]", id="lists of other lengths"),
        pytest.param({"a": 1}, {"a": True}, None, "a 1, now true", id="a number is no truth value"),
        pytest.param({"a": 1}, {"a": 1.0}, None, None, id="the same number"),
        pytest.param({"loss": 3}, {"loss": {"k": 3}}, {"loss": {"k": 3}}, 'loss 3, now {"k": 3}', id="no group"),
    ],
)
def test_first_difference(before, now, defaults, difference):
    found = first_difference(before, now, defaults)
    assert (None if found is None else str(found)) == difference


def test_long_values_are_shortened():
    assert str(first_difference({"a": "x" * 99}, {"a": 1})) == f'a "{"x" * 56}..., now 1'


def test_a_change_is_refused_in_one_line():
    check_unchanged({"lr": 1}, {}, "runs/a was made with other options", remedy="use the same", defaults={"lr": 1})
    with pytest.raises(TideError, match=r"^runs/a was made with other options \(lr 1, now 2\); use the same$"):
        check_unchanged({"lr": 1}, {"lr": 2}, "runs/a was made with other options", remedy="use the same")
