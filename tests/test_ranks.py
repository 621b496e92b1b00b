"""Several processes of one run are refused."""

from __future__ import annotations

import pytest

from tide.cli.app import main
from tide.errors import TideError
from tide.ranks import refuse_ranks


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_one_of_two(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    with pytest.raises(TideError, match=rf"^{name} says that this is one of 2 processes, and TIDE runs in one; start"):
        refuse_ranks()


@pytest.mark.parametrize("count", ["1", "0", "", "many"])
def test_one_process_passes(monkeypatch, count):
    monkeypatch.setenv("WORLD_SIZE", count)
    refuse_ranks()


def test_every_command_but_doctor_refuses(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "--store", "none", "--out", "none"]) == 2
    assert "one of 2 processes" in capsys.readouterr().err
    assert main(["doctor"]) == 0
