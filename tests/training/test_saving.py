"""A save that fails, or is killed, at any of its calls: what was there before loads and resumes to the same bits."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

import tide.files.tensors
from tests.helpers.trainings import assert_same, interrupted, model, state, stream, trainer
from tide.errors import TideError
from tide.sae import TIDE

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOENT, errno.EINTR, errno.EMFILE)


class Killed(BaseException):
    """As after kill -9: nothing that follows touches the disk."""


class Disk:
    """Counts the calls of a save that change the disk, and has one of them fail, or all from one on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.fails: Callable[[int], BaseException | None] = lambda call: None
        for owner, name in (
            *((os, name) for name in ("fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "chmod")),
            *((Path, name) for name in ("touch", "write_text")),
            (tide.files.tensors, "save_file"),
        ):
            monkeypatch.setattr(owner, name, self._watched(getattr(owner, name)))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            number, self.calls = self.calls, self.calls + 1
            if (error := self.fails(number)) is not None:
                if call is safetensors.torch.save_file:
                    Path(args[1]).write_bytes(b"half of")
                raise error
            return call(*args, **kwargs)

        return watched


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    job = trainer(tmp_path_factory.mktemp("whole"), steps=6, checkpoint_every=2)
    job.fit(stream)
    return job


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> int:
    """How many calls a save makes."""
    job = trainer(tmp_path_factory.mktemp("calls"), steps=6, checkpoint_every=2)
    with pytest.raises(TideError):
        job.fit(interrupted(2))
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        job.save()
        return disk.calls


def at_step_4(out):
    """A training whose checkpoint is of step 2, about to save step 4."""
    job = trainer(out, steps=6, checkpoint_every=2)
    with pytest.raises(TideError, match="ended after 2"):
        job.fit(interrupted(2))
    job.config = replace(job.config, checkpoint_every=100)
    with pytest.raises(TideError, match="ended after 4"):
        job.fit(lambda start: interrupted(4)(2))
    assert (job.step, job.saved) == (4, 2)
    return job


def finishes(out, whole, sae: TIDE | None = None) -> None:
    """``sae`` is what a run without a checkpoint starts from."""
    again = trainer(out, TIDE(model().config, seed=5) if sae is None else sae, steps=6, checkpoint_every=6)
    again.fit(stream, resume=True)
    assert_same(state(again.model), state(whole.model))
    assert again.history == whole.history
    assert_same(state(TIDE.from_pretrained(out)), state(whole.model))
    assert not [path for path in out.rglob(".*")]  # no leftovers, no lock


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["in turn", "all"])
def test_every_error_at_every_call(tmp_path, whole, calls, every):
    """Before a rename nothing changes; after the first, what stands in for it is the newer state."""
    assert calls > 20
    job = at_step_4(tmp_path / "first")
    seen = set()
    for call in range(0, calls, 1 if every else 3):
        for code in ERRORS if every else (ERRORS[call % len(ERRORS)],):
            shutil.copytree(job.out, tmp_path / "out")
            job.out = tmp_path / "out"
            with pytest.MonkeyPatch.context() as patch:
                disk = Disk(patch)
                disk.fails = lambda number, call=call, code=code: OSError(code, "no") if number == call else None
                try:
                    job.save()
                    seen.add("")  # of a clean-up that fails nothing need be said
                except TideError as error:
                    seen.add(str(error).partition(" could not be ")[2][:7])
            TIDE.from_pretrained(job.out)
            finishes(job.out, whole)
            shutil.rmtree(job.out)
            job.out = tmp_path / "first"
    assert seen == {"", "written"}


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_before_every_call(tmp_path, whole, calls, stride):
    job = at_step_4(tmp_path / "first")
    for call in range(0, calls, stride):
        shutil.copytree(job.out, tmp_path / "out")
        job.out = tmp_path / "out"
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch)
            disk.fails = lambda number, call=call: Killed() if number >= call else None
            with pytest.raises(Killed):
                job.save()
        finishes(job.out, whole)
        shutil.rmtree(job.out)
        job.out = tmp_path / "first"


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_before_every_call_of_the_first_save(tmp_path, whole, calls, stride):
    """There is no checkpoint yet, or a whole one."""
    for call in range(0, calls + 4, stride):
        job = trainer(tmp_path / "out", steps=6, checkpoint_every=2)
        with pytest.raises(TideError, match="ended after 1"):
            job.fit(interrupted(1))
        job.step = 1
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch)
            disk.fails = lambda number, call=call: Killed() if number >= call else None
            with contextlib.suppress(Killed):
                job.save()
        finishes(tmp_path / "out", whole, model())
        shutil.rmtree(tmp_path / "out")


def test_a_bad_checkpoint_never_replaces_a_good_one(tmp_path):
    job = at_step_4(tmp_path)
    good = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    job.model.W_dec.data[3, 2] = float("nan")
    with pytest.raises(TideError, match=r"model.W_dec is not finite after step 4 and was not saved; .* is kept"):
        job.save()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == good


def test_weights_that_overflow_in_the_last_step_are_no_success(tmp_path):
    """Loss and gradient of the step are finite; what AdamW makes of them is not."""
    job = trainer(tmp_path, steps=5, lr=1e38, warmup=0.0)
    with pytest.raises(TideError, match="not finite"):
        job.fit(stream)
    assert not (tmp_path / "model.safetensors").exists()
