"""What tyro says about a faulty line, as one line of our own."""

from __future__ import annotations

import pytest

from tide.cli.collect import Collect
from tide.cli.edit import Edit
from tide.cli.parsing import _in_a_line, check_text, given_options, parse
from tide.cli.values import words
from tide.errors import TideError


@pytest.mark.parametrize(
    ("box", "line"),
    [
        pytest.param("", "the options could not be read", id="nothing"),
        pytest.param("only this\n", "only this", id="a line without a frame"),
        pytest.param("\x1b[31mred\x1b[0m", "red", id="colour"),
        pytest.param("╭─ Parsing error ─╮\n╰─────────────────╯", "", id="an empty frame"),
        pytest.param(
            "╭─ Parsing error ──────────────╮\n"
            "│ Error parsing --seed: 'x' is │\n"
            "│ not a seed.                  │\n"
            "│ ──────────────────────────── │\n"
            "│ For full helptext, see x     │\n"
            "╰──────────────────────────────╯\n",
            "--seed: 'x' is not a seed",
            id="hints stay out",
        ),
        pytest.param(
            "╭─ Required options ────────────────╮\n"
            "│ Required options were not given:  │\n"
            "│     --out DIR                     │\n"
            "│         folder (required)         │\n"
            "│     --sae CHECKPOINT              │\n"
            "│         checkpoint (required)     │\n"
            "│ ───────────────────────────────── │\n"
            "│ For full helptext, see x          │\n"
            "╰───────────────────────────────────╯\n",
            "required: --out, --sae",
            id="required options without their help",
        ),
        pytest.param(
            "╭─ Required mutex group ──────╮\n"
            "│ Missing required group:     │\n"
            "│ • --erase, --scale          │\n"
            "╰─────────────────────────────╯\n",
            "one of these is required: --erase, --scale",
            id="one of a group",
        ),
    ],
)
def test_a_message_in_a_line(box, line):
    assert _in_a_line(box) == line


@pytest.mark.parametrize(
    ("kind", "words", "line"),
    [
        (Collect, ["--out", "o"], "required: --pipeline; see `tide collect --help`"),
        (Edit, ["--sae", "s", "--prompt", "p", "--out", "o"], "one of these is required: --towards, --change, --scale"),
        (Collect, ["--pipeline", "p", "--out", "o", "--seed", "x"], "--seed: 'x' is not a seed; give a whole number"),
        (Collect, ["--pipeline", "p", "--out", "o", "--block"], "--block has no value; give it one or leave it off"),
        (Collect, ["--pipeline", "", "--out", "o"], "--pipeline is empty; give it a value or leave it off"),
        (Collect, ["--pipeline", "p", "--out", "o", "--guidance", "2"], "--guidance is not used without --sampling"),
    ],
)
def test_a_faulty_line_of_the_installed_tyro(kind, words, line):
    with pytest.raises(TideError) as error:
        parse(kind, words)
    assert str(error.value).startswith(line)


def test_given_options_are_words_and_not_values():
    """Also with ``=``, and with underscores for dashes."""
    found = given_options(Collect, ["--out=o", "--batch_size", "2", "--data", "seed", "--unknown"])
    assert list(found) == ["out", "batch_size", "data"]


@pytest.mark.parametrize("word", ["a\0b", "a\udcff"], ids=["NUL", "no UTF-8"])
def test_words_that_no_file_can_have(word):
    with pytest.raises(TideError, match="argument"):
        check_text(["collect", word])


def test_a_word_that_is_composed_in_two_ways_is_one():
    """Their pictures would have two names that look alike, and one on some file systems."""
    assert words("caf\u00e9,cafe\u0301, CAF\u00c9 ") == ("caf\u00e9",)
