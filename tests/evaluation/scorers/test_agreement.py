"""Whether attributes are read as before."""

from __future__ import annotations

import pytest

from tests.helpers.scored_sets import Read
from tide.evaluation.scorers.agreement import agreement

RED, BLUE = Read({"colour": "red", "age": "old"}), Read({"colour": "blue", "age": "old"})
WRECK, NEW_RED = Read({"colour": "red", "age": "old"}, valid=False), Read({"colour": "red", "age": "new"})


def test_shares_of_each_attribute_and_of_all():
    found = agreement([RED, RED, RED, RED], [RED, BLUE, NEW_RED, BLUE], 4)
    assert found["by_attribute"] == {"colour": 0.5, "age": 0.75}
    assert (found["agree"]["mean"], found["agree"]["images"]) == (0.625, 4)
    assert found["invalid"] == {"before": 0, "after": 0}


def test_a_wreck_agrees_in_nothing_and_shows_nothing_to_agree_with():
    found = agreement([RED, WRECK, RED], [WRECK, RED, RED], 3)
    assert found["by_attribute"] == {"colour": 0.5, "age": 0.5}
    assert found["agree"]["images"] == 2
    assert found["invalid"] == {"before": pytest.approx(1 / 3), "after": pytest.approx(1 / 3)}


def test_only_the_first_are_pairs():
    assert agreement([RED, BLUE], [RED, RED, RED], 1)["agree"]["mean"] == 1
    found = agreement([WRECK], [RED, WRECK], 0)
    assert (found["agree"], found["by_attribute"]) == (None, None)
    assert found["invalid"] == {"before": 1, "after": 0.5}
    assert agreement([WRECK], [RED], 1)["agree"] is None
