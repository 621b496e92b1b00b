"""Power lost, process killed, disk full at any moment of writing a store: what is listed is whole, nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.store_batches import contents, go_on
from tide.activations.store import ActivationStore
from tide.errors import TideError

N_SAMPLES = 6


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("whole") / "store"
    go_on(path, N_SAMPLES)
    return contents(path)


# -- power loss -----------------------------------------------------------------------------------------------


#: What tells files apart: the number of a folder that was removed may be that of a file later.
Inode = tuple[int, bool]


def inode_of(path: Path) -> Inode:
    return path.stat().st_ino, path.is_dir()


class Disk:
    """What a disk holds: contents of files as last synced, zeros if never, and names as last synced, too, or, since a
    file system may write names on its own, as they are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents: dict[Inode, bytes] = {}
        self.names: dict[Inode, dict[str, Inode]] = {inode_of(root): {}}

    def sync(self, handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_dir():
            self.names[inode_of(path)] = {entry.name: inode_of(entry) for entry in path.iterdir()}
        else:
            self.contents[inode_of(path)] = path.read_bytes()

    def copy(self, to: Path, *, names_ahead: bool) -> None:
        """Makes at ``to`` what is found when the power is back."""
        places = {inode_of(path): path for path in self.root.rglob("*")}

        def restore(folder: Inode, at: Path, target: Path) -> None:
            target.mkdir()
            now = {entry.name: inode_of(entry) for entry in at.iterdir()} if at.is_dir() else {}
            for name, inode in (now if names_ahead else self.names.get(folder, {})).items():
                place = places.get(inode)
                if place is not None and place.is_dir():
                    restore(inode, place, target / name)
                elif inode in self.contents or place is not None:
                    zeros = bytes(place.stat().st_size) if place is not None else b""
                    (target / name).write_bytes(self.contents.get(inode, zeros))

        restore(inode_of(self.root), self.root, to)


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Runs ``check(copy)`` on what the disk holds, before and after every sync and every renaming."""

    def watch(root: Path, check: Callable[[Path], None]) -> Disk:
        disk, sync, replace = Disk(root), os.fsync, Path.replace

        def look() -> None:
            for ahead in (False, True):
                copy = tmp_path / "copy"
                disk.copy(copy, names_ahead=ahead)
                check(copy)
                shutil.rmtree(copy)

        def fsync(handle: int) -> None:
            look()
            sync(handle)
            disk.sync(handle)
            look()

        def renamed(self: Path, target: Path) -> Path:
            look()
            moved = replace(self, target)
            look()
            return moved

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", renamed)
        return disk

    return watch


def check_store(copy: Path) -> int:
    """The rows of the store in a copy; every shard that its manifest lists is whole."""
    store = copy / "runs" / "acts"
    if not (store / "manifest.json").exists():
        return 0
    found = ActivationStore(store)
    found.verify()
    return len(found)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_after_a_power_loss_every_listed_shard_is_whole(tmp_path, watched):
    root = tmp_path / "disk"
    root.mkdir()
    looked: list[int] = []
    disk = watched(root, lambda copy: looked.append(check_store(copy)))
    go_on(root / "runs" / "acts", N_SAMPLES)
    assert set(looked) == {0, 80, 160, 240}
    assert len(looked) > 50
    # What was reported as written is there, whatever the file system writes on its own.
    disk.copy(tmp_path / "end", names_ahead=False)
    assert contents(tmp_path / "end/runs/acts") == contents(root / "runs/acts")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_after_a_power_loss_during_a_repair_all_other_shards_are_whole(tmp_path, watched, whole):
    root = tmp_path / "disk"
    go_on(root / "runs" / "acts", N_SAMPLES)
    (root / "runs/acts/shard-00001.safetensors").write_bytes(b"")

    def check(copy: Path) -> None:
        again = copy / "runs" / "acts"
        go_on(again, N_SAMPLES)
        assert contents(again) == whole

    disk = Disk(root)
    for path in (root, *root.rglob("*")):  # all of it has been on the disk for long
        handle = os.open(path, os.O_RDONLY)
        disk.sync(handle)
        os.close(handle)
    copies = []

    def keep(handle: int) -> None:
        disk.sync(handle)
        copies.append(tmp_path / f"copy{len(copies)}")
        disk.copy(copies[-1], names_ahead=len(copies) % 2 == 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", keep)
        go_on(root / "runs" / "acts", N_SAMPLES)
    assert len(copies) >= 6
    for copy in copies:
        check(copy)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("forgotten", ["sync", "sync_folder"])
def test_the_model_of_a_disk_notices_what_is_not_synced(tmp_path, watched, monkeypatch, forgotten):
    """Without syncing files, a manifest is on the disk before its shard; without syncing folders, the end is not."""
    monkeypatch.setattr(f"tide.files.writing.{forgotten}", lambda path: None)
    root = tmp_path / "disk"
    root.mkdir()
    disk = watched(root, check_store)
    if forgotten == "sync":
        with pytest.raises(TideError):
            go_on(root / "runs" / "acts", N_SAMPLES)
        return
    go_on(root / "runs" / "acts", N_SAMPLES)
    disk.copy(tmp_path / "end", names_ahead=False)
    assert check_store(tmp_path / "end") == 0


# -- errors and kills at every call ---------------------------------------------------------------------------

#: Every call with which a store is written.
CALLS = [
    (os, "fsync"),
    (Path, "replace"),
    (Path, "mkdir"),
    (Path, "touch"),
    (Path, "chmod"),
    (Path, "write_text"),
    (Path, "unlink"),
    (Path, "rmdir"),
    (tempfile, "mkdtemp"),
    (__import__("tide.files.tensors").files.tensors, "save_file"),
]


def at_call(patch: pytest.MonkeyPatch, number: int, happen: Callable[[], None]) -> list[str]:
    """Has ``happen`` take place before the call of that number; returns the calls made, which grows."""
    made: list[str] = []

    def counted(name: str, call):
        def wrapped(*args, **kwargs):
            made.append(name)
            if len(made) == number:
                happen()
            return call(*args, **kwargs)

        return wrapped

    for owner, name in CALLS:
        patch.setattr(owner, name, counted(name, getattr(owner, name)))
    return made


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_an_error_at_any_call_loses_nothing(tmp_path, code):
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    go_on(tmp_path / "begun", 2)
    go_on(tmp_path / "whole", 4)
    messages: list[str] = []
    for number in range(1, 1000):
        path = shutil.copytree(tmp_path / "begun", tmp_path / str(number))
        with pytest.MonkeyPatch.context() as patch:
            made = at_call(patch, number, fail)
            try:
                go_on(path, 4)
            except TideError as error:
                messages.append(str(error))
        if len(made) < number:
            break
        found = ActivationStore(path)
        found.verify()
        assert len(found) >= 80
        go_on(path, 4)
        assert contents(path) == contents(tmp_path / "whole")
    assert len(messages) >= 20
    assert not any("\n" in message for message in messages)


def test_a_failed_first_shard_leaves_no_folder_and_a_kept_one_stays(tmp_path, monkeypatch):
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/result.json").write_text("of another command")
    monkeypatch.setattr("tide.files.tensors.save_file", lambda *_a, **_k: fail())
    with pytest.raises(TideError, match="No space left"):
        go_on(tmp_path / "runs" / "new" / "acts", N_SAMPLES)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["result.json"]


KILLED = """
import os, sys
from pathlib import Path
import pytest
from tests.helpers.store_batches import contents, go_on
from tests.activations.test_store_crashes import at_call, ActivationStore
import torch
torch.set_num_threads(1)
root = Path(sys.argv[1])
go_on(root / "whole")
whole = contents(root / "whole")
killed = 0
for number in range(1, 1000):
    path = root / str(number)
    child = os.fork()
    if child == 0:
        at_call(pytest.MonkeyPatch(), number, lambda: os._exit(9))
        go_on(path)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        break
    assert status == 9
    killed += 1
    if (path / "manifest.json").exists():
        ActivationStore(path).verify()
    go_on(path)
    assert contents(path) == whole, number
    left = [each.name for each in path.iterdir() if each.name not in whole]
    assert not left, left
print(killed)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_kill_before_any_call_leaves_a_store_that_resumes_to_the_same_bits(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 40
