"""Folders that a run makes, and what it removes of them when it fails: its own empty ones."""

from __future__ import annotations

import os

import pytest

from tide.errors import TideError
from tide.files import new_folders
from tide.files.folders import make_folder


class Stop(Exception):
    pass


def test_after_a_failure_the_new_empty_folders_are_gone_and_everything_else_is_there(tmp_path):
    theirs = tmp_path / "runs" / "of-another" / "result"

    def work() -> None:
        with new_folders(tmp_path / "runs" / "mine" / "a", tmp_path / "runs" / "mine" / "b"):
            theirs.mkdir(parents=True)
            (tmp_path / "runs" / "mine" / "a" / "kept").write_text("")
            raise Stop

    with pytest.raises(Stop):
        work()
    assert theirs.is_dir()
    assert (tmp_path / "runs" / "mine" / "a" / "kept").exists()
    assert not (tmp_path / "runs" / "mine" / "b").exists()


def test_an_empty_folder_that_was_there_before_stays(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Stop), new_folders(tmp_path / "empty" / "new"):
        raise Stop
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


def test_after_success_the_folders_stay(tmp_path):
    with new_folders(tmp_path / "a" / "b"):
        pass
    assert (tmp_path / "a" / "b").is_dir()


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "taken").write_text("")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(TideError, match=r"cannot be written .*; choose another folder"), new_folders(folder):
            pass
    assert (tmp_path / "taken").is_file()


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    """For root every folder may be, hence the replaced answer."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with (
        pytest.raises(TideError, match=r"new cannot be written \(Permission denied\); choose another folder"),
        new_folders(tmp_path / "new"),
    ):
        pass
    assert not (tmp_path / "new").exists()


def test_folders_made_before_one_fails_are_removed(tmp_path):
    name = "x" * 300  # longer than any file system allows
    with pytest.raises(OSError, match="too long"):
        make_folder(tmp_path / "a" / name)
    assert not list(tmp_path.iterdir())
