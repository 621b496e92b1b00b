"""Batches read ahead: the same ones in the same order, and no thread is left."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import count, islice

import pytest
import torch

from tests.helpers.trainings import batch, stream, trainer
from tide.activations.memory import ActivationPool
from tide.adapters.gate import Gate
from tide.errors import Interrupted, TideError
from tide.ranks import Launched
from tide.training import prefetch
from tide.training.prefetch import Mover, prefetched


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def numbered(n: int | None = None, read: list[int] | None = None):
    for i in count() if n is None else range(n):
        if read is not None:
            read.append(i)
        yield batch(i)


def wait_until(holds) -> None:
    for _ in range(400):
        if holds():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to hold")


def test_the_same_batches_in_the_same_order():
    pool = ActivationPool(islice(stream(), 5), 64, seed=4)
    ahead = list(islice(prefetched(pool.from_step(3), 4), 20))
    for got, expected in zip(ahead, islice(pool.from_step(3), 20), strict=True):
        assert torch.equal(got.x, expected.x)
        assert torch.equal(got.group, expected.group)
    assert len(list(prefetched(numbered(3), 8))) == 3
    assert threads() == []


def test_no_more_than_the_depth_is_read_ahead():
    read: list[int] = []
    batches = prefetched(numbered(read=read), 3)
    next(batches)
    wait_until(lambda: len(read) == 4)  # one given, three waiting
    time.sleep(0.05)
    assert len(read) == 4
    batches.close()
    assert threads() == []


def test_nothing_is_read_before_the_first_is_asked_for():
    read: list[int] = []
    batches = prefetched(numbered(read=read), 3)
    time.sleep(0.02)
    assert read == []
    batches.close()


def test_an_error_comes_after_the_batches_before_it():
    def failing():
        yield from numbered(2)
        raise TideError("the disk is gone")

    batches = prefetched(failing(), 8)
    assert [next(batches).x.shape, next(batches).x.shape] == [(64, 16), (64, 16)]
    with pytest.raises(TideError, match="the disk is gone"):
        next(batches)
    assert threads() == []


def test_a_training_leaves_no_thread(tmp_path):
    """Finished, or ended by an error."""
    job = trainer(tmp_path / "a", steps=5)
    job.fit(lambda step: prefetched(stream(step), 4))
    assert threads() == []
    with pytest.raises(TideError, match="ended after 3 of 5"):
        trainer(tmp_path / "b", steps=5).fit(lambda step: prefetched(numbered(3), 4))
    assert threads() == []


def test_reading_ahead_changes_no_result(tmp_path):
    pool = ActivationPool(islice(stream(), 5), 64, seed=4)
    plain, ahead = trainer(tmp_path / "a", steps=12), trainer(tmp_path / "b", steps=12)
    plain.fit(pool.from_step)
    ahead.fit(lambda step: prefetched(pool.from_step(step), 4))
    for p, q in zip(plain.model.parameters(), ahead.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_ctrl_c_while_waiting_for_a_batch(tmp_path):
    def stuck():
        yield from numbered(3)
        threading.Timer(0.1, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)).start()
        time.sleep(0.5)

    job = trainer(tmp_path, steps=5)
    with pytest.raises(Interrupted):
        job.fit(lambda step: prefetched(stuck(), 2))
    assert job.saved == 3
    assert threads() == []


def test_only_what_is_in_a_cpus_memory_is_pinned(monkeypatch):
    """Activations that were collected on a GPU are there already; CUDA refuses to pin them."""
    pinned: list[str] = []

    def pin(tensor):
        pinned.append(tensor.device.type)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    elsewhere = batch(0).to(torch.device("meta"))
    assert next(prefetched(iter([elsewhere]), 2, pin=True)).x.is_meta
    assert pinned == []
    next(prefetched(iter([batch(0)]), 2, pin=True))
    assert set(pinned) == {"cpu"}


def test_the_thread_has_as_many_threads_and_draws_from_no_generator_of_this_one():
    """The number of threads changes the rounding of products."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    found = []

    def watched():
        found.append(torch.get_num_threads())
        yield batch(0)

    try:
        state = torch.get_rng_state()
        list(prefetched(watched(), 1))
        assert found == [3]
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(before)


def test_closing_waits_for_one_batch_alone():
    """What is read ahead may take long: a window of a live stream has many passes."""
    read: list[int] = []

    def slow():
        for each in numbered():
            time.sleep(0.1)
            read.append(len(read))
            yield each

    batches = prefetched(slow(), 1000)
    next(batches)
    batches.close()
    assert threads() == []
    assert len(read) <= 3


def test_python_ends_while_batches_are_read():
    """A thread in the middle of a pass would bring down an interpreter that ends."""
    code = (
        "from tests.helpers.trainings import stream\n"
        "from tide.training.prefetch import prefetched\n"
        "batches = prefetched(stream(), 10**6)\n"
        "next(batches)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# -- beside taps -----------------------------------------------------------------------------------------------


def test_nothing_is_read_while_a_tap_is_open():
    gate, read = Gate(), []
    batches = prefetched(numbered(read=read), 3, gate=gate)
    next(batches)
    wait_until(lambda: len(read) == 4)
    with gate.tapped():
        next(batches)
        time.sleep(0.05)
        assert len(read) == 4
        next(batches)
        next(batches)
        with pytest.raises(TideError, match=r"^a live stream waits for a tap of its own pipeline; close the tap"):
            next(batches)
    assert threads() == []


def test_closing_inside_a_tap():
    gate = Gate()
    batches = prefetched(numbered(), 1, gate=gate)
    next(batches)
    with gate.tapped():
        batches.close()
    assert threads() == []


def test_inside_a_tap_batches_are_read_in_turn():
    """The tap may be meant to change what is read."""
    gate, read = Gate(), []
    with gate.tapped():
        batches = prefetched(numbered(read=read), 3, gate=gate)
        next(batches)
        assert threads() == []
    assert read == [0]


def test_under_autocast_batches_are_read_in_turn():
    """It is of one thread, and a pass in another would have other bits."""
    with torch.autocast("cpu", torch.bfloat16):
        batches = prefetched(numbered(), 3, gate=Gate())
        next(batches)
        assert threads() == []


@pytest.mark.parametrize(
    ("device", "threads", "here", "there"),
    [
        ("cpu", 1, 1, True),
        ("cpu", 4, 1, True),
        ("cpu", 5, 1, False),
        ("cpu", 1, 4, True),
        ("cpu", 2, 4, False),
        ("cuda", 8, 8, True),
        ("mps", 1, 1, False),
    ],
)
def test_where_passes_run_beside_steps(monkeypatch, device, threads, here, there):
    """On eight cores."""
    monkeypatch.setattr(prefetch, "cores", lambda: 8)
    monkeypatch.setattr(prefetch, "launched", lambda: None if here == 1 else Launched(0, here, 0, here))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert prefetch.overlaps(torch.device(device)) is there


# -- on a GPU --------------------------------------------------------------------------------------------------


class Recorded:
    """Stands for a CUDA stream or event, and writes down what is asked of it."""

    device = torch.device("cuda", 1)

    def __init__(self, name: str, log: list[tuple[str, ...]]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other) -> None:
        self.log.append((self.name, "waits for the stream", other.name))

    def wait_event(self, event) -> None:
        self.log.append((self.name, "waits for", event.name))

    def record_event(self):
        self.log.append((self.name, "records", "event"))
        return Recorded("event", self.log)


def test_a_gpus_passes_have_a_stream_that_batches_are_waited_for_on(monkeypatch):
    log: list[tuple[str, ...]] = []

    @contextlib.contextmanager
    def entered(stream):
        log.append((stream.name, "is entered", threading.current_thread().name))
        yield

    def reading():
        log.append(("a batch", "is read", threading.current_thread().name))
        yield batch(0)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Recorded("passes", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Recorded("steps", log))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    batches = prefetched(reading(), 1, device=torch.device("cuda", 1))
    next(batches)
    batches.close()
    assert log[0] == ("passes", "waits for the stream", "steps")
    read = ("a batch", "is read", "prefetch")
    assert log[log.index(read) - 1] == ("passes", "is entered", "prefetch")
    assert log[log.index(read) + 1] == ("passes", "records", "event")
    assert log.index(("steps", "waits for", "event")) > log.index(read) + 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_that_arise_on_the_gpu_are_whole():
    """Each is computed by a long chain of launches, and read at once."""
    device = torch.device("cuda", torch.cuda.current_device())

    def computed(there):
        for i in range(8):
            x = torch.full((512, 512), 1.0, device=there)
            for _ in range(200):
                x = x @ torch.eye(512, device=there)
            rows = batch(i, rows=512).to(there)
            yield replace(rows, x=x * i)

    for i, got in enumerate(prefetched(computed(device), 2, device=device)):
        assert torch.equal(got.x.cpu(), torch.full((512, 512), float(i)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_on_the_gpu_stay_where_they_are():
    there = batch(0).to(torch.device("cuda"))
    (got,) = prefetched(iter([there]), 2, pin=True)
    assert Mover(torch.device("cuda"))(got).x.data_ptr() == there.x.data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_pinned_batches_reach_the_gpu_whole():
    move = Mover(torch.device("cuda"))
    for got, expected in zip(prefetched(numbered(8), 2, pin=True), numbered(8), strict=True):
        assert got.x.is_pinned()
        moved = move(got)
        assert moved.x.is_cuda
        assert torch.equal((moved.x * 2).cpu(), expected.x * 2)
