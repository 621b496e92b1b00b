"""What becomes of the messages of others, and counts in words."""

from __future__ import annotations

import io

import pytest

from tide.messages import counted, one_line, say


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a\n  b\tc ", "a b c"),
        ("", "ValueError"),
        ("red \x1b[31m, \0", "red ?[31m, ?"),  # a file's contents must not speak to the terminal
        ("x" * 10**6, "x" * 297 + "..."),
        ("x" * 300, "x" * 300),
    ],
    ids=["lines", "nothing", "control characters", "a file's contents", "as long as may be"],
)
def test_messages_of_libraries_are_one_line(said, shown):
    assert one_line(ValueError(said)) == shown


@pytest.mark.parametrize(("n", "words"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps")])
def test_counts(n, words):
    assert counted(n, "step") == words


def test_a_line_is_printed_in_one_piece():
    """Python's own print writes the line's end apart, where another process may write in between."""
    pieces = []

    class Unbuffered(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    say("trained", Unbuffered())
    assert [piece for piece in pieces if piece] == ["trained\n"]
