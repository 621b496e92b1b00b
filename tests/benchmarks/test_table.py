"""Bars and tables."""

from __future__ import annotations

from benchmarks import table


def test_tables_line_up():
    lines = table.markdown(["a", "bb"], [["long", "1"]]).splitlines()
    assert lines == ["| a    | bb |", "|------|----|", "| long | 1  |"]


def test_bars_look_in_their_direction():
    assert table.Bar("faster", 3.0, 2.0).met
    assert not table.Bar("over the floor", 3.0, 2.0, at_most=True).met
    assert not table.Bar("not a number", float("nan"), 2.0).met


def test_columns_that_nothing_fills_are_left_out():
    figures = {"ours": {"seconds": 0.003, "floor_seconds": 0.002}, "theirs": {"note": "a | b"}}
    assert table.figure_table(figures).splitlines() == [
        "| by     | median ms | floor ms | x floor | note   |",
        "|--------|-----------|----------|---------|--------|",
        "| ours   | 3.000     | 2.000    | 1.50    |        |",
        "| theirs |           |          |         | a \\| b |",
    ]


def test_one_table_of_several_groups():
    lines = table.wide_table(
        {"n=1": {"a": {"seconds": 1}, "b": {"seconds": 2}}, "n=2": {"a": {"seconds": 3}}}
    ).splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["what", "------", "n=1", "", "n=2"]
