"""Which versions of Python the built wheel is tested with."""

from __future__ import annotations

import sys

import check_pythons
import pytest


class StandIn:
    """In place of a fresh environment: says which Python it is of."""

    def __init__(self, folder, python, *further):
        self.python = python

    def unpack(self, sdist):
        pass

    def test(self, *arguments):
        return f"tested with {self.python}"


def check(tmp_path, monkeypatch, *pythons):
    for name in ("a.tar.gz", "a-cp311-abi3-any.whl"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(check_pythons, "Fresh", StandIn)
    words = ["check_pythons.py", str(tmp_path), "--pythons", *pythons, "--tests", "tests/sae"]
    monkeypatch.setattr(sys, "argv", words)
    check_pythons.main()


def test_those_that_are_installed_are_tested(tmp_path, monkeypatch, capsys):
    check(tmp_path, monkeypatch, "python-of-nobody", sys.executable)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "python-of-nobody is not installed: passed over",
        f"{sys.executable}: tested with {sys.executable}",
    ]


def test_a_check_that_tests_nothing_fails(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no Python was tested: name one that is installed"):
        check(tmp_path, monkeypatch, "python-of-nobody")
