"""Passes in the background and taps of other threads keep apart."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

from tide.adapters import adapter_for, run_until, tap
from tide.adapters.gate import Gate, gate_of

#: Seconds in which what is expected to happen has happened.
SOON = 10.0


def started(work) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_transformer_has_one_gate():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    assert gate_of(first) is gate_of(first)
    assert gate_of(first) is not gate_of(second)


def test_a_tap_waits_for_the_pass_of_another_thread():
    gate, running, go, order = Gate(), threading.Event(), threading.Event(), []

    def background() -> None:
        with gate.passing(lambda: False) as granted:
            running.set()
            go.wait(SOON)
            order.append(("pass", granted))

    thread = started(background)
    assert running.wait(SOON)
    threading.Timer(0.05, go.set).start()
    with gate.tapped():
        order.append(("tap", True))
    assert order == [("pass", True), ("tap", True)]
    thread.join(SOON)


def test_a_tap_comes_before_the_next_of_many_passes():
    """A thread that runs one pass after the other lets go of the gate for no time at all."""
    gate, begun, passes, at_tap = Gate(), threading.Event(), [], []

    def background() -> None:
        while not at_tap:
            with gate.passing(lambda: bool(at_tap)):
                passes.append(0)
                begun.set()
                time.sleep(0.01)

    thread = started(background)
    assert begun.wait(SOON)
    before = len(passes)
    with gate.tapped():
        at_tap.append(len(passes))
    thread.join(SOON)
    assert at_tap[0] <= before + 1


def test_a_pass_waits_for_taps_and_for_another_pass():
    gate, granted = Gate(), []

    def background() -> None:
        with gate.passing(lambda: False):
            granted.append(gate.is_tapped)

    with gate.tapped():
        with gate.tapped():  # taps may lie in each other
            threads = [started(background) for _ in range(2)]
        assert granted == []
        assert gate.is_tapped_here
    for thread in threads:
        thread.join(SOON)
    assert granted == [False, False]
    assert not gate.is_tapped_here


def test_a_pass_that_is_not_wanted_any_more_does_not_wait():
    gate = Gate()
    with gate.tapped(), gate.passing(lambda: True) as granted:
        assert not granted
    with gate.passing(lambda: False) as granted:  # the one before left nothing behind
        assert granted


def test_the_taps_of_a_pass_open_at_once():
    gate = Gate()
    with gate.passing(lambda: False), gate.tapped():
        assert not gate.is_tapped
    with gate.tapped():
        assert gate.is_tapped


def test_an_open_tap_is_counted(adapter):
    gate = gate_of(adapter.transformer)
    with tap(adapter, {0: lambda x, call: None}):
        assert gate.is_tapped_here
    assert not gate.is_tapped


@pytest.mark.parametrize("other", [False, True], ids=["this thread's pass", "another thread's"])
def test_the_hooks_of_a_pass_see_no_other_thread(alpha, other):
    """A pipeline that is called without a tap waits for nobody."""
    adapter = adapter_for(alpha)
    latents, text = torch.zeros(1, adapter.latent_channels, 16, 16), adapter.encode_prompts(["a red cube"])
    seen, done = [], []

    def call() -> None:
        done.append(adapter.denoise(latents, 500.0, text))

    def run() -> None:
        started(call).join(SOON) if other else call()

    run_until(adapter, {0: lambda x, call: seen.append(x)}, run)
    assert (len(seen), len(done)) == ((0, 1) if other else (1, 0))
