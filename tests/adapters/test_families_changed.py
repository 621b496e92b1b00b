"""Every family with a transformer that was compiled, offloaded or given LoRA, and with several images a prompt."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch

from tests.helpers.families import FAMILIES, adapter, draw, pipeline
from tests.helpers.families.parts_inputs import each_family, modulated
from tide.adapters import adapter_for, tap
from tide.editing import Steer, edit

#: Pipelines of diffusers 0.42 that take the number and cannot draw several, without TIDE either.
ONE_ONLY = ("allegro", "cogvideox", "hunyuan_video15")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    each_family(metafunc)


def changed(name: str) -> Any:
    """A pipeline with a transformer of its own."""
    pipe = copy.copy(pipeline(name))
    vars(pipe)["transformer"] = copy.deepcopy(pipe.transformer)
    return pipe


def steer(name: str) -> Steer:
    return Steer(torch.tensor([1.0]), torch.full((1, adapter(name).d_model), 0.5))


def test_several_images_a_prompt(name):
    """The rows of the prompt are those of a run on the prompt alone, an image after the other."""
    own, family = adapter(name), FAMILIES[name]
    taken = inspect.signature(type(own.pipe).__call__).parameters
    names = [each for each in taken if each.startswith("num_") and each.endswith("_per_prompt")]
    if not names:
        pytest.skip(f"{type(own.pipe).__name__} draws one image a prompt")

    def seen(guided: bool) -> list[tuple[torch.Tensor, Any]]:
        found: list[tuple[torch.Tensor, Any]] = []
        options = {**family.unguided, **(family.guided if guided else {}), **family.arguments, names[0]: 2}
        if isinstance(options.get("negative_prompt"), str):
            options["negative_prompt"] = [options["negative_prompt"]]
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        with tap(own, {0: lambda x, call: found.append((x.clone(), call))}):
            own.generate(family.prompts[:1], n_steps=2, generators=generators, **{**family.pixels, **options})
        return found

    if name in ONE_ONLY:
        with pytest.raises((ValueError, RuntimeError), match=r"batch size of 1|is invalid for input"):
            seen(False)
        return
    alone, guided = seen(False), seen(True)
    first = guided[: len(guided) // 2]
    rows, conditional = torch.cat([x for x, _ in first]), torch.cat([call.conditional for _, call in first])
    assert conditional.sum() == 2
    if {"guidance_scale", "true_cfg_scale"} <= family.guided.keys() or own.spec.guidance == "none":
        return  # the embedded scale is another one
    torch.testing.assert_close(rows[conditional], alone[0][0], rtol=1e-4, atol=1e-4)


def test_compiled(name):
    """Edits reach it, and the compiled code is back afterwards."""
    block = adapter(name).n_blocks - 2
    with edit(pipeline(name), None, steer(name), block=block):
        expected = draw(name)
    pipe = changed(name)
    torch.compiler.reset()
    pipe.transformer.compile(backend="eager")
    plain = draw(name, pipe=pipe)
    with edit(pipe, None, steer(name), block=block):
        found = draw(name, pipe=pipe)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(draw(name, pipe=pipe), plain)
    assert pipe.transformer._compiled_call_impl is not None
    torch.compiler.reset()


def test_offloaded(name):
    """By groups of leaves: the same modulation, conditioning and edits, and a no-op edit keeps every bit."""
    pipe, own = changed(name), adapter(name)
    block = own.n_blocks - 2
    if not getattr(pipe.transformer, "_supports_group_offloading", False):
        pytest.skip(f"{type(pipe.transformer).__name__} cannot be offloaded by groups")
    expected = calls(name, pipe, block)
    pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    moved = adapter_for(pipe)
    for found, before in zip(calls(name, pipe, block), expected, strict=True):
        torch.testing.assert_close(found.conditioning, before.conditioning, rtol=0, atol=0)
    if FAMILIES[name].norms:
        states = (each.modulation(block).state_dict() for each in (moved, own))
        torch.testing.assert_close(*states, rtol=0, atol=0)
    plain = draw(name, pipe=pipe)
    with edit(pipe, None, Steer(torch.tensor([1.0]), torch.zeros(1, own.d_model)), block=block):
        assert torch.equal(draw(name, pipe=pipe), plain)
    with edit(pipe, None, steer(name), block=block):
        assert not torch.equal(draw(name, pipe=pipe), plain)


def calls(name: str, pipe: Any, block: int) -> list[Any]:
    found: list[Any] = []
    with tap(adapter_for(pipe), {block: lambda x, call: found.append(call)}):
        draw(name, pipe=pipe, n_steps=2)
    return found


def test_with_lora(name):
    """In every linear layer: what is copied of the modulation is what runs."""
    peft = pytest.importorskip("peft", reason="peft adds LoRA")
    pipe, own = changed(name), adapter(name)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    peft.inject_adapter_in_model(config, pipe.transformer).eval()
    found = adapter_for(pipe)
    for chunk in FAMILIES[name].norms:
        seen = modulated(found, name, 0, chunk)
        torch.testing.assert_close(seen.read, seen.expected, rtol=1e-3, atol=1e-3)
        if not own.kind_of(0).given:
            before = own.modulation(0, chunk).state_dict()
            after = found.modulation(0, chunk).state_dict()
            assert any(not torch.equal(after[key], before[key]) for key in before)
    plain = draw(name, pipe=pipe)
    with edit(pipe, None, steer(name), block=own.n_blocks - 2):
        assert not torch.equal(draw(name, pipe=pipe), plain)
