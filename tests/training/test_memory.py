"""Trainings that no machine can hold are refused before anything is built."""

from __future__ import annotations

import pytest

from tide.adapters import adapter_for
from tide.errors import TideError
from tide.sae import TIDE
from tide.training import TrainConfig, build_model, memory
from tide.training.memory import check_memory, need


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"n_latents": 10**9, "k": 4},
            r"^training with n_latents = 1000000000 of width 192 takes 6.14e\+03 GB of memory at least and cpu has .* "
            r"GB; lower n_latents \(or expansion\), or let more ranks divide them \(shard_latents\)$",
            id="latents",
        ),
        pytest.param({"expansion": 10**8}, "n_latents = 19200000000 of width 192", id="expansion"),
        pytest.param({"n_latents": 10**40, "k": 4}, "takes over 1000000 GB", id="more than any number of bytes"),
        pytest.param({"batch_tokens": 10**12}, r"batch_tokens = 1000000000000 .* lower batch_tokens$", id="rows"),
    ],
)
def test_more_than_there_is(alpha, monkeypatch, options, message):
    monkeypatch.setattr(TIDE, "__init__", lambda *_, **__: pytest.fail("a model was built"))
    with pytest.raises(TideError, match=message):
        build_model(adapter_for(alpha), 6, TrainConfig(**options))


@pytest.mark.parametrize(
    ("room", "fits"), [(32 * 64 * 16 + 8 * 100 * 16, True), (32 * 64 * 16 + 8 * 100 * 16 - 1, False)]
)
def test_the_estimate(monkeypatch, room, fits):
    """Two weights [64, 16], each with gradient and two moments, of 4 bytes; 100 rows and their reconstruction."""
    monkeypatch.setattr(memory, "device_memory", lambda device: room)
    config = TrainConfig(n_latents=64, k=4, batch_tokens=100)
    if fits:
        check_memory(config, 16)
    else:
        with pytest.raises(TideError, match="lower n_latents"):
            check_memory(config, 16)


def test_several_blocks_need_their_weights_and_their_buffers(monkeypatch):
    config = TrainConfig(n_latents=64, k=4, batch_tokens=100)
    one, three = need(config, 16, buffer_rows=10), need(config, 16, blocks=3, buffer_rows=10)
    assert (one.weights, one.step, one.buffer) == (32 * 64 * 16, 8 * 100 * 16, 40 * 16)
    assert (three.weights, three.step, three.buffer) == (3 * one.weights, one.step, 3 * one.buffer)
    assert need(config, 16, buffer_rows=10, itemsize=2).buffer == 20 * 16
    transcoders = need(config, 16, blocks=3, buffer_rows=10, target=True)
    assert transcoders == (three.weights, 3 * 4 * 100 * 16, 2 * three.buffer)
    monkeypatch.setattr(memory, "device_memory", lambda device: three.total - 1)
    check_memory(config, 16, blocks=2, buffer_rows=10)
    with pytest.raises(TideError, match=r"with 3 blocks of n_latents = 64 .* or train fewer blocks at a time$"):
        check_memory(config, 16, blocks=3, buffer_rows=10)


def test_the_remedy_is_what_takes_most(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda device: 10**5)
    for options, remedy in (
        ({"buffer_rows": 10**4}, "with 10000 rows to mix .*; lower buffer_rows$"),
        ({}, r"lower n_latents \(or expansion\), or let more ranks divide them \(shard_latents\)$"),
    ):
        with pytest.raises(TideError, match=remedy):
            check_memory(TrainConfig(n_latents=640, k=4, batch_tokens=100), 16, **options)
    with pytest.raises(TideError, match=r"lower n_latents \(or expansion\)$"):  # which ranks cannot divide
        check_memory(TrainConfig(n_latents=640, k=4, batch_tokens=100, activation="relu"), 16)


def test_weights_in_bfloat16_come_on_top():
    """Of one block at a time: each step rounds them."""
    exact, rounded = (
        need(TrainConfig(n_latents=64, k=4, batch_tokens=100, precision=each), 16, blocks=3)
        for each in ("fp32", "bf16")
    )
    assert (rounded.weights, rounded.step - exact.step) == (exact.weights, 4 * 64 * 16)


def test_a_device_that_is_not_there():
    with pytest.raises(TideError, match="device 'tpu' is not supported"):
        check_memory(TrainConfig(device="tpu"), 16)


def test_a_machine_that_does_not_say(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda device: None)
    check_memory(TrainConfig(n_latents=10**9, k=4), 16)


def test_ranks_that_divide_the_latents_need_their_part(monkeypatch):
    """Of the weights; the rows of a step are the same."""
    config = TrainConfig(n_latents=64, k=4, batch_tokens=10)
    whole, part = need(config, 16), need(config.changed({"shard_latents": 4}), 16)
    assert part == whole._replace(weights=whole.weights // 4)
    monkeypatch.setattr(memory, "device_memory", lambda device: part.total - 1)
    with pytest.raises(TideError, match=r"^training with n_latents = 64 among 4 ranks of width 16 takes"):
        check_memory(config.changed({"shard_latents": 4}), 16)
