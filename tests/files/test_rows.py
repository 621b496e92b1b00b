"""Rows of tensors that are read and appended a few at a time, in files that safetensors reads too."""

from __future__ import annotations

import json
import os
import stat
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tide.errors import TideError
from tide.files.rows import GrowingRows, Rows

TENSORS = {
    "a": torch.arange(24, dtype=torch.int32).view(4, 3, 2),
    "b": torch.arange(5, dtype=torch.float32) / 3,
    "c": torch.arange(6, dtype=torch.uint8).view(6, 1),
}
KINDS = {
    torch.uint8: "u1",
    torch.int32: "i4",
    torch.int64: "i8",
    torch.float16: "f2",
    torch.float32: "f4",
}


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


# -- read -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TENSORS)
def test_slices_lists_and_single_rows_of_several_tensors_in_a_file(path, name):
    rows, expected = Rows(path, name), TENSORS[name].numpy()
    assert (len(rows), rows.shape, rows.dtype) == (len(expected), expected.shape, expected.dtype)
    for which in (slice(None), slice(1, 3), slice(2, 99), slice(-2, None), slice(3, 1), [3, 0, 0], np.array([2])):
        np.testing.assert_array_equal(rows[which], expected[which])
    for row in (0, 3, np.int64(2)):
        np.testing.assert_array_equal(rows[row], expected[row])
    none = rows[[]]
    assert (none.shape, none.dtype) == ((0, *expected.shape[1:]), expected.dtype)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_is_read_as_safetensors_wrote_it(tmp_path, kind):
    value = torch.tensor([[0, 1], [200, 3]]).to(kind)
    save_file({"x": value}, tmp_path / "x.safetensors")
    found = Rows(tmp_path / "x.safetensors", "x")[:]
    assert found.dtype == np.dtype(f"<{KINDS[kind]}")
    np.testing.assert_array_equal(found, value.numpy())


def test_what_is_read_may_be_changed_and_the_file_stays(path):
    rows = Rows(path, "b")
    part = rows[1:3]
    part[:] = 7
    np.testing.assert_array_equal(rows[:], TENSORS["b"].numpy())


@pytest.mark.parametrize("row", [-1, 4, [0, 4], [-1]])
def test_rows_that_do_not_exist(path, row):
    with pytest.raises(IndexError, match="of 4"):
        Rows(path, "a")[row]


def test_a_file_that_was_deleted_is_read_on(path):
    rows = Rows(path, "a")
    path.unlink()
    np.testing.assert_array_equal(rows[3], TENSORS["a"][3].numpy())
    with pytest.raises(TideError, match=r"x\.safetensors does not exist; make the index again"):
        Rows(path, "a")


def test_a_file_that_is_cut_while_it_is_open(path):
    rows = Rows(path, "c")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TideError, match=r"x\.safetensors is cut short; make the index again"):
        rows[5]


def test_another_tensors_name(path):
    with pytest.raises(TideError, match=r"x\.safetensors is not a readable safetensors file with d; make the index"):
        Rows(path, "d")


@pytest.mark.parametrize("kept", [0, 7, 8, 100])
def test_a_header_that_is_cut(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(TideError, match="is not a readable safetensors file with a"):
        Rows(path, "a")


def test_the_last_byte_is_missing(path):
    last = max(json.loads(path.read_bytes()[8:].split(b"}}")[0] + b"}}").items(), key=lambda e: e[1]["data_offsets"][1])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TideError, match="is cut short or damaged; make the index again"):
        Rows(path, last[0])


def header(**entry) -> bytes:
    return json.dumps({"a": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8], **entry}}).encode()


@pytest.mark.parametrize(
    "said",
    [
        b"[]",
        b"{}",
        b'{"a": 3}',
        b"\xff\xfe",
        b"[" * 100_000,
        header(dtype="F64"),
        header(dtype=["I32"]),
        header(shape="ab"),
        header(shape=[-1, -2]),
        header(shape=[2.0]),
        header(shape=[True, 2]),
        header(data_offsets=[-4, 4]),
        header(data_offsets=[0]),
        header(data_offsets=None),
        header(shape=[]),
        header(shape=[3]),
        header(data_offsets=[0, 12]),
        header(data_offsets=[4, 12]),
        header(shape=[2**40, 2**40], data_offsets=[0, 2**82]),
    ],
    ids=lambda said: said[:90].decode("latin-1"),
)
def test_headers_that_lie(tmp_path, said):
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(said)) + said + bytes(8))
    with pytest.raises(
        TideError, match=r"x is (not a readable safetensors file with a|cut short or damaged); make"
    ) as e:
        Rows(tmp_path / "x", "a")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"PK\x03\x04 something else", struct.pack("<Q", 2**62) + b"{}", b"x" * 4096])
def test_foreign_files(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(TideError, match="x is not a readable safetensors file with a; make the index again"):
        Rows(tmp_path / "x", "a")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for each in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(TideError, match="is not a file; make the index again"):
            Rows(each, "a")


# -- appended ---------------------------------------------------------------------------------------------------


def grown(path, *parts, n=0, kind="i4", row=(2,)):
    rows = GrowingRows(path, "x", row, kind, n)
    for part in parts:
        rows.append(np.array(part).reshape(-1, *row))
    return rows


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("row", [(), (2,), (2, 3, 4)], ids=str)
def test_appended_rows_are_those_that_safetensors_reads(tmp_path, kind, row):
    values = np.arange(5 * int(np.prod(row))).reshape(5, *row)
    grown(tmp_path / "x", values[:2], values[2:2], values[2:], kind=kind, row=row).close()
    found = load_file(tmp_path / "x")
    assert found.keys() == {"x"}
    assert KINDS[found["x"].dtype] == kind
    np.testing.assert_array_equal(found["x"].numpy(), values)
    np.testing.assert_array_equal(Rows(tmp_path / "x", "x")[:], values)


def test_rows_are_cast_to_the_files_type_whatever_their_order_in_memory(tmp_path):
    values = np.arange(6, dtype=np.float64).reshape(2, 3).T / 4
    grown(tmp_path / "x", values, kind="f2").close()
    np.testing.assert_array_equal(Rows(tmp_path / "x", "x")[:], values.astype("f2"))


def test_no_rows_at_all(tmp_path):
    grown(tmp_path / "x").close()
    assert Rows(tmp_path / "x", "x").shape == (0, 2)
    assert load_file(tmp_path / "x")["x"].shape == (0, 2)


def test_until_it_is_closed_a_file_says_that_it_has_no_rows(tmp_path):
    rows = grown(tmp_path / "x", [1, 2])
    rows.flush()
    assert len(Rows(tmp_path / "x", "x")) == 0
    rows.close()
    assert len(Rows(tmp_path / "x", "x")) == 1


@pytest.mark.parametrize("junk", [b"", b"junk of any length", bytes(2**16)], ids=["none", "some", "much"])
@pytest.mark.parametrize("closed", [False, True])
def test_goes_on_from_the_rows_of_an_interrupted_process(tmp_path, junk, closed):
    rows = grown(tmp_path / "x", [1, 2], [3, 4], [5, 6])
    rows.close() if closed else rows.abandon()
    with (tmp_path / "x").open("ab") as file:
        file.write(junk)
    again = grown(tmp_path / "x", [7, 8], n=2)
    assert again.n == 3
    assert len(Rows(tmp_path / "x", "x")) == 0  # the rows that are kept do not count before it is closed, too
    again.close()
    grown(tmp_path / "y", [1, 2], [3, 4], [7, 8]).close()
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_nothing_is_kept_unless_it_is_asked_for(tmp_path):
    grown(tmp_path / "x", [1, 2]).close()
    grown(tmp_path / "x", [3, 4]).close()
    assert Rows(tmp_path / "x", "x")[:].tolist() == [[3, 4]]


def test_rows_of_another_shape(tmp_path):
    rows = grown(tmp_path / "x", [1, 2])
    for wrong in (np.zeros(2), np.zeros((1, 3)), np.zeros((1, 2, 1))):
        with pytest.raises(TideError, match=r"rows of x are \[.*\], not \[2\]; "):
            rows.append(wrong)
    rows.close()
    assert Rows(tmp_path / "x", "x")[:].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "is cut short"),
        (lambda path: path.write_bytes(b"{}" * 1000), "is not a readable safetensors file with x"),
        (lambda path: GrowingRows(path, "y", (2,), "i4").close(), "is not a readable safetensors file with x"),
        (lambda path: grown(path, [1] * 6, row=(3,)).close(), "holds other rows of x"),
        (lambda path: grown(path, [1] * 4, kind="f4").close(), "holds other rows of x"),
        (lambda path: save_file({"x": torch.ones(200, 2, dtype=torch.int32)}, path), "holds other rows of x"),
    ],
    ids=["missing", "cut", "foreign", "another tensor", "another shape", "another kind", "another header"],
)
def test_does_not_go_on_from_what_is_not_there(tmp_path, damage, message):
    grown(tmp_path / "x", [1, 2], [3, 4]).abandon()
    damage(tmp_path / "x")
    before = (tmp_path / "x").read_bytes() if (tmp_path / "x").exists() else None
    with pytest.raises(TideError, match=rf"x {message}.*; make the index again"):
        grown(tmp_path / "x", n=2)
    assert before == ((tmp_path / "x").read_bytes() if (tmp_path / "x").exists() else None)


def test_an_abandoned_file_is_not_written_to_any_more(tmp_path):
    """Rows that wait in a buffer are written when it is abandoned, not later into the file of the next process."""
    first = grown(tmp_path / "x", [1, 2])
    first.abandon()
    second = grown(tmp_path / "x", [3, 4])
    del first
    second.close()
    assert Rows(tmp_path / "x", "x")[:].tolist() == [[3, 4]]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_a_full_disk(tmp_path):
    rows = grown(tmp_path / "x", [1, 2])
    rows.flush()
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, rows._file.fileno())
    os.close(full)
    rows.append(np.array([[3, 4]]))
    with pytest.raises(TideError, match=r"x could not be written \(No space left on device\); free some space"):
        rows.flush()
    rows.abandon()


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(TideError, match=r"x could not be written \(No such file or directory\); .* another folder"):
        grown(tmp_path / "none" / "x")


def test_its_mode_is_that_of_other_files(tmp_path):
    grown(tmp_path / "x").close()
    (tmp_path / "y").touch()
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "y").stat().st_mode)
