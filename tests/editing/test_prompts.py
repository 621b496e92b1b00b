"""Words replaced in prompts."""

from __future__ import annotations

import pytest

from tide.editing import changed_prompt
from tide.errors import TideError


@pytest.mark.parametrize(
    ("prompt", "word", "by", "expected"),
    [
        ("a red house", "red", "blue", "a blue house"),
        ("a red house", "red", "orange", "an orange house"),
        ("An orange house", "orange", "red", "A red house"),
        ("a dog", "dog", "unicorn", "a unicorn"),
        ("a dog", "dog", "umbrella", "an umbrella"),
        ("red, a red tree", "red", "orange", "orange, an orange tree"),
        ("a red tree, bored", "red", "blue", "a blue tree, bored"),
        ("a red house, near", "red house", "tree", "a tree, near"),
    ],
)
def test_changed_prompt(prompt, word, by, expected):
    assert changed_prompt(prompt, word, by) == expected


@pytest.mark.parametrize("prompt", ["a tree", "a bored tree", "a Red tree"])
def test_a_word_that_the_prompt_does_not_say(prompt):
    with pytest.raises(TideError, match=f"^the prompt '{prompt}' does not say 'red'; name a word that it says$"):
        changed_prompt(prompt, "red", "blue")
