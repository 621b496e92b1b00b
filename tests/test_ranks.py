"""Which of several processes this is; several are refused where each would repeat the work."""

from __future__ import annotations

import pytest

from tide.cli.app import main
from tide.errors import TideError
from tide.ranks import rank_and_world, refuse_ranks


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_one_of_two(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    with pytest.raises(TideError, match=rf"^{name} says that this is one of 2 processes, and TIDE runs in one; start"):
        refuse_ranks()


@pytest.mark.parametrize("count", ["1", "0", "", "many"])
def test_one_process_passes(monkeypatch, count):
    monkeypatch.setenv("WORLD_SIZE", count)
    refuse_ranks()


@pytest.mark.parametrize(
    ("rank", "world", "found"),
    [("3", "8", (3, 8)), ("0", "1", None), ("", "8", None), ("3", "", None), ("a", "8", None)],
)
def test_rank_and_world(rank, world, found):
    assert rank_and_world({"RANK": rank, "WORLD_SIZE": world}) == found


def test_commands_that_do_not_divide_their_work_refuse(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "--store", "none", "--out", "none"]) == 2
    assert "one of 2 processes" in capsys.readouterr().err
    assert main(["doctor"]) == 0
