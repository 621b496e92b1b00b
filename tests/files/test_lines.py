"""Files of lines that are added to: whole lines are kept, half ones go, and readers never see one."""

from __future__ import annotations

import errno
import io
import os
import stat

import pytest

from tide.errors import TideError
from tide.files import append_lines, read_lines
from tide.files import lines as module


def test_lines_are_read_as_they_were_added(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_lines(path) == []
    append_lines(path, ['{"a": "größe\u2028"}', "{}"])
    append_lines(path, [])
    append_lines(path, ["[1]"])
    assert read_lines(path) == ['{"a": "größe\u2028"}', "{}", "[1]"]
    assert path.read_bytes().endswith(b"{}\n[1]\n")


def test_lines_are_on_disk_before_the_next_step(tmp_path, monkeypatch):
    path, synced = tmp_path / "a.jsonl", []

    def sync(handle: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(handle).st_mode), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", sync)
    append_lines(path, ["{}"])
    assert synced == [(False, b"{}\n"), (True, b"{}\n")]  # the line, then the new file's name
    append_lines(path, ["[1]"])
    assert synced[2:] == [(False, b"{}\n[1]\n")]


def test_what_is_there_when_reading_begins_is_read(tmp_path, monkeypatch):
    path, fstat = tmp_path / "a.jsonl", os.fstat
    path.write_bytes(b'{}\n{"a"')

    def others_go_on(handle: int) -> os.stat_result:
        found = fstat(handle)
        monkeypatch.undo()
        path.write_bytes(path.read_bytes() + b": 1}\n{}\n")
        return found

    monkeypatch.setattr(os, "fstat", others_go_on)
    assert read_lines(path) == ["{}"]
    assert read_lines(path) == ["{}", '{"a": 1}', "{}"]


@pytest.mark.parametrize("cut", range(1, 14))
def test_half_a_line_is_passed_over_and_the_next_begins_anew(tmp_path, cut):
    path = tmp_path / "a.jsonl"
    half = '{"a": "größe"}'.encode()[:-cut]
    path.write_bytes(b"{}\n" + half)
    assert read_lines(path) == ["{}"]
    append_lines(path, ["[1]"])
    assert path.read_bytes() == b"{}\n[1]\n"
    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl"]


def test_half_a_line_by_itself(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a"')
    assert read_lines(path) == []
    append_lines(path, ["[1]"])
    assert path.read_bytes() == b"[1]\n"


def test_a_whole_line_that_lacks_its_end_is_kept(tmp_path):
    """As editors leave it."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{}\n{"a": 1}')
    assert read_lines(path) == ["{}", '{"a": 1}']
    append_lines(path, ["[1]"])
    assert read_lines(path) == ["{}", '{"a": 1}', "[1]"]


def test_a_reader_of_a_file_that_is_mended_goes_on_with_the_former_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{}\n{"a"')
    with path.open("rb") as reader:
        append_lines(path, ["[1]"])
        assert reader.read() == b'{}\n{"a"'


def test_a_file_that_is_no_text_names_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n{}\n\xff\n{}\n")
    with pytest.raises(TideError, match=r"a.jsonl, line 3, is not UTF-8 text; correct or remove the line"):
        read_lines(path)


class _Full(io.FileIO):
    """A disk that is full after four bytes."""

    def write(self, data):
        if len(data) < 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data[:4])


def test_nothing_is_added_to_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    append_lines(path, ["{}"])
    monkeypatch.setattr(type(path), "open", lambda self, mode, buffering=-1: _Full(self, "ab" if "a" in mode else "rb"))
    with pytest.raises(TideError, match=r"could not be written \(No space left on device\); free some space"):
        append_lines(path, ["1234567"])
    monkeypatch.undo()
    assert path.read_bytes() == b"{}\n"


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    class Short(io.FileIO):
        def write(self, data):
            return super().write(data[:3])

    path = tmp_path / "a.jsonl"
    monkeypatch.setattr(type(path), "open", lambda self, mode, buffering=-1: Short(self, "ab" if "a" in mode else "rb"))
    append_lines(path, ["1234567", "89"])
    monkeypatch.undo()
    assert path.read_bytes() == b"1234567\n89\n"


def test_a_file_that_would_grow_too_large_or_is_none(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    append_lines(path, ["{}"])
    monkeypatch.setattr(module, "TEXT_BYTES", 5)
    with pytest.raises(TideError, match="would be larger than 5 bytes; move it away and begin another"):
        append_lines(path, ["{}"])
    assert path.read_bytes() == b"{}\n"
    monkeypatch.setattr(module, "TEXT_BYTES", 2)
    with pytest.raises(TideError, match="is larger than 2 bytes; check the path"):
        read_lines(path)
    with pytest.raises(TideError, match=r"cannot be read \(Is a directory\); check the path"):
        read_lines(tmp_path)
    with pytest.raises(TideError, match=r"could not be written \(Is a directory\); free some space or check"):
        append_lines(tmp_path, ["{}"])
