"""Transformers with adapters of peft: wrapped or injected, what is copied of the modulation is what runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading

from tests.helpers.families import CORE, draw, hooks_of, misfit, pipeline
from tide.adapters import adapter_for, tap
from tide.adapters.weights import unwrapped
from tide.editing import Erase, edit
from tide.errors import TideError
from tide.training import TrainConfig, build_model

peft = pytest.importorskip("peft")

#: Of every family, the linear layers that the modulation is made of, and those of what is added to the embedding.
TARGETS = (
    r"(.*\.)?(norm1|norm|adaln_single|time_embed)\.linear|.*timestep_embedder\.linear_[12]"
    r"|.*(text|caption)_embedder.*linear_\d"
)


def own_pipeline(name: str) -> Any:
    pipe = copy.copy(pipeline(name))
    vars(pipe)["transformer"] = copy.deepcopy(pipe.transformer)
    return pipe


def lora(**options: Any) -> Any:
    return peft.LoraConfig(
        **{"r": 2, "lora_alpha": 8, "target_modules": TARGETS, "init_lora_weights": False, **options}
    )


def plain(modulation: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in modulation.state_dict().items()}


def moved(found: Any, before: dict[str, torch.Tensor]) -> float:
    return max(float((found.state_dict()[key] - value).abs().max()) for key, value in before.items())


@pytest.mark.parametrize("wrapped", [True, False], ids=["PeftModel", "injected"])
@pytest.mark.parametrize("name", CORE)
def test_the_copied_modulation_has_the_lora(name, wrapped):
    torch.manual_seed(0)
    pipe = own_pipeline(name)
    before = plain(adapter_for(pipe).modulation(0))
    if wrapped:
        vars(pipe)["transformer"] = peft.get_peft_model(pipe.transformer, lora()).eval()
    else:
        peft.inject_adapter_in_model(lora(), pipe.transformer).eval()
    with torch.no_grad():
        assert moved(adapter_for(pipe).modulation(0), before) > 0.05
        # A relative rounding of 1e-7 in each of four products.
        assert misfit(pipe, name, 0) < 1e-4
        assert misfit(pipe, name, adapter_for(pipe).n_blocks - 1) < 1e-4


def two_adapters(model: Any) -> None:
    model.add_adapter(lora(), "first")
    model.add_adapter(lora(r=4), "second")
    model.set_adapters(["first", "second"], [0.5, -1.5])


def one_of_two(model: Any) -> None:
    two_adapters(model)
    model.set_adapters(["second"], [2.0])


def fused(model: Any) -> None:
    model.add_adapter(lora(), "first")
    model.fuse_lora(0.7)


def fused_then_disabled(model: Any) -> None:
    fused(model)
    model.disable_adapters()


def of_a_part_of_the_layers(model: Any) -> None:
    model.add_adapter(lora(target_modules=r".*\.1\.norm1\.linear"))


STATES = {
    "dora": lambda model: model.add_adapter(lora(use_dora=True)),
    "rank-stabilised": lambda model: model.add_adapter(lora(use_rslora=True)),
    "a bias of its own": lambda model: model.add_adapter(lora(lora_bias=True)),
    "two, weighted": two_adapters,
    "one of two": one_of_two,
    "fused": fused,
    "fused, then disabled": fused_then_disabled,
    "of a part of the layers": of_a_part_of_the_layers,
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_adapters_count_as_they_are_set(name, state):
    torch.manual_seed(1)
    pipe = own_pipeline(name)
    STATES[state](pipe.transformer.eval())
    weights = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    adapter_for(pipe).modulation(1)
    after = pipe.transformer.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in weights.items())
    with torch.no_grad():
        assert misfit(pipe, name, 1) < 1e-4


@pytest.mark.parametrize("name", ["sd3", "dit"])
def test_disabled_adapters_are_left_out(name):
    torch.manual_seed(2)
    pipe = own_pipeline(name)
    before = plain(adapter_for(pipe).modulation(1))
    model = peft.get_peft_model(pipe.transformer, lora())
    vars(pipe)["transformer"] = model.eval()
    assert moved(adapter_for(pipe).modulation(1), before) > 0.05
    with model.disable_adapter():
        assert moved(adapter_for(pipe).modulation(1), before) == 0


def test_layers_that_are_trained_as_a_whole():
    """``modules_to_save`` keeps a copy beside the original one."""
    pipe = own_pipeline("sd3")
    config = lora(target_modules=["to_q"], modules_to_save=["norm1.linear"])
    vars(pipe)["transformer"] = model = peft.get_peft_model(pipe.transformer, config).eval()
    before = plain(adapter_for(pipe).modulation(0))
    with torch.no_grad():
        unwrapped(model).transformer_blocks[0].norm1.linear.modules_to_save["default"].weight.mul_(3)
        assert moved(adapter_for(pipe).modulation(0), before) > 0.01
        assert misfit(pipe, "sd3", 0) < 1e-4
        with model.disable_adapter():
            assert moved(adapter_for(pipe).modulation(0), before) == 0


def test_half_precision_weights_are_merged_in_full():
    """The delta is not rounded to the model's bfloat16 first."""
    torch.manual_seed(3)
    pipe = own_pipeline("sd3")
    pipe.transformer.add_adapter(lora())
    exact = adapter_for(pipe).modulation(0)
    pipe.transformer.to(torch.bfloat16)
    rounded = adapter_for(pipe).modulation(0)
    layer = pipe.transformer.transformer_blocks[0].norm1.linear
    (a,), (b,) = layer.lora_A.values(), layer.lora_B.values()
    expected = layer.base_layer.weight.float() + 4 * b.weight.float() @ a.weight.float()
    d = adapter_for(pipe).d_model
    torch.testing.assert_close(rounded.linear.weight, torch.cat([expected[d : 2 * d], expected[:d]]))
    assert not torch.equal(rounded.linear.weight, exact.linear.weight)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_edits_reach_a_wrapped_transformer_and_leave_nothing_behind(name):
    torch.manual_seed(4)
    pipe = own_pipeline(name)
    vars(pipe)["transformer"] = peft.get_peft_model(pipe.transformer, lora()).eval()
    own = adapter_for(pipe)
    assert own.family == name
    with torch.no_grad():
        before, seen = draw(name, pipe=pipe), []
        with tap(own, {1: lambda x, call: seen.append(call)}):
            assert torch.equal(draw(name, pipe=pipe), before)
        sae = build_model(own, 1, TrainConfig(n_latents=96, k=12, modulation_init="adaln")).eval()
        with edit(pipe, sae, Erase(range(96))) as met:
            assert not torch.allclose(draw(name, pipe=pipe), before, atol=1e-3)
    assert len(seen) == 3
    assert met.rows
    assert hooks_of(pipe) == 0


def test_adapters_that_cannot_be_merged_are_named(monkeypatch):
    pipe = own_pipeline("sd3")
    pipe.transformer.add_adapter(lora())
    layer = type(pipe.transformer.transformer_blocks[0].norm1.linear)

    def refuse(*_args, **_kwargs):
        raise NotImplementedError("not this kind")

    monkeypatch.setattr(layer, "merge", refuse)
    with pytest.raises(TideError, match=r"the adapters of the adaLN projection cannot be merged \(not this kind\)"):
        adapter_for(pipe).modulation(0)


@pytest.mark.parametrize("to_disk", [False, True], ids=["accelerate", "groups on disk"])
def test_offloaded_layers_are_merged(to_disk, tmp_path):
    torch.manual_seed(5)
    pipe = own_pipeline("flux")
    pipe.transformer.add_adapter(lora())
    expected = plain(adapter_for(pipe).modulation(2))
    if to_disk:
        apply_group_offloading(
            pipe.transformer,
            torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            offload_to_disk_path=str(tmp_path),
        )
    else:
        cpu_offload(pipe.transformer, torch.device("cpu"))
    assert moved(adapter_for(pipe).modulation(2), expected) == 0
