"""Ctrl-C and SIGTERM: the step is finished and saved, and what is said to be kept is there."""

from __future__ import annotations

import os
import signal
import threading
from itertools import count

import pytest

from tests.helpers.trainings import assert_same, batch, model, state, stream, trainer
from tide.activations.block_batch import BlockBatch
from tide.errors import Interrupted
from tide.sae import TIDE
from tide.training import Trainer
from tide.training.learner import Origin
from tide.training.stopping import stop_signals
from tide.training.trainer import fit_blocks
from tide.world import World

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def usual_handlers():
    """A shell's background job ignores SIGINT, and so would these tests if they ran in one."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def send_in_step(monkeypatch: pytest.MonkeyPatch, step: int, *numbers: int) -> None:
    """Sends the signals in the middle of a step."""
    revive = Trainer._revive

    def sending(job: Trainer, *args):
        if job.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return revive(job, *args)

    monkeypatch.setattr(Trainer, "_revive", sending)


@BOTH
def test_the_step_is_finished_and_saved(tmp_path, monkeypatch, number):
    whole = trainer(tmp_path / "whole")
    whole.fit(stream)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        send_in_step(patch, 33, number)
        job = trainer(tmp_path / "parts")
        with pytest.raises(Interrupted, match=r"^the checkpoint of step 34 is kept$") as found:
            job.fit(stream)
    assert found.value.signal == number
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert_same(state(TIDE.from_pretrained(tmp_path / "parts")), state(job.model))
    resumed, starts = trainer(tmp_path / "parts", TIDE(model().config)), []
    resumed.fit(lambda start: (starts.append(start), stream(start))[1], resume=True)
    assert starts == [34]
    assert_same(state(resumed.model), state(whole.model))
    assert resumed.history == whole.history


@BOTH
def test_a_signal_while_a_batch_is_awaited_ends_at_once(tmp_path, number):
    """Collecting a batch may take minutes; the steps before it are saved."""

    def slow():
        for i in count():
            if i == 7:
                os.kill(os.getpid(), number)
                pytest.fail("the signal was put off")
            yield batch(i)

    with pytest.raises(Interrupted, match=r"^the checkpoint of step 7 is kept$"):
        trainer(tmp_path).fit(slow())


@pytest.mark.parametrize("first", [True, False], ids=["the function of the step", "the first batch"])
def test_before_the_first_batch_nothing_is_written(tmp_path, first):
    def awaited(start: int):
        if first:
            os.kill(os.getpid(), signal.SIGINT)
        return batches()

    def batches():
        os.kill(os.getpid(), signal.SIGINT)
        yield batch(0)

    with pytest.raises(Interrupted, match=r"^no checkpoint was written$"):
        trainer(tmp_path / "new").fit(awaited)
    assert not (tmp_path / "new").exists()


def test_a_second_signal_ends_at_once_and_the_former_checkpoint_is_kept(tmp_path, monkeypatch):
    send_in_step(monkeypatch, 33, signal.SIGINT, signal.SIGINT)
    job = trainer(tmp_path)
    with pytest.raises(Interrupted, match=r"^the checkpoint of step 20 is kept$"):
        job.fit(stream)
    assert job.step == 33


def test_a_signal_in_the_last_step_is_not_lost(tmp_path, monkeypatch):
    send_in_step(monkeypatch, 59, signal.SIGTERM)
    with pytest.raises(Interrupted, match="step 60"):
        trainer(tmp_path).fit(stream)


class _WithAnother(World):
    """A rank beside one that was signalled in its last step, when it was too late to say so before the next."""

    def said(self, value):
        return [value, True] if isinstance(value, bool) else [value, value]


def test_a_signal_to_another_rank_in_the_last_step_is_not_lost(tmp_path):
    job = trainer(tmp_path, steps=6)
    batches = (BlockBatch({0: each}) for each in stream())
    with pytest.raises(Interrupted, match=r"^the checkpoint of step 6 is kept$") as found:
        fit_blocks({0: job}, batches, {0: Origin()}, title="", progress=False, world=_WithAnother())
    assert found.value.signal == signal.SIGTERM


def test_an_interrupt_in_a_step_from_elsewhere_saves_no_half_made_step(tmp_path, monkeypatch):
    def interrupting(job: Trainer, *args):
        if job.step == 33:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_revive", interrupting)
    with pytest.raises(Interrupted, match="step 20"):
        trainer(tmp_path).fit(stream)


def test_signals_that_are_ignored_stay_so(tmp_path, monkeypatch):
    """As under nohup, or in the background of a script."""
    send_in_step(monkeypatch, 3, signal.SIGINT)
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job = trainer(tmp_path, steps=6)
        job.fit(stream)
    finally:
        signal.signal(signal.SIGINT, former)
    assert job.step == 6


def test_another_thread_trains_without_handlers(tmp_path):
    job = trainer(tmp_path, steps=6)
    thread = threading.Thread(target=job.fit, args=(stream,))
    thread.start()
    thread.join()
    assert job.step == 6


def test_the_handlers_are_given_back_after_an_error():
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def fail() -> None:
        with stop_signals():
            assert signal.getsignal(signal.SIGINT) not in handlers
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
