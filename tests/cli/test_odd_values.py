"""Odd values of every option of every command: a value that the option takes, or one line that names it."""

from __future__ import annotations

from typing import get_args

import pytest

from tide.cli.app import COMMANDS, class_of, command, refusal
from tide.cli.options import Option, options_of, value_of
from tide.errors import TideError

#: The least that a command asks for.
LEAST = {
    "demo": [],
    "adapters": ["--pipeline", "p"],
    "doctor": [],
    "plan": ["--pipeline", "p", "--images", "1"],
    "collect": ["--pipeline", "p", "--data", "here", "--out", "o"],
    "train": ["--store", "s", "--out", "o"],
    "evaluate": ["--sae", "s", "--data", "here", "--out", "o"],
    "sweep": ["--sae", "s", "--data", "here", "--out", "o"],
    "concepts": ["--sae", "s", "--data", "here", "--out", "o"],
    "atlas": ["--sae", "s", "--out", "o"],
    "browse": ["r"],
    "names": ["s"],
    "trajectory": ["--sae", "s", "--prompt", "p", "--out", "o"],
    "effect": ["--sae", "s", "--prompt", "p", "--out", "o"],
    "bank": ["--sae", "s", "--concepts", "c", "--out", "o"],
    "edit": ["--sae", "s", "--prompt", "p", "--out", "o"],
    "score": ["--before", "b", "--after", "a", "--out", "o"],
    "guard": ["make"],
    "push": ["r", "me/x"],
    "pull": ["me/x", "--out", "o"],
    "convert": ["f", "--out", "o"],
    "reproduce": ["fig1"],
}

ODD = {
    "empty": "",
    "blank": " ",
    "NUL": "a\0b",
    "no UTF-8": "a\udcff",
    "very long": "x" * 10_000,
    "many digits": "9" * 10_000,
    "large": "1" + 30 * "0",
    "just above 63 bits": str(2**63),
    "negative": "-1",
    "zero": "0",
    "NaN": "nan",
    "infinite": "inf",
    "beyond floats": "1e400",
    "beyond floats in bytes": "1e999GB",
    "digits of disk": "9" * 400 + "GB",
    "at the end of floats": "1e308",
    "below floats": "1e-400",
    "an exponent to compute for hours": "1e999999999",
    "a fraction of them": "1/1e999999999",
    "divided by zero": "1/0",
    "markup": "<b>%s{}",
    "two lines": "1\n2",
    "other digits": "¹½٣",
    "a path": "../../x",
    "separators": ",,=,x",
    "half an assignment": "1=",
    "half a size": "64x",
    "a large size": "99999999x99999999",
    "a device": "cuda:99999999999",
}


def own_options(name: str) -> list[Option]:
    """The options that take a value and are declared by this command first: groups are shared by several."""
    before = {repr(each) for other in list(COMMANDS)[: list(COMMANDS).index(name)] for each in valued(other)}
    return [option for option in valued(name) if repr(option) not in before]


def valued(name: str) -> list[Option]:
    found = options_of(class_of(name)).values()
    flagless = ("study", "checkpoint", "runs", "folder")
    return [option for option in found if get_args(option.type)[0] is not bool and option.name not in flagless]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
def test_odd_values_are_taken_or_refused_in_a_line(name, value):
    """Whatever else is wrong (a file that is not there) is found later, by what reads it."""
    for option in own_options(name):
        words = [option.flag, *([value] * (2 if option.n_words == 2 else 1))]
        try:
            asked = command([name, *LEAST[name], *words])
        except (TideError, OSError) as error:
            line = refusal(error)
            assert line
            assert len(line) < 1100, option.name
            assert "\n" not in line, option.name
        else:
            assert value_of(asked, option.name) is not None


@pytest.mark.parametrize(
    "settings",
    [
        ["seed=1000000000000000000000000000000"],
        ["n_latents=9223372036854775808"],
        ["lr=1e400"],
        ["lr=.nan"],
        ["weight_decay=.inf"],
        ["betas=[.nan, 0.9]"],
        ["loss.mse=.inf"],
        ["seed=-1"],
    ],
    ids=" ".join,
)
def test_settings_beyond_what_anything_takes(cli, store, tmp_path, settings):
    result = cli("train", "--store", store / "block-6", "--set", *settings, "--out", tmp_path / "out")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith(f"tide: error: {settings[0].partition('=')[0]}")
    assert not (tmp_path / "out").exists()
