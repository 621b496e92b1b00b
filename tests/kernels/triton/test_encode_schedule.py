"""The schedule of the single-launch encoder: its order of items, and programs that run at the same time."""

import importlib
import inspect
import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import triton as compiler
import triton.language as tl

from tide_kernels import reference, triton
from tide_kernels.triton import configs, launch

encode = importlib.import_module("tide_kernels.triton.encode")  # the package's attribute is the function
MODULATE, MULTIPLY, SELECT = 0, 1, 2

PLANS = [
    pytest.param({"n_tokens": 1, "n_latents": 1, "alters": True, "programs": 2}, id="one tile, fewer than programs"),
    pytest.param({"n_tokens": 85, "n_latents": 100, "alters": True, "programs": 2}, id="a last band with empty blocks"),
    pytest.param({"n_tokens": 85, "n_latents": 100, "alters": False, "programs": 2}, id="no modulation"),
    pytest.param({"n_tokens": 200, "n_latents": 40, "alters": True, "programs": 7}, id="bands of several blocks"),
]


@compiler.jit
def items_kernel(out, items, bands, modulations, tiles, selections, head):
    for i in range(items):
        kind, band, index = encode.item_of(i, bands, modulations, tiles, selections, head)
        tl.store(out + 3 * i, kind)
        tl.store(out + 3 * i + 1, band)
        tl.store(out + 3 * i + 2, index)


@pytest.mark.parametrize("problem", PLANS)
def test_an_item_comes_once_and_after_all_that_it_waits_for(problem, device):
    config = configs.static("encode", configs.INTERPRETER, torch.float16, 20)
    plan = encode.schedule(config, **problem)
    bands, _, modulations, tiles, selections, head, _ = plan.values()
    items = modulations + bands * (modulations + tiles + selections) + selections
    out = torch.empty(items, 3, dtype=torch.int32, device=device)
    items_kernel[(1,)](out, items, bands, modulations, tiles, selections, head)
    order = [tuple(item) for item in out.tolist()]
    inside = [item for item in order if 0 <= item[1] < bands]
    counts = {MODULATE: modulations, MULTIPLY: tiles, SELECT: selections}
    assert sorted(inside) == sorted(
        (kind, band, index) for kind, count in counts.items() for band in range(bands) for index in range(count)
    )
    assert not any(kind == MULTIPLY for kind, band, _ in order if band < 0 or band >= bands)
    place = {item: i for i, item in enumerate(order)}
    needs = {MODULATE: [(MULTIPLY, -3)], MULTIPLY: [(MODULATE, 0), (SELECT, -2)], SELECT: [(MULTIPLY, 0)]}
    for kind, band, index in inside:
        for other, distance in needs[kind]:
            waited = [place[other, band + distance, i] for i in range(counts[other]) if band + distance >= 0]
            assert max(waited, default=-1) < place[kind, band, index]


@pytest.fixture
def replace(monkeypatch):
    """Replaces what the interpreter runs for a kernel or a device function by ``change`` of it."""

    def replaced(function, change):
        original = function.rewrite()
        changed = change(original)
        changed.__signature__, changed.__annotations__ = inspect.signature(original), original.__annotations__
        monkeypatch.setitem(type(function).rewritten_fn, function.fn, changed)

    return replaced


def on_three_threads(kernel):
    def run(*arguments, **keywords):
        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(kernel, *arguments, **keywords) for _ in range(3)]:
                done.result()

    return run


def patient(wait):
    def run(counter, wanted):
        while tl.atomic_add(counter, 0) < wanted:
            time.sleep(0.001)
        wait(counter, wanted)

    return run


def first_late(function):
    calls = itertools.count()

    def run(*arguments, **keywords):
        if next(calls) == 0:
            time.sleep(2)
        return function(*arguments, **keywords)

    return run


@pytest.mark.skipif(not launch.INTERPRETED, reason="programs of a GPU run at the same time in every test")
@pytest.mark.parametrize("late", ["modulate_rows", "accumulate", "select_row"])
def test_programs_at_the_same_time_wait_for_each_other(late, replace, monkeypatch, generator):
    # One item selects in a whole band, so that one of the three programs is free to run ahead of the other two.
    config = configs.static("encode", configs.INTERPRETER, torch.float16, 20) | {"rows": 16}
    monkeypatch.setattr(encode.launch, "config", lambda *_: config)
    replace(encode.encode_kernel, on_three_threads)
    replace(encode._wait, patient)
    replace(getattr(encode, late), first_late)
    x, W, shift = (torch.randint(-2, 3, (n, 20), generator=generator).half() for n in (53, 100, 1))
    expected = reference.select(((x + shift).double() @ W.double().T).half(), 9)
    values, indices = triton.encode(x, None, shift, None, False, W, None, 9)
    assert torch.equal(indices, expected[1])
    assert torch.equal(values, expected[0])
