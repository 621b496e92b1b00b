"""The orderings of the paper's Table 1, counted."""

from __future__ import annotations

import pytest

from tide.studies.orderings import HELD, PAPER, count_ahead, in_words, paper_orderings


def as_in_the_paper(seeds: int = 5) -> dict[str, dict[str, list[float]]]:
    return {name: {metric: [value] * seeds for metric, value in row.items()} for name, row in PAPER.items()}


def test_the_papers_own_numbers_hold_all_its_orderings():
    orderings = paper_orderings(as_in_the_paper())
    # Of 24 pairs three are ties: SAE(sample) and TIDE(sample) in training MSE, TIDE and TIDE(sample) in validation
    # MSE, SAE(sample) and TIDE in training cosine.
    assert len(orderings) == 21
    assert all(o.held and o.agree == o.seeds == 5 for o in orderings)
    assert in_words(orderings) == (
        "21 of the paper's 21 orderings hold (5 of 5 in training MSE, 5 of 5 in training cosine, "
        "5 of 5 in validation MSE, 6 of 6 in validation cosine)"
    )
    assert str(orderings[0]) == "training MSE: SAE(sample) < SAE holds (5 of 5)"


@pytest.mark.parametrize(("agree", "held"), [(5, True), (4, True), (3, False), (0, False)])
def test_an_ordering_holds_from_four_seeds_of_five(agree, held):
    assert HELD == 0.8
    figures = as_in_the_paper()
    figures["TIDE"]["val_mse"] = [0.1 if seed >= agree else 0.001 for seed in range(5)]
    found = {(o.metric, o.better, o.worse): o for o in paper_orderings(figures)}["val_mse", "TIDE", "SAE"]
    assert found.agree == agree
    assert found.held is held
    assert str(found).endswith(f"TIDE < SAE {'holds' if held else 'does not hold'} ({agree} of 5)")


def test_what_is_equal_is_not_ahead():
    assert count_ahead("val_mse", [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == 1
    assert count_ahead("val_cosine", [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == 1
