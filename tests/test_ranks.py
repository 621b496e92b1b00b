"""Which of several processes this is; several are refused where each would repeat the work."""

from __future__ import annotations

import pytest

from tide.cli.app import main
from tide.errors import TideError
from tide.ranks import Launched, launched, refuse_other_launchers, refuse_ranks


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_one_of_two(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    with pytest.raises(TideError, match=rf"^{name} says that this is one of 2 processes, and only `tide train` and"):
        refuse_ranks()


@pytest.mark.parametrize("count", ["1", "0", "", "many"])
def test_one_process_passes(monkeypatch, count):
    monkeypatch.setenv("WORLD_SIZE", count)
    refuse_ranks()


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Launched(3, 8, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Launched(3, 8, 1, 2)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, Launched(3, 8, 2, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Launched(3, 8, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "", "WORLD_SIZE": "8"}, None),
        ({"RANK": "3"}, None),
        ({"RANK": "a", "WORLD_SIZE": "8"}, None),
    ],
)
def test_which_of_torchrun_s_processes_this_is(environment, found):
    assert launched(environment) == found


def test_a_launcher_that_names_no_rank_is_refused_where_torchrun_is_not(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TideError, match="one of 2 processes"):
        refuse_other_launchers()
    monkeypatch.setenv("RANK", "1")
    refuse_other_launchers()


def test_commands_that_do_not_divide_their_work_refuse(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in (["train", "--store", "none", "--out", "none"], ["evaluate", "--sae", "none", "--out", "none"]):
        assert main(command) == 2
        assert "one of 2 processes" in capsys.readouterr().err
    assert main(["doctor"]) == 0
