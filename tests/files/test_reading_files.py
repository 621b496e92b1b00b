"""Files that are damaged, hostile or of another kind: one line each."""

from __future__ import annotations

import os
import time

import pytest
import torch
from safetensors.torch import save_file

from tide.errors import TideError
from tide.files import check_tensors, halved, read_json, read_tensors, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(9 * ['*' + a])}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"[" * 100_000, "is not valid JSON .nested too deeply"),
        (b"1" * 10_000, "is not valid JSON"),
        (b'{"a": 1}', "must be a list"),
    ],
    ids=["truncated", "binary", "deep", "a number too long to convert", "another kind"],
)
def test_json_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(TideError, match=message) as caught:
        read_json(tmp_path / "a.json", list[int])
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "a.json") in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(TideError, match="is not a file; check the path"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", [BOMB, "a: " + "[" * 5000, "? [a]\n: 1\nb: 2", "x: " + "1" * 5000])
def test_yaml_that_cannot_be_used_is_refused_at_once(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    started = time.monotonic()
    with pytest.raises(TideError, match=r"a\.yaml could not be read as YAML .*; correct it") as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 10


def test_a_yaml_file_of_another_kind_is_not_read(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: 1\n" * 10**6)
    with pytest.raises(TideError, match="is larger than 1048576 bytes"):
        read_yaml(tmp_path / "a.yaml")


def test_a_file_of_text_larger_than_memory_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**42)  # takes no space
    with pytest.raises(TideError, match=r"a\.json is larger than 1073741824 bytes; check the path"):
        read_json(tmp_path / "a.json")


LIKE = {"x": torch.zeros(2, 3), "n": torch.zeros(2, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "lacks x"),
        ({"y": torch.zeros(1)}, "holds y, which nothing asks for"),
        ({"x": torch.zeros(3, 2)}, r"x has shape \[3, 2\], not \[2, 3\]"),
        ({"x": torch.zeros(2, 3, dtype=torch.float64)}, "x is float64, not float32"),
        ({"n": torch.zeros(2)}, "n is float32, not int64"),
        ({"x": torch.full((2, 3), float("inf"))}, "x holds NaN or inf"),
    ],
    ids=["missing", "surplus", "shape", "precision", "kind", "not finite"],
)
def test_every_tensor_is_checked(tmp_path, change, message):
    tensors = {name: value for name, value in (LIKE | change).items() if value is not None}
    save_file(tensors, tmp_path / "t")
    with pytest.raises(TideError, match=f"{message}; make it again"):
        check_tensors(tmp_path / "t", read_tensors(tmp_path / "t"), LIKE, remedy="make it again")


def test_another_precision_is_cast_only_where_that_is_asked_for(tmp_path):
    half = {"x": torch.zeros(2, 3).half(), "n": LIKE["n"]}
    check_tensors(tmp_path, half, LIKE, remedy="", any_float=True)
    with pytest.raises(TideError, match="n is float32, not int64"):
        check_tensors(tmp_path, {"x": LIKE["x"], "n": torch.zeros(2)}, LIKE, remedy="", any_float=True)


def test_halves_are_of_what_float16_holds():
    """Activations of some blocks are beyond it."""
    assert halved(torch.tensor([1.0, 65504.0])).dtype == torch.float16
    wide = halved(torch.tensor([1.0, 70000.0], dtype=torch.bfloat16))
    assert (wide.dtype, bool(wide.isfinite().all())) == (torch.float32, True)
    assert halved(torch.tensor([float("inf")])).dtype == torch.float16, "what is not finite is found when it is checked"
