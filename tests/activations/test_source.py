"""Files of prompts."""

from __future__ import annotations

import pytest

from tide.activations.source import read_prompts
from tide.errors import TideError


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_a_prompt_is_a_line_without_its_end_and_without_a_mark(tmp_path, mark, end):
    (tmp_path / "prompts.txt").write_bytes(f"{mark}a red house{end}{end}  a tree {end}".encode())
    assert read_prompts(tmp_path / "prompts.txt") == ["a red house", "a tree"]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"], ids=ascii)
def test_what_python_calls_the_end_of_a_line_may_stand_in_a_prompt(tmp_path, mark):
    (tmp_path / "prompts.txt").write_text(f"a red{mark}house\na tree")
    assert read_prompts(tmp_path / "prompts.txt") == [f"a red{mark}house", "a tree"]


def test_a_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n \n")
    with pytest.raises(TideError, match=r"prompts\.txt holds no prompts; write one a line"):
        read_prompts(tmp_path / "prompts.txt")
