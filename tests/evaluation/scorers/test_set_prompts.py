"""Prompts of pictures from a file of their own."""

from __future__ import annotations

import json

import pytest

from tide.errors import TideError
from tide.evaluation.scorers.set_prompts import prompts_of

NAMES = ["a.png", "b/c.png"]


def test_one_a_line_in_the_order_of_the_names(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("a red house\n\n  a blue cone \n")
    assert prompts_of(file, NAMES, "a/") == {"a.png": "a red house", "b/c.png": "a blue cone"}


def test_lists_by_name_may_hold_further_pictures(tmp_path):
    rows = [("z.png", "none"), ("./b/c.png", "a cone"), ("a.png", "a house")]
    jsonl, table = tmp_path / "p.jsonl", tmp_path / "p.csv"
    jsonl.write_text("\n".join(json.dumps({"file_name": name, "text": text}) for name, text in rows))
    table.write_text("file_name,prompt\n" + "".join(f"{name},{text}\n" for name, text in rows))
    for file in (jsonl, table):
        assert prompts_of(file, NAMES, "a/") == {"a.png": "a house", "b/c.png": "a cone"}


def test_names_whose_numbers_are_out_of_order(tmp_path):
    """As text "10.png" comes before "2.png", while prompts are written as they are drawn."""
    file = tmp_path / "p.txt"
    file.write_text("\n".join("abc"))
    assert prompts_of(file, ["01.png", "02.png", "10.png"], "a/")["10.png"] == "c"
    with pytest.raises(TideError) as caught:
        prompts_of(file, ["1.png", "10.png", "2.png"], "a/")
    said = "so a text of prompts would be out of order; pad the numbers with zeros, or give a list by name"
    assert str(caught.value) == f"10.png comes before 2.png in a/, {said} (.jsonl, .csv, .parquet)"


def test_a_list_that_names_a_picture_twice(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("file_name,text\na.png,one\n./a.png,two\n")
    with pytest.raises(TideError, match=r"names a\.png twice; leave one prompt for it"):
        prompts_of(file, ["a.png"], "a/")


def test_prompts_that_do_not_fit(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("one\ntwo\nthree\n")
    with pytest.raises(TideError) as caught:
        prompts_of(file, NAMES, "pictures/")
    said = "write one a line, in the order of the pictures' names"
    assert str(caught.value) == f"{file} holds 3 prompts and pictures/ 2 pictures; {said}"
    listed = tmp_path / "p.jsonl"
    listed.write_text('{"file_name": "a.png", "text": "a house"}\n{"file_name": "b/c.png", "text": ""}\n')
    with pytest.raises(TideError) as caught:
        prompts_of(listed, NAMES, "pictures/")
    assert str(caught.value) == f"{listed} has no prompt for b/c.png of pictures/; add it"
    for missing in ("none.txt", "none.jsonl"):
        with pytest.raises(TideError, match=f"{tmp_path / missing} (does not exist|cannot be read)"):
            prompts_of(tmp_path / missing, NAMES, "a/")
