"""Which names are on the Hub, and which on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tide.errors import TideError
from tide.hub import Repository, in_repository


@pytest.mark.parametrize("name", ["me/tide", "a/b", "PixArt-alpha/tide_26.v2"])
def test_owner_and_name_are_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert in_repository(name) == Repository(name)


@pytest.mark.parametrize(
    "name", ["tide", "/a/b", "./a", "a/b/c", "~/a", "a/..", "a/b--c", "a/-b", "a/b.git", "a b/c", "", "a/"]
)
def test_anything_else_is_here(name):
    assert in_repository(name) is None
    with pytest.raises(TideError, match="is not the name of a repository on the Hub; write it as owner/name"):
        Repository(name)


def test_a_path_and_text_that_begins_with_a_folder_are_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert in_repository(Path("runs/tide")) is None
    (tmp_path / "runs").mkdir()
    assert in_repository("runs/tide") is None


def test_a_folder_here_has_no_revision(tmp_path):
    with pytest.raises(TideError, match="a folder on this machine, which has no revisions; leave revision off"):
        in_repository(tmp_path, revision="v1")


@pytest.mark.parametrize("folder", ["", ".", "..", "/a", "a/../b", "a//b", "a/", "*", "block-[0-9]"])
def test_a_folder_outside_the_repository_is_refused(folder):
    with pytest.raises(TideError, match="is not a folder of a repository; write it as block-26"):
        Repository("me/tide", folder)


def test_a_repository_in_words():
    assert str(Repository("me/tide", "block-26", "v1")) == "me/tide/block-26 at v1"
