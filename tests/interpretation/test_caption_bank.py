"""Banks of captions: which images are fitted and which are held out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tide.errors import TideError
from tide.interpretation.caption_bank import halves_by_words
from tide.interpretation.timesteps import RUN_STEPS, spread_timesteps


def captioned(*words: str) -> list:
    return [SimpleNamespace(words=frozenset(each.split())) for each in words]


def test_both_halves_have_half_of_the_images_of_every_word():
    """Also where images of two words take turns, as those of before and after an edit do."""
    images = captioned(*["cat", "dog"] * 6, *["cat dog"] * 4)
    first, second = halves_by_words(images, ["cat", "dog"], 0)
    assert sorted(first + second) == list(range(16))
    for half in (first, second):
        for words, n in (({"cat"}, 3), ({"dog"}, 3), ({"cat", "dog"}, 2)):
            assert sum(images[i].words == words for i in half) == n


def test_the_seed_draws_the_halves():
    images = captioned(*["cat"] * 8, *["dog"] * 8)
    assert halves_by_words(images, ["cat"], 0) == halves_by_words(images, ["cat"], 0)
    assert halves_by_words(images, ["cat"], 0) != halves_by_words(images, ["cat"], 1)


def test_no_timestep_comes_twice(adapter):
    assert len(set(spread_timesteps(adapter, RUN_STEPS).tolist())) == RUN_STEPS
    with pytest.raises(
        TideError, match=f"21 timesteps are more than a sampling run of 20 steps has; give 1..{RUN_STEPS}"
    ):
        spread_timesteps(adapter, 21)
