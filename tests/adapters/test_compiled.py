"""Transformers that torch.compile has compiled, in each of the ways in which it can: hooks run, and compiled code is
back afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.helpers.families import FAMILIES, draw, hooks_of, pipeline, prepared
from tide.activations import collect, collect_sampling
from tide.adapters import adapter_for, tap
from tide.editing import Steer, edit
from tide.errors import TideWarning

BLOCK = 2


def whole(pipe: Any, **options: Any) -> None:
    pipe.transformer.compile(**options)


def wrapped(pipe: Any, **options: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, **options)


def blocks(pipe: Any, **options: Any) -> None:
    for block in pipe.transformer.transformer_blocks:
        block.compile(**options)


def one_block(pipe: Any, **options: Any) -> None:
    pipe.transformer.transformer_blocks[BLOCK] = torch.compile(pipe.transformer.transformer_blocks[BLOCK], **options)


def one_in_place(pipe: Any, **options: Any) -> None:
    pipe.transformer.transformer_blocks[BLOCK].compile(**options)


def forward(pipe: Any, **options: Any) -> None:
    pipe.transformer.forward = torch.compile(pipe.transformer.forward, **options)


def both(pipe: Any, **options: Any) -> None:
    blocks(pipe, **options)
    wrapped(pipe, **options)


WAYS = [whole, wrapped, blocks, one_block, one_in_place, forward]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counted:
    """A backend that runs graphs as they are, and counts how many it got and how often they ran."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, module: Any, _inputs: Any) -> Callable[..., Any]:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return module.forward(*args)

        return run


def compiled(way: Callable[..., None], **options: Any) -> Any:
    """The tiny SD3, compiled and drawn with once, so that code without hooks exists."""
    pipe = prepared(build_sd3_like_the_shared_one())
    way(pipe, **{"backend": "eager", **options})
    draw("sd3", pipe=pipe)
    return pipe


def build_sd3_like_the_shared_one() -> Any:
    shared = pipeline("sd3")
    return type(shared)(**{**shared.components, "transformer": copy.deepcopy(shared.transformer)})


STEER = Steer(torch.tensor([1.0]), torch.full((1, 32), 0.5))


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Without and with the edit, not compiled."""
    plain = draw("sd3")
    with edit(pipeline("sd3"), None, STEER, block=BLOCK):
        return plain, draw("sd3")


@pytest.mark.parametrize("way", [*WAYS, pytest.param(both, marks=pytest.mark.slow)])
def test_an_edit_reaches_a_compiled_transformer(images, way):
    """Eagerly; afterwards the compiled code is back, not made again, and edits nothing."""
    plain, edited = images
    counted = Counted()
    pipe = compiled(way, backend=counted)
    graphs, runs = counted.graphs, counted.runs
    assert graphs
    with edit(pipe, None, STEER, block=BLOCK) as met:
        assert torch.equal(draw("sd3", pipe=pipe), edited)
        assert (counted.graphs, counted.runs) == (graphs, runs)
    assert met.rows == 2 * 3
    assert not torch.equal(edited, plain)
    assert torch.equal(draw("sd3", pipe=pipe), plain)
    assert (counted.graphs, counted.runs) == (graphs, 2 * runs)
    assert hooks_of(pipe) == 0


def test_code_stays_eager_until_the_last_of_overlapping_contexts_has_closed(images):
    plain, edited = images
    pipe = compiled(one_in_place)
    first = edit(pipe, None, Steer(torch.tensor([1.0]), torch.zeros(1, 32)), block=BLOCK)
    second = tap(adapter_for(pipe), {BLOCK: lambda x, call: x + 0.5}, "output")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(draw("sd3", pipe=pipe), edited)
    second.__exit__(None, None, None)
    assert pipe.transformer.transformer_blocks[BLOCK]._compiled_call_impl is not None
    assert torch.equal(draw("sd3", pipe=pipe), plain)


@pytest.mark.slow
@pytest.mark.parametrize("way", [whole, wrapped, blocks])
def test_compiling_inside_the_context(images, way):
    """The edit continues, and what was compiled with hooks does not edit after them."""
    plain, edited = images
    pipe = prepared(build_sd3_like_the_shared_one())
    with edit(pipe, None, STEER, block=BLOCK):
        way(pipe, backend="eager")
        assert torch.equal(draw("sd3", pipe=pipe), edited)
    assert torch.equal(draw("sd3", pipe=pipe), plain)


@pytest.mark.parametrize("way", [one_block, one_in_place])
def test_collecting_from_a_compiled_transformer(way):
    pipe, plain = compiled(way), pipeline("sd3")
    family, length = FAMILIES["sd3"], 20
    latents = torch.randn(2, 4, 4, 2, generator=torch.Generator().manual_seed(0))
    data = [(latents, list(family.prompts))]
    size = {"height": family.size[0], "width": family.size[1], "max_sequence_length": length}
    for own, expected in (
        [list(collect(adapter_for(p), data, [BLOCK], max_sequence_length=length)) for p in (pipe, plain)],
        [list(collect_sampling(adapter_for(p), family.prompts, [BLOCK], n_steps=2, **size)) for p in (pipe, plain)],
    ):
        assert torch.equal(own[0][BLOCK].x, expected[0][BLOCK].x)


@pytest.mark.parametrize("tensor", ["attention", "feed_forward"])
@pytest.mark.parametrize("way", [one_block, one_in_place])
def test_parts_of_a_compiled_block(way, tensor):
    pipe, seen = compiled(way), []
    with tap(adapter_for(pipe), {BLOCK: lambda x, call: seen.append(x)}, tensor):
        draw("sd3", pipe=pipe)
    assert len(seen) == 3


def test_modulation_of_a_compiled_transformer():
    pipe = build_sd3_like_the_shared_one()
    wrapped(pipe)
    own, plain = adapter_for(pipe).modulation(BLOCK), adapter_for(pipeline("sd3")).modulation(BLOCK)
    assert torch.equal(own.linear.weight, plain.linear.weight)


def test_an_adapter_made_before_compiling(images):
    """The transformer that it holds is the one inside."""
    pipe, seen = prepared(build_sd3_like_the_shared_one()), []
    own = adapter_for(pipe)
    wrapped(pipe, backend="eager")
    draw("sd3", pipe=pipe)
    with tap(own, {BLOCK: lambda x, call: seen.append(x)}):
        assert torch.equal(draw("sd3", pipe=pipe), images[0])
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["sd3", "dit"], ids=["encodes its prompts", "has no encode_prompt"])
def test_a_transformer_exchanged_inside_the_context_is_told_of(name):
    pipe = copy.copy(pipeline(name))

    def exchange_and_draw() -> None:
        with edit(pipe, None, STEER, block=BLOCK):
            vars(pipe)["transformer"] = another
            draw(name, pipe=pipe)

    another = copy.deepcopy(pipe.transformer)
    with pytest.warns(TideWarning, match="did not call the transformer that is tapped"):
        exchange_and_draw()
    assert not vars(pipe).keys() & {"check_inputs", "encode_prompt", "progress_bar"}


def test_regional_compilation_of_diffusers():
    """Flux: blocks of both kinds."""
    shared, seen = pipeline("flux"), []
    plain = draw("flux")
    pipe = type(shared)(**{**shared.components, "transformer": copy.deepcopy(shared.transformer)})
    pipe.default_sample_size = shared.default_sample_size
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.compile_repeated_blocks(backend="eager")
    draw("flux", pipe=pipe)
    with tap(adapter_for(pipe), dict.fromkeys((1, 2), lambda x, call: seen.append(x))):
        assert torch.equal(draw("flux", pipe=pipe), plain)
    assert len(seen) == 2 * 3
    assert all(block._compiled_call_impl is not None for block in adapter_for(pipe).blocks)


@pytest.mark.slow
def test_inductor(images):
    """The compiled images differ by rounding; the edited one is the eager one."""
    plain, edited = images
    pipe = compiled(blocks, backend="inductor")
    for _ in range(2):
        torch.testing.assert_close(draw("sd3", pipe=pipe), plain, rtol=1e-3, atol=1e-4)
        with edit(pipe, None, STEER, block=BLOCK):
            assert torch.equal(draw("sd3", pipe=pipe), edited)
