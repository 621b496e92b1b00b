"""Whatever order contexts end in and whatever ends them, the pipeline and its parts are as they were."""

from __future__ import annotations

import copy
import gc
import os
import threading
from contextlib import ExitStack
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.families import CORE, FAMILIES, draw, pipeline
from tide.activations import collect, collect_sampling
from tide.adapters import adapter_for, tap
from tide.adapters.standins import _STAND_INS
from tide.editing import Edit, Steer, edit
from tide.editing.record import record_contrast, record_targets
from tide.interpretation.trajectory import record_trajectory
from tide.training import TrainConfig, build_model

BLOCK = 1


def parts(pipe: Any) -> dict[str, Any]:
    named = {"pipe": pipe, "scheduler": pipe.scheduler}
    for name in ("transformer", "vae", "text_encoder"):
        part = getattr(pipe, name, None)
        if isinstance(part, nn.Module):
            named |= {f"{name}.{path}": module for path, module in part.named_modules()}
    return named


def everything(pipe: Any) -> dict[str, Any]:
    """Of every part every attribute by identity, and what its dictionaries (of hooks, modules) hold."""
    found: dict[str, Any] = {}
    for where, part in parts(pipe).items():
        for name, value in vars(part).items():
            found[f"{where}/{name}"] = id(value)
            if isinstance(value, dict):
                found[f"{where}/{name}/items"] = [(key, id(item)) for key, item in value.items()]
    return found


def lasting(pipe: Any) -> dict[str, Any]:
    """:func:`everything` but the numbers and tensors that runs leave in a pipeline and its scheduler."""
    of_runs = {
        f"{where}/{name}"
        for where, part in (("pipe", pipe), ("scheduler", pipe.scheduler))
        for name, value in vars(part).items()
        if not callable(value)
    }
    return {key: 0 if key.removesuffix("/items") in of_runs else value for key, value in everything(pipe).items()}


def own_copy(name: str) -> Any:
    """A pipeline that shares nothing that contexts touch, drawn with once: runs add attributes."""
    shared = pipeline(name)
    pipe = (
        type(shared)(**{**shared.components, "transformer": copy.deepcopy(shared.transformer)})
        if (name != "dit")
        else copy.copy(shared)
    )
    if name == "dit":
        pipe.transformer, pipe.vae = copy.deepcopy(shared.transformer), copy.deepcopy(shared.vae)
    if hasattr(shared, "default_sample_size"):
        pipe.default_sample_size = shared.default_sample_size
    pipe.set_progress_bar_config(disable=True)
    draw(name, pipe=pipe, guided=True, n_steps=2)
    return pipe


def steer(pipe: Any, size: float = 0.0) -> Steer:
    return Steer(torch.tensor([1.0]), torch.full((1, adapter_for(pipe).d_model), size))


def contexts(pipe: Any) -> list[Any]:
    return [
        edit(pipe, None, steer(pipe, 0.5), block=BLOCK),
        edit(pipe, None, steer(pipe, 0.5), block=0, branch="both"),
        tap(adapter_for(pipe), {BLOCK: lambda x, call: None}),
    ]


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("name", ["sd3", "flux", "dit"])
def test_contexts_may_end_in_any_order(name, order):
    pipe = own_copy(name)
    plain = draw(name, pipe=pipe, guided=True)
    before, uses = everything(pipe), contexts(pipe)
    for use in uses:
        use.__enter__()
    for i in order:
        uses[i].__exit__(None, None, None)
    assert everything(pipe) == before
    uses = contexts(pipe)
    drawn = [draw(name, pipe=pipe, guided=True)]
    for use in uses:
        use.__enter__()
        drawn.append(draw(name, pipe=pipe, guided=True))
    for i in order:
        uses[i].__exit__(None, None, None)
        drawn.append(draw(name, pipe=pipe, guided=True))
    assert lasting(pipe) == lasting_of(before, pipe)
    assert torch.equal(drawn[0], plain)
    assert torch.equal(drawn[-1], plain)
    one_left = drawn[-2]
    assert torch.equal(one_left, plain) == (order[-1] == 2)  # the tap changes nothing, either edit does


def lasting_of(before: dict[str, Any], pipe: Any) -> dict[str, Any]:
    now = lasting(pipe)
    return {key: 0 if now.get(key) == 0 else value for key, value in before.items()}


@pytest.mark.parametrize("name", CORE)
def test_one_pipeline_edited_twice_at_once_in_every_family(name):
    pipe = own_copy(name)
    before = lasting(pipe)
    first, second = edit(pipe, None, steer(pipe), block=BLOCK), edit(pipe, None, steer(pipe), block=BLOCK)
    first.__enter__()
    second.__enter__()
    met = draw(name, pipe=pipe, guided=True)
    first.__exit__(None, None, None)
    assert torch.equal(draw(name, pipe=pipe, guided=True), met)
    second.__exit__(None, None, None)
    assert lasting(pipe) == before


def test_a_context_that_is_never_closed_goes_with_its_last_reference():
    pipe = own_copy("sd3")
    before = everything(pipe)
    edit(pipe, None, steer(pipe), block=BLOCK).__enter__()
    use = edit(pipe, None, steer(pipe), block=BLOCK)
    use.__enter__()
    assert everything(pipe) != before
    del use
    gc.collect()
    assert everything(pipe) == before


def test_a_generator_that_is_not_finished():
    pipe = own_copy("sd3")
    before, own, family = lasting(pipe), adapter_for(pipe), FAMILIES["sd3"]
    length = {"max_sequence_length": 20}
    data = [(torch.zeros(2, 4, 4, 2), list(family.prompts))] * 3
    noised = collect(own, data, [BLOCK], batch_size=2, **length)
    sampled = collect_sampling(own, family.prompts, [BLOCK], n_steps=2, batch_size=1, height=32, width=16, **length)
    next(noised)
    next(sampled)
    assert lasting(pipe) == before
    del noised, sampled


def test_edits_around_and_inside_what_taps_blocks():
    """An edit inside a recording, a collection inside an edit."""
    pipe = own_copy("sd3")
    before, own, family = lasting(pipe), adapter_for(pipe), FAMILIES["sd3"]
    model = build_model(own, BLOCK, TrainConfig(n_latents=32, k=4))
    data = [(torch.zeros(2, 4, 4, 2), list(family.prompts))]
    uses = ExitStack()

    def run() -> torch.Tensor:
        uses.enter_context(edit(pipe, None, steer(pipe), block=0))  # outlives the recording
        return draw("sd3", pipe=pipe, guided=True)

    for record in (record_trajectory, record_targets):
        record(own, model, run)
    with edit(pipe, None, steer(pipe), block=BLOCK):
        list(collect(own, data, [BLOCK], max_sequence_length=20))
        record_contrast(
            own, [BLOCK], torch.zeros(1, 4, 4, 2), (["a"], ["b"]), own.sampling_timesteps(2), max_sequence_length=20
        )
    uses.close()
    assert lasting(pipe) == before


def test_attributes_of_ones_own_stay():
    """encode_prompt, decode and step that someone has put on the objects themselves, as caches do."""
    pipe = own_copy("dit")
    pipe.vae.decode, pipe.scheduler.step = lambda z: decode(z), lambda *args, **kwargs: step(*args, **kwargs)
    decode, step = type(pipe.vae).decode.__get__(pipe.vae), type(pipe.scheduler).step.__get__(pipe.scheduler)
    before = lasting(pipe)
    held = (pipe.vae.decode, pipe.scheduler.step)
    try:
        model = build_model(adapter_for(pipe), BLOCK, TrainConfig(n_latents=32, k=4))
        record_trajectory(adapter_for(pipe), model, lambda: draw("dit", pipe=pipe))
        assert (pipe.vae.decode, pipe.scheduler.step) == held
        assert lasting(pipe) == before
    finally:
        del pipe.scheduler.step  # which the shared pipeline has as well


# -- interrupted ------------------------------------------------------------------------------------------------------


class Interrupting(Edit):
    """Calls ``event`` whenever latents are edited."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def latents(self, z, place):
        self.event()
        return z


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_interrupted_edits_leave_nothing(error):
    """At each of the points at which a run can be: in an edit, a block, a callback, a text encoder, between two."""
    pipe = own_copy("sd3")
    own = adapter_for(pipe)
    model = build_model(own, BLOCK, TrainConfig(n_latents=32, k=4))
    plain, before = draw("sd3", pipe=pipe, guided=True), lasting(pipe)

    def interrupted(at: int) -> bool:
        events = iter(range(10**6))

        def event(*_: Any) -> None:
            if next(events) == at:
                raise error("here")

        def on_step_end(_pipe: Any, i: int, t: Any, tensors: Any) -> Any:
            event()
            return tensors

        with ExitStack() as handles:
            for module in (own.blocks[0], own.blocks[3], pipe.text_encoder, pipe.text_encoder_3, pipe.transformer):
                handles.callback(module.register_forward_hook(event).remove)
            try:
                with edit(pipe, model, Interrupting(event)), edit(pipe, None, steer(pipe), block=2, branch="both"):
                    event()
                    record_trajectory(
                        own,
                        model,
                        lambda: draw("sd3", pipe=pipe, guided=True, callback_on_step_end=on_step_end),
                    )
            except error:
                return True
        return False

    at = 0
    while interrupted(at):
        assert lasting(pipe) == before, at
        assert not _STAND_INS
        at += 1
    assert at >= 20  # three of them are 60 interrupted edits and more
    assert lasting(pipe) == before
    assert torch.equal(draw("sd3", pipe=pipe, guided=True), plain)


# -- many of them -----------------------------------------------------------------------------------------------------


def size_of_the_process() -> dict[str, int]:
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "objects": len(gc.get_objects()),
        "KiB": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
    }


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_hundreds_of_edits_grow_nothing():
    pipe = own_copy("sd3")
    own = adapter_for(pipe)
    before, latents = everything(pipe), torch.zeros(1, 4, 4, 2)
    text = own.encode_prompts(["a tree"], 20)

    def edits(n: int) -> None:
        for _ in range(n):
            with edit(pipe, None, steer(pipe, 0.1), block=BLOCK), tap(own, {2: lambda x, call: None}):
                own.denoise(latents, 500, text)

    with torch.no_grad():
        edits(100)
        small = size_of_the_process()
        edits(500)
        large = size_of_the_process()
    assert everything(pipe) == before
    assert not _STAND_INS
    grown = {name: large[name] - small[name] for name in small}
    assert grown["threads"] == grown["descriptors"] == 0
    assert grown["objects"] < 500  # less than one an edit
    assert grown["KiB"] < 8 * 1024
