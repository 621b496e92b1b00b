"""Copies of remote files: checked, bounded, shared by processes."""

from __future__ import annotations

import hashlib
import os
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.remote import Troubled, start
from tide.errors import TideError
from tide.files import cache
from tide.files.cache import cache_limit, fetched
from tide.files.remote import RemotePath

SIZE = 1000


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("TIDE_CACHE_SIZE", "3KB")
    return start(monkeypatch, tmp_path) / "shards"


def given(i: int) -> tuple[RemotePath, int, str]:
    """A remote file, its size and its SHA-256."""
    content = bytes([i]) * SIZE
    Troubled().pipe_file(f"/bucket/{i}", content)
    return RemotePath(f"troubled://bucket/{i}"), SIZE, hashlib.sha256(content).hexdigest()


def numbers(folder: Path) -> set[int]:
    """The first byte of every file."""
    return {path.read_bytes()[0] for path in folder.iterdir()}


def test_a_copy_is_made_once(folder):
    path = fetched(*given(1))
    assert (path.parent, path.read_bytes()) == (folder, bytes([1]) * SIZE)
    Troubled.calls.clear()
    assert fetched(*given(1)) == path
    assert Troubled.calls == []


def test_the_copies_used_longest_ago_are_removed_first(folder):
    paths = {}
    for i in (1, 2, 3):
        paths[i] = fetched(*given(i))
        os.utime(paths[i], (i, i))
    fetched(*given(1))
    fetched(*given(4))
    assert numbers(folder) == {1, 3, 4}


def test_a_file_that_is_arriving_is_left_to_its_process_until_it_must_be_dead(folder):
    fetched(*given(1))
    arriving = folder / "a.part"
    arriving.write_bytes(bytes(1500))
    os.utime(arriving, (time.time() - 60,) * 2)
    fetched(*given(2))
    assert arriving.exists()
    os.utime(arriving, (time.time() - 7200,) * 2)
    fetched(*given(3))
    assert not arriving.exists()


def test_a_copy_that_is_mapped_can_be_read_after_its_removal(folder):
    path = fetched(*given(1))
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    for i in (2, 3, 4):
        os.utime(path, (1, 1))
        fetched(*given(i))
    assert not path.exists()
    assert mapped.sum() == SIZE


@pytest.mark.parametrize(
    ("size", "sha256", "what"),
    [(SIZE, "0" * 64, "another SHA-256"), (SIZE - 1, None, f"{SIZE} bytes, not {SIZE - 1}")],
)
def test_another_file_than_the_list_says_is_refused(folder, size, sha256, what):
    path, _, own = given(1)
    with pytest.raises(TideError) as error:
        fetched(path, size, sha256 or own)
    assert str(error.value) == (
        f"{path} is not the file that the manifest lists ({what}); remove it there and run `tide collect --resume`"
    )
    assert list(folder.iterdir()) == []


def test_a_broken_download_leaves_nothing(folder):
    Troubled.errors[:] = [ConnectionError("reset")] * 4
    with pytest.raises(TideError, match=r"cannot be read \(reset\); try again later"):
        fetched(*given(1))
    assert list(folder.iterdir()) == []


def test_a_file_larger_than_the_cache(monkeypatch):
    monkeypatch.setenv("TIDE_CACHE_SIZE", "1B")
    with pytest.raises(
        TideError, match=r"^troubled://bucket/1 takes 1000 bytes and the cache in .* 1; raise TIDE_CACHE"
    ):
        fetched(*given(1))


def test_the_limit(monkeypatch, folder):
    assert cache_limit() == 3000
    monkeypatch.setenv("TIDE_CACHE_SIZE", "much")
    with pytest.raises(
        TideError, match=r"^TIDE_CACHE_SIZE: 'much' is not an amount of disk; write it as 800MB or 50GB"
    ):
        cache_limit()
    monkeypatch.delenv("TIDE_CACHE_SIZE")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage(0, 0, 10**15))
    assert cache_limit() == 100 * 10**9
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage(0, 0, 2000))
    assert cache_limit() == 1800
    fetched(*given(1))
    assert cache_limit() == 2800  # what is there can be replaced


def test_a_folder_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TIDE_CACHE", str(tmp_path / "file"))
    with pytest.raises(TideError, match=r"file/shards cannot be written \(.*\); set TIDE_CACHE$"):
        fetched(*given(1))


@pytest.mark.parametrize("limit", ["1MB", "3KB"])
def test_readers_at_once_share_the_copies(folder, monkeypatch, limit):
    """Where there is little room they remove one another's copies, and never what is arriving."""
    monkeypatch.setenv("TIDE_CACHE_SIZE", limit)
    files = [given(i) for i in range(1, 6)]
    with ThreadPoolExecutor(12) as readers:
        paths = list(readers.map(lambda i: fetched(*files[i % 5]), range(60)))
    assert len(set(paths)) == 5
    assert numbers(folder) <= set(range(1, 6))
    if limit == "1MB":
        assert len(list(folder.iterdir())) == 5
