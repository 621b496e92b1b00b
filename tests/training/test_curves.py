"""Event files of TensorBoard: what killed runs logged twice counts once, and a full disk ends nothing else."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.trainings import stream, trainer
from tide.training.curves import Curves, _Whole


def steps(folder: Path) -> list[int]:
    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars("mse")]


def test_what_was_logged_after_the_last_checkpoint_is_void(tmp_path):
    first = Curves(tmp_path, 1)
    for step in (10, 20, 30):
        first.add({"mse": 1.0}, step)
    second = Curves(tmp_path, 21)  # the first one was killed, and is not closed
    for step in (30, 40):
        second.add({"mse": 2.0}, step)
    second.close()
    assert steps(tmp_path) == [10, 20, 30, 40]


def test_a_run_that_starts_anew_voids_all(tmp_path):
    for last in (30, 20):
        curves = Curves(tmp_path, 1)
        for step in range(10, last + 1, 10):
            curves.add({"mse": float(last)}, step)
        curves.close()
    assert steps(tmp_path) == [10, 20]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_ends_the_curves_with_a_warning(tmp_path, monkeypatch, code):
    """At every write of a training; the training itself continues."""
    write, written = _Whole.write, []

    def failing(file: _Whole, data: bytes) -> None:
        written.append(data)
        if len(written) > 3:
            file._file.write(data[: len(data) // 2])
            raise OSError(code, "it is full")
        write(file, data)

    monkeypatch.setattr(_Whole, "write", failing)
    job = trainer(tmp_path)
    with pytest.warns(
        UserWarning, match=r"^the curves in .*tensorboard end here \(it is full\); the training continues"
    ):
        job.fit(stream)
    assert len(written) == 4  # no attempt after the one that failed
    assert job.step == 60
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/mse")] == [10]  # and nothing half-written


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "tensorboard").write_text("a file is in the way")
    job = trainer(tmp_path, steps=6)
    with pytest.warns(UserWarning, match=r"the curves in .*tensorboard end here \(File exists\)"):
        job.fit(stream)
    assert job.step == 6


def test_no_thread_is_started(tmp_path):
    before = threading.active_count()
    curves = Curves(tmp_path, 1)
    curves.add({"mse": 1.0}, 1)
    assert threading.active_count() == before
    curves.close()
