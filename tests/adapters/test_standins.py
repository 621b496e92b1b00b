"""Attributes replaced for a while: whatever the order in which the uses end, all is as before."""

from __future__ import annotations

import copy
import inspect
from itertools import permutations
from typing import Any

import pytest

from tide.adapters.standins import _STAND_INS, beneath, listened, replaced


class Owner:
    def __init__(self) -> None:
        self.kept = "kept"

    def double(self, x: int, *, also: int = 0) -> int:
        return 2 * x + also


@pytest.fixture(autouse=True)
def _nothing_stays():
    yield
    assert not _STAND_INS


@pytest.mark.parametrize("own", [False, True], ids=["a method of the class", "an attribute of the object"])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_any_order_of_ending(own, order):
    owner = Owner()
    if own:
        owner.double = lambda x: 3 * x
    before = dict(vars(owner))
    heard: list[list[Any]] = [[], [], []]
    uses = [
        listened(owner, "double", before=lambda x, i=i: heard[i].append(x), after=lambda r, i=i: heard[i].append(r))
        for i in range(3)
    ]
    for use in uses:
        use.__enter__()
    result = owner.double(1)
    for i in order:
        uses[i].__exit__(None, None, None)
        owner.double(5)
    assert vars(owner) == before
    assert [h[:2] for h in heard] == [[1, result]] * 3
    # One that ended as the k-th heard k - 1 of the later calls.
    assert [len(heard[i]) for i in order] == [2, 4, 6]


def test_the_signature_is_still_the_methods():
    owner = Owner()
    signature = inspect.signature(owner.double)
    with listened(owner, "double"), listened(owner, "double"):
        assert inspect.signature(owner.double) == signature
        assert owner.double(1, also=2) == 4


def test_a_call_that_raises_is_not_told_of_as_done():
    owner, told = Owner(), []
    with listened(owner, "double", after=told.append), pytest.raises(TypeError):
        owner.double("x", also=None)
    assert told == []


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_values_stand_until_the_last_use_ends(order):
    owner = Owner()
    uses = [replaced(owner, "kept", None), replaced(owner, "kept", None)]
    for use in uses:
        use.__enter__()
    assert owner.kept is None
    assert beneath(owner, "kept") == "kept"
    uses[order[0]].__exit__(None, None, None)
    assert owner.kept is None
    uses[order[1]].__exit__(None, None, None)
    assert owner.kept == "kept"
    assert beneath(owner, "kept") == "kept"
    assert beneath(owner, "double") is None


def test_what_someone_else_put_there_meanwhile_stays():
    owner, heard = Owner(), []
    with listened(owner, "double", before=heard.append):
        listening = owner.double
        owner.double = lambda x: listening(x) + 1
        theirs = owner.double
        with listened(owner, "double", before=heard.append):
            assert owner.double(1) == 3
        assert owner.double is theirs
    assert owner.double is theirs
    assert owner.double(1) == 3  # through the stand-in that has no listener left
    assert heard == [1, 1]


def test_an_exception_inside_puts_all_back():
    owner = Owner()
    before = dict(vars(owner))
    with pytest.raises(KeyboardInterrupt), listened(owner, "double"), replaced(owner, "kept", 1):
        raise KeyboardInterrupt
    assert vars(owner) == before


def test_a_missing_attribute_is_an_error_that_leaves_nothing():
    owner = Owner()
    with pytest.raises(AttributeError), replaced(owner, "absent", 1):
        pass
    assert vars(owner) == {"kept": "kept"}


def test_a_deep_copy_of_the_owner_has_its_own_method_and_no_listeners():
    heard: list[int] = []
    owner = Counter()
    with listened(owner, "count", before=heard.append):
        other = copy.deepcopy(owner)
        owner.count(1)
        other.count(5)
    assert (owner.total, other.total) == (1, 5)
    assert heard == [1]


class Counter:
    total = 0

    def count(self, n: int) -> None:
        self.total += n
