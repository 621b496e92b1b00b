"""One writer a folder, and one a file, whatever becomes of the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from tide.errors import TideError
from tide.files import lock_file, lock_folder

HOLD = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from tide.files import lock_folder

    with lock_folder(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
""")


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_which_the_first_is(tmp_path, holder):
    with (
        pytest.raises(TideError, match=rf"is being written by process {holder.pid}; wait for it"),
        lock_folder(tmp_path),
    ):
        pass
    # Asking does not change the answer.
    with pytest.raises(TideError, match=rf"process {holder.pid}"), lock_folder(tmp_path):
        pass


def test_a_killed_process_holds_nothing(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with lock_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_process_are_two(tmp_path):
    with lock_folder(tmp_path):
        with pytest.raises(TideError, match="is being written by this process already"), lock_folder(tmp_path):
            pass
        with pytest.raises(TideError, match="is being written by this process already"), lock_folder(tmp_path):
            pass


def test_the_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), lock_folder(tmp_path / "new"):
        raise KeyError
    with lock_folder(tmp_path / "new"):
        assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]
    assert not list((tmp_path / "new").iterdir())


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".a.12-xy.tmp").mkdir()
    (tmp_path / ".a.12-xy.tmp" / "a").write_text("half")
    with lock_folder(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "taken").write_text("")
    with (
        pytest.raises(TideError, match=r"taken cannot be locked .*; choose another folder"),
        lock_folder(tmp_path / "taken"),
    ):
        pass


HOLD_FILE = HOLD.replace("lock_folder", "lock_file")


def test_a_file_that_another_process_holds_is_waited_for(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD_FILE, tmp_path / "a"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(TideError, match=rf"a is being written by process {process.pid}; wait for it and try again"),
            lock_file(tmp_path / "a", seconds=0.05),
        ):
            pass
        threading.Timer(0.1, process.kill).start()
        with lock_file(tmp_path / "a", seconds=30):
            assert process.wait() != 0
    finally:
        process.kill()
        process.wait()
    assert not list(tmp_path.iterdir())


def test_one_thread_at_a_time_holds_a_file(tmp_path):
    inside, most = [], []

    def hold() -> None:
        with lock_file(tmp_path / "a"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_a_file_in_a_locked_folder_can_be_held(tmp_path):
    with lock_folder(tmp_path), lock_file(tmp_path / "a", seconds=0):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".a.lock", ".lock"]


def test_a_file_without_a_folder_cannot_be_held(tmp_path):
    with (
        pytest.raises(TideError, match=r"none does not exist; check the path"),
        lock_file(tmp_path / "none/a"),
    ):
        pass
