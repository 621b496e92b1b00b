"""Files that are replaced: whole at any moment, on the disk before they count, of the mode that the umask asks for."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tide.errors import TideError
from tide.files import json_writer, remove_leftovers, replace_file, replace_files, tensors_writer, write_json


@pytest.fixture
def calls(monkeypatch):
    """The names of what is synced and renamed, in order."""
    seen: list[tuple[str, str]] = []
    sync, replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        seen.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        sync(handle)

    def renamed(self: Path, target: Path) -> Path:
        seen.append(("rename", self.name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    return seen


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_the_name_before_the_call_returns(tmp_path, calls):
    replace_files({tmp_path / "a": lambda path: path.write_text("a"), tmp_path / "b": json_writer(1)})
    assert calls == [
        ("sync", "a"),
        ("sync", "b"),
        ("rename", "a"),
        ("rename", "b"),
        ("sync", tmp_path.name),
        ("sync", tmp_path.name),
    ]


def test_new_folders_are_on_the_disk_as_well(tmp_path, calls):
    write_json(tmp_path / "new" / "deep" / "a.json", 1)
    assert calls[:2] == [("sync", tmp_path.name), ("sync", "new")]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids="{:03o}".format)
def test_files_have_the_mode_that_the_umask_asks_for(tmp_path, umask):
    """safetensors makes its own files readable for their owner alone."""
    former = os.umask(umask)
    try:
        replace_files({tmp_path / "t": tensors_writer({"x": torch.ones(2)}), tmp_path / "j": json_writer([])})
    finally:
        os.umask(former)
    for name in ("t", "j"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_nothing_else_is_left_in_the_folder(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_what_a_kill_leaves_half_written_is_removed_and_nothing_else(tmp_path):
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from tide.files import replace_file

        def write(path):
            path.write_text("half")
            (path.parent / ".tmpAbCdEf").write_text("of a library's own")
            os.kill(os.getpid(), signal.SIGKILL)

        replace_file(Path(sys.argv[1]) / "a", write)
    """)
    assert subprocess.run([sys.executable, "-c", script, tmp_path], check=False).returncode == -9
    kept = [tmp_path / name for name in ("mine.tmp", ".hidden", ".a.12.tmp", "sub/.b.12-xy.tmp/c")]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert len(list(tmp_path.iterdir())) == 5
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.12.tmp", ".hidden", "mine.tmp", "sub"]
    assert all(path.exists() for path in kept)


def test_a_clean_up_that_fails_does_not_hide_the_reason(tmp_path, monkeypatch):
    def no_space(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "unlink", lambda *_a, **_k: (_ for _ in ()).throw(PermissionError("read-only")))
    with pytest.raises(TideError, match=r"a could not be written \(\[Errno 28\] No space left on device\); free some"):
        replace_file(tmp_path / "a", no_space)


def test_of_two_files_neither_is_replaced_if_one_cannot_be_written(tmp_path):
    (tmp_path / "a").write_text("before")

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(TideError, match="b could not be written"):
        replace_files({tmp_path / "a": lambda path: path.write_text("after"), tmp_path / "b": fail})
    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_number_that_is_not_finite_is_null(tmp_path):
    """NaN is not JSON; other readers refuse the whole file."""
    write_json(tmp_path / "a.json", {"x": [float("nan"), {"y": float("inf")}], "z": (1.5, None)})
    text = (tmp_path / "a.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == {"x": [None, {"y": None}], "z": [1.5, None]}
