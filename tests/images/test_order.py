"""The order of images and what is held out depend on names and seed as promised."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest

from tide.errors import TideError
from tide.images.order import continuing, held_out, is_held_out, seeded

CLASSES = [f"{name}/{i:03d}.png" for name in ("eight", "one", "seven") for i in range(200)]


def named(names, numbers) -> list[str]:
    return [names[i] for i in numbers]


def test_the_order_is_a_permutation_that_depends_on_the_seed_alone():
    first = seeded(CLASSES, 0)
    assert sorted(first) == list(range(600))
    assert first == seeded(CLASSES, 0) != seeded(CLASSES, 1)


def test_a_prefix_is_a_fair_sample_of_sorted_classes():
    """The first 60 of 600 sorted names would be of one class."""
    counts = Counter(name.split("/")[0] for name in named(CLASSES, seeded(CLASSES, 0)[:60]))
    assert all(10 <= counts[name] <= 30 for name in ("eight", "one", "seven"))


def test_names_that_are_added_leave_the_others_in_their_order():
    before = named(CLASSES, seeded(CLASSES, 3))
    more = ["new/a.png", *CLASSES, "zz.png"]
    assert [name for name in named(more, seeded(more, 3)) if name in set(CLASSES)] == before


def test_the_order_does_not_depend_on_how_accents_are_composed():
    names = [f"Häuschen {i}.png" for i in range(30)]
    other = [unicodedata.normalize("NFD", name) for name in names]
    assert seeded(names, 0) == seeded(other, 0)
    assert held_out(names, 0.3) == held_out(other, 0.3)


def test_a_share_is_held_out_and_stays_when_names_are_added():
    chosen = held_out(CLASSES, 0.1)
    assert 40 <= len(chosen) <= 80
    more = [*CLASSES, *(f"nine/{i:03d}.png" for i in range(200))]
    assert {i for i in held_out(more, 0.1) if i < 600} == chosen
    assert chosen < held_out(CLASSES, 0.2)
    assert chosen == {i for i, name in enumerate(CLASSES) if is_held_out(name, 0.1)}


@pytest.mark.parametrize("n", range(2, 12))
@pytest.mark.parametrize("share", [1e-9, 0.1, 0.5, 0.999999])
def test_of_two_or_more_one_is_held_out_and_one_is_not(n, share):
    assert 1 <= len(held_out(CLASSES[:n], share)) <= n - 1


def test_nothing_is_held_out_of_one_image_or_with_a_share_of_none():
    assert held_out(CLASSES[:1], 0.9) == held_out(CLASSES, 0.0) == set()


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, float("nan")])
def test_other_shares_are_refused(share):
    with pytest.raises(TideError, match=r"hold_out .* is not in \[0, 1\); give the share to reserve, such as 0\.1"):
        held_out(CLASSES, share)


# -- continuing ------------------------------------------------------------------------------------------------

NAMES = [f"{i}.png" for i in range(8)]


def continued(recorded, order=None, names=NAMES) -> list[str]:
    return named(names, continuing(names, seeded(names, 0) if order is None else order, recorded))


def test_what_is_recorded_comes_first_and_the_rest_follows_in_its_order():
    order = named(NAMES, seeded(NAMES, 0))
    assert continued(dict(enumerate(order[:3]))) == order
    assert continued({0: "0.png", 1: "1.png"}) == ["0.png", "1.png", *(n for n in order if n not in ("0.png", "1.png"))]


def test_names_that_came_meanwhile_follow_what_is_recorded():
    before = named(NAMES[1:], seeded(NAMES[1:], 0))
    after = continued(dict(enumerate(before)))
    assert after == [*before, "0.png"]


def test_what_is_recorded_is_read_although_it_would_be_held_out():
    order = [i for i in seeded(NAMES, 0) if i not in held_out(NAMES, 0.3)]
    left_out = NAMES[min(held_out(NAMES, 0.3))]
    found = continued({0: left_out}, order)
    assert found[0] == left_out
    assert len(found) == len(order) + 1


def test_gaps_are_filled_in_the_order_in_which_the_others_were_read():
    """Nothing is known of a damaged part: it was read in order, or sorted by an earlier version."""
    order = named(NAMES, seeded(NAMES, 0))
    assert continued({0: order[0], 3: order[3]}) == order
    assert continued({0: "0.png", 3: "3.png", 4: "4.png"})[:5] == NAMES[:5]


def test_gaps_of_a_sorted_store_are_not_filled_with_what_is_held_out():
    reserved = held_out(NAMES, 0.3)
    order = [i for i in seeded(NAMES, 0) if i not in reserved]
    kept = sorted(order)
    gap = next(place for place, i in enumerate(kept) if i != place)  # where a held-out name would be next
    found = continuing(NAMES, order, {place: NAMES[i] for place, i in enumerate(kept) if place != gap})
    assert found == kept


def test_a_recorded_name_that_is_gone_leaves_its_place_to_another():
    found = continued({0: "gone.png", 1: "1.png"})
    assert found[1] == "1.png"
    assert sorted(found) == NAMES


def test_gaps_at_the_end_are_filled_too():
    assert continuing(NAMES, seeded(NAMES, 0), {0: "0.png", 1: "1.png"}, 4)[:4] == [0, 1, 2, 3]
