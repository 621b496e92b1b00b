"""Files at URLs: what is read and written, what is tried again, and the one line for what fails."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest
from fsspec.registry import _registry

from tests.helpers.remote import Troubled
from tide.errors import TideError
from tide.files import remote
from tide.files.remote import RemotePath, folders_in, place_of, text_at, writable, write_json_at

FOLDER = RemotePath("troubled://bucket/acts")


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """The seconds that were waited; none are."""
    Troubled.reset()
    waited: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    return waited


class NoCredentialsError(Exception):
    """As botocore's."""


class HTTPError(Exception):
    """As those of drivers, whose bases are not OSError."""


def written(name: str, content: bytes = b"text") -> RemotePath:
    Troubled().pipe_file(f"/bucket/acts/{name}", content)
    return FOLDER / name


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("runs/acts", Path("runs/acts")),
        (Path("a"), Path("a")),
        ("file:///tmp/acts", Path("/tmp/acts")),
        ("s3://bucket/acts", RemotePath("s3://bucket/acts")),
        (RemotePath("s3://b"), RemotePath("s3://b")),
        ("C:\\acts", Path("C:\\acts")),
        ("acts::old", Path("acts::old")),
        ("simplecache::s3://bucket", RemotePath("simplecache::s3://bucket")),
    ],
    ids=str,
)
def test_what_is_a_url(given, place):
    assert place_of(given) == place


def test_names_are_put_together():
    path = RemotePath("s3://bucket/acts/") / "shard"
    assert (str(path), path.name, path.parent, path.resolve()) == (
        "s3://bucket/acts/shard",
        "shard",
        RemotePath("s3://bucket/acts"),
        path,
    )


def test_what_is_written_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (FOLDER / "sub/file").upload(tmp_path / "file")
    write_json_at(FOLDER / "a.json", {"a": 1})
    write_json_at(tmp_path / "a.json", {"a": 1})
    assert text_at(FOLDER / "a.json") == text_at(tmp_path / "a.json") == '{\n  "a": 1\n}\n'
    assert FOLDER.listing() == {"sub": None, "a.json": 13}
    assert folders_in(FOLDER) == {"sub": FOLDER / "sub"}
    (FOLDER / "sub/file").download(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"content"
    (FOLDER / "sub/file").remove()
    (FOLDER / "sub/file").remove()
    assert (FOLDER / "sub/file").read_text() is None


def test_what_is_not_there(tmp_path):
    assert (FOLDER / "none").read_text() is None
    assert FOLDER.listing() == {}
    with pytest.raises(TideError, match=r"^troubled://bucket/acts/none does not exist; copy the folder again"):
        (FOLDER / "none").download(tmp_path / "to")


def test_a_file_that_is_no_text():
    with pytest.raises(TideError, match=r"^troubled://bucket/acts/file is not UTF-8 text"):
        written("file", b"\xff").read_text()


@pytest.mark.parametrize("error", [ConnectionError("reset"), TimeoutError("slow"), HTTPError("503")], ids=repr)
def test_a_connection_that_breaks_is_tried_again_with_growing_waits(waits, error):
    path = written("file")
    Troubled.errors[:] = [error] * 3
    assert path.read_text() == "text"
    assert waits == [1, 3, 9]


def test_a_connection_that_stays_broken_is_told_in_a_line(waits):
    path = written("file")
    Troubled.errors[:] = [ConnectionError("peer\nreset")] * 4
    with pytest.raises(TideError) as error:
        path.read_text()
    assert str(error.value) == "troubled://bucket/acts/file cannot be read (peer reset); try again later"
    assert waits == [1, 3, 9]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("Forbidden"), "cannot be read (Forbidden); check your rights to it"),
        (
            OSError(errno.ENOSPC, "full"),
            "cannot be read, because this machine's disk is full; free some space or set TI",
        ),
        (NoCredentialsError("Unable to locate"), "needs credentials, and none were found; sign in as fsspec asks"),
    ],
    ids=repr,
)
def test_what_another_attempt_does_not_mend(waits, error, message):
    path = written("file")
    Troubled.errors[:] = [error]
    with pytest.raises(TideError) as raised:
        path.read_text()
    assert str(raised.value).startswith(f"{path} {message}")
    assert waits == []


def test_a_bug_keeps_its_traceback():
    path = written("file")
    Troubled.errors[:] = [TypeError("a bug")]
    with pytest.raises(TypeError, match="a bug"):
        path.read_text()


def test_a_download_that_ends_early_is_made_again(waits, tmp_path):
    path = written("file", b"0123456789")
    Troubled.arrives[:] = [4, 9]
    path.download(tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == b"0123456789"
    assert waits == [1, 3]
    Troubled.arrives[:] = [4] * 4
    with pytest.raises(TideError, match=r"cannot be read \(4 of 10 bytes arrived\); try again later$"):
        path.download(tmp_path / "to")


def test_a_protocol_that_nobody_knows():
    with pytest.raises(TideError) as error:
        RemotePath("foo://bucket").listing()
    assert str(error.value) == (
        "foo://bucket cannot be opened (Protocol not known: foo); use s3://, gs://, hf:// or a path"
    )


@pytest.mark.parametrize(("url", "package"), [("s3://b/a", "s3fs"), ("gs://b/a", "gcsfs"), ("abfs://b/a", "adlfs")])
def test_a_driver_that_is_not_installed_is_named(monkeypatch, url, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)  # what was loaded before
    with pytest.raises(TideError) as error:
        RemotePath(url).listing()
    assert str(error.value) == f"{url} needs the package {package}; install it"


def test_a_place_that_cannot_be_written_is_found_at_once(tmp_path):
    with writable(str(FOLDER)):
        assert FOLDER.listing() == {}
    Troubled.errors[:] = [PermissionError("Access Denied")]
    with (
        pytest.raises(TideError, match=r"\.tmp cannot be written \(Access Denied\); check your rights"),
        writable(FOLDER),
    ):
        pass
    Troubled.errors[:] = [FileNotFoundError("The specified bucket does not exist")]
    with (
        pytest.raises(TideError, match=r"cannot be written \(The specified bucket .*; check the bucket"),
        writable(FOLDER),
    ):
        pass
    with writable(str(tmp_path / "new")):
        assert (tmp_path / "new").is_dir()
