"""Weights that are away, wrapped or changed by adapters: what is read of a transformer is what it computes with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, CpuOffload, add_hook_to_module, attach_align_device_hook
from accelerate.utils import send_to_device
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from torch import nn

from tests.helpers.families import CORE, draw, misfit, pipeline
from tide.adapters import adapter_for, run_until, tap
from tide.adapters.weights import present, unwrapped
from tide.editing import Steer, edit
from tide.errors import TideError
from tide.sae.modulation import Modulation
from tide.training import TrainConfig, build_model

CPU = torch.device("cpu")


def own_pipeline(name: str) -> Any:
    """The family's pipeline with a transformer that a test may change."""
    pipe = copy.copy(pipeline(name))
    vars(pipe)["transformer"] = copy.deepcopy(pipe.transformer)
    return pipe


def grouped(level: str) -> Callable[[nn.Module, Path], None]:
    def offload(model: nn.Module, folder: Path) -> None:
        apply_group_offloading(model, CPU, offload_type=level, num_blocks_per_group=2, offload_to_disk_path=str(folder))
        # What is left in memory is uninitialised: make sure that it is wrong.
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)

    return offload


def sequential(model: nn.Module, _: Path) -> None:
    """As ``pipe.enable_sequential_cpu_offload`` does, which takes no CPU."""
    cpu_offload(model, CPU, offload_buffers=bool(model._parameters))


def preloaded(model: nn.Module, _: Path) -> None:
    """Hooks that hold the weights of all of their module's parts."""
    classes = [type(child).__name__ for child in model.children() if not isinstance(child, nn.ModuleList)]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    attach_align_device_hook(
        model, CPU, offload=True, weights_map=weights, offload_buffers=False, preload_module_classes=classes
    )
    add_hook_to_module(model, AlignDevicesHook(io_same_device=True), append=True)


def spread(model: nn.Module) -> dict[str, str]:
    """A ``device_map`` that leaves every other block on the disk."""
    lists = {name: len(child) for name, child in model.named_children() if isinstance(child, nn.ModuleList)}
    blocks = {f"{name}.{i}": "cpu" if i % 2 else "disk" for name, n in lists.items() for i in range(n)}
    others = [
        name for name, _ in [*model.named_children(), *model.named_parameters(recurse=False)] if name not in lists
    ]
    return {**dict.fromkeys(others, "cpu"), **blocks}


OFFLOADS: dict[str, Callable[[Any, Path], Any]] = {
    "whole model": lambda model, _: add_hook_to_module(model, CpuOffload(CPU)),
    "sequential": sequential,
    "sequential, to disk": lambda model, folder: disk_offload(model, str(folder), CPU, offload_buffers=True),
    "sequential, by parents": preloaded,
    "a device_map": lambda model, folder: dispatch_model(
        model, spread(model), "cpu", offload_dir=str(folder), force_hooks=True
    ),
    "groups of blocks, to disk": grouped("block_level"),
    "groups of leaves, to disk": grouped("leaf_level"),
}


def modulations(pipe: Any) -> list[Modulation]:
    own = adapter_for(pipe)
    return [own.modulation(block) for block in range(own.n_blocks)]


def conditionings(pipe: Any, name: str) -> list[torch.Tensor | None]:
    own, seen = adapter_for(pipe), []
    taps = {block: lambda x, call: seen.append(call.conditioning) for block in (0, own.n_blocks - 1)}
    with tap(own, taps):
        draw(name, pipe=pipe, n_steps=2, guided=True)
    return seen


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, Modulation):
            one, other = one.state_dict(), other.state_dict()
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("kind", OFFLOADS)
@pytest.mark.parametrize("name", CORE)
def test_offloaded_weights_are_read_as_they_are(name, kind, tmp_path):
    pipe = own_pipeline(name)
    expected, seen = modulations(pipe), conditionings(pipe, name)
    OFFLOADS[kind](pipe.transformer, tmp_path)
    away = [(tensor.device, tensor.data_ptr()) for tensor in pipe.transformer.parameters()]
    assert_equal(modulations(pipe), expected)
    assert [(tensor.device, tensor.data_ptr()) for tensor in pipe.transformer.parameters()] == away
    if name == "hunyuan" and kind.startswith(("sequential", "groups of leaves")):
        return  # the model itself does not run so: its pooler reads the weights of its parts
    assert_equal(conditionings(pipe, name), seen)
    assert_equal(modulations(pipe), expected)


@pytest.mark.parametrize("kind", [kind for kind in OFFLOADS if kind != "whole model"])
def test_reading_in_the_middle_of_a_run_leaves_the_run_alone(kind, tmp_path):
    pipe = own_pipeline("sd3")
    plain, expected = draw("sd3", pipe=pipe), modulations(pipe)
    OFFLOADS[kind](pipe.transformer, tmp_path)
    with tap(adapter_for(pipe), {1: lambda x, call: assert_equal(modulations(pipe), expected)}):
        assert torch.equal(draw("sd3", pipe=pipe), plain)


@pytest.mark.parametrize("kind", [kind for kind in OFFLOADS if kind != "whole model"])
def test_weights_go_back_where_reading_them_fails(kind, tmp_path):
    model = own_pipeline("flux").transformer
    OFFLOADS[kind](model, tmp_path)
    away = [(tensor.device, tensor.data_ptr()) for tensor in model.parameters()]
    linear = model.transformer_blocks[0].norm1.linear

    def read() -> None:
        with present(model, linear):
            assert linear.weight.device == CPU
            assert linear.weight.isfinite().all()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        read()
    assert [(tensor.device, tensor.data_ptr()) for tensor in model.parameters()] == away


def test_weights_go_back_where_only_some_of_a_group_can_be_brought_in(tmp_path, monkeypatch):
    model = own_pipeline("flux").transformer
    OFFLOADS["groups of blocks, to disk"](model, tmp_path)
    away = [tensor.data_ptr() for tensor in model.parameters()]

    def fails(group: Any) -> None:
        first = next(group.modules[0].parameters())
        first.data = torch.zeros_like(first)
        raise RuntimeError("out of memory")

    monkeypatch.setattr("diffusers.hooks.group_offloading.ModuleGroup.onload_", fails)
    with pytest.raises(RuntimeError, match="out of memory"), present(model, model.transformer_blocks[0]):
        pass
    assert [tensor.data_ptr() for tensor in model.parameters()] == away


@pytest.mark.parametrize("name", ["sana", "flux"])
def test_a_transformer_loaded_over_several_devices(name, tmp_path):
    pipe, seen = own_pipeline(name), []
    plain = draw(name, pipe=pipe)
    pipe.transformer.save_pretrained(tmp_path)
    where = spread(pipe.transformer)
    vars(pipe)["transformer"] = type(pipe.transformer).from_pretrained(
        tmp_path, device_map=where, offload_folder=str(tmp_path / "disk")
    )
    own = adapter_for(pipe)
    assert own.device == CPU
    assert own.dtype == torch.float32
    assert {parameter.is_meta for parameter in own.transformer.parameters()} == {True, False}
    with torch.no_grad(), tap(own, {block: lambda x, call: seen.append(x) for block in range(own.n_blocks)}):
        assert torch.equal(draw(name, pipe=pipe), plain)
    assert {x.device for x in seen} == {CPU}
    steer = Steer(torch.tensor([1.0]), torch.linspace(-3, 3, own.d_model)[None])
    with torch.no_grad(), edit(pipe, None, steer, block=0) as met:
        assert not torch.allclose(draw(name, pipe=pipe), plain, atol=1e-3)
    assert met.rows
    assert misfit(pipe, name, 0) < 1e-4


@pytest.mark.parametrize("name", ["sana", "flux"])
def test_a_tap_is_called_on_the_device_of_its_block(name):
    """Where that is another one than the transformer's first; here one that computes nothing."""
    pipe, calls = own_pipeline(name), []
    own = adapter_for(pipe)
    block = own.blocks[1].to("meta")

    def move(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return send_to_device(args, "meta"), send_to_device(kwargs, "meta")

    block.register_forward_pre_hook(move, with_kwargs=True)

    def keep(x: torch.Tensor, call: Any) -> None:
        calls.append((x, call))

    with torch.no_grad():
        run_until(own, {1: keep}, lambda: draw(name, pipe=pipe), "attention", inputs=True)
    ((x, call),) = calls
    given = [each for each in (x, call.timestep, call.conditioning, call.inputs) if each is not None]
    assert {each.device.type for each in given} == {"meta"}
    assert call.conditional.device == CPU


def store_in_eight_bits(model: nn.Module) -> None:
    """All of its layers, also those that ``enable_layerwise_casting`` leaves out."""
    apply_layerwise_casting(model, torch.float8_e4m3fn, torch.float32, None, (nn.LayerNorm,))


@pytest.mark.parametrize("name", ["flux", "sana", "pixart", "lumina_next"])
def test_weights_stored_smaller_than_they_are_computed_in(name):
    """Layerwise casting: the model computes in float32 with weights that were rounded to eight bits."""
    pipe, rounded = own_pipeline(name), own_pipeline(name)
    store_in_eight_bits(pipe.transformer)
    for small, whole in zip(pipe.transformer.parameters(), rounded.transformer.parameters(), strict=True):
        whole.data = small.data.float()
    assert adapter_for(pipe).dtype == torch.float32
    assert_equal(modulations(pipe), modulations(rounded))
    assert_equal(conditionings(pipe, name), conditionings(rounded, name))


def test_sizes_are_embedded_in_what_the_model_computes_in(alpha_with_sizes):
    """PixArt's size embedders may be stored in eight bits, their input may not."""
    pipe = copy.copy(alpha_with_sizes)
    vars(pipe)["transformer"] = copy.deepcopy(pipe.transformer)
    own = adapter_for(pipe)
    text, seen = own.encode_prompts(["a tree"]), []

    def conditioning() -> torch.Tensor:
        with torch.no_grad(), tap(own, {0: lambda x, call: seen.append(call.conditioning)}):
            own.denoise(torch.zeros(1, 4, 8, 8), 500.0, text)
        return seen.pop()

    before = conditioning()
    store_in_eight_bits(pipe.transformer)
    after = conditioning()
    # e4m3 has three bits after the point: a weight is off by at most a sixteenth of itself.
    assert 0 < float((after - before).norm() / before.norm()) < 1 / 8


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda linear: setattr(linear, "weight", nn.Parameter(linear.weight.to("meta"))), "not loaded"),
        (lambda linear: linear.weight.data.view(-1)[3].fill_(torch.nan), "are not finite"),
        (lambda linear: linear.bias.data.view(-1)[0].fill_(torch.inf), "are not finite"),
        (lambda linear: vars(linear)["_parameters"].update(weight=Packed(linear.weight)), r"quantised.*\(Packed\)"),
        (lambda linear: linear.register_parameter("weight", whole_numbers(linear.weight)), r"quantised.*int8"),
        (lambda linear: linear.register_parameter("weight", nn.Parameter(linear.weight.view(-1))), "a shard"),
        (lambda linear: vars(linear)["_parameters"].pop("weight"), "is a Linear, whose weights cannot be read"),
    ],
    ids=[
        "on the meta device",
        "nan",
        "infinite bias",
        "of a quantiser's type",
        "whole numbers",
        "flattened by FSDP",
        "no weight",
    ],
)
@pytest.mark.parametrize("which", ["adaLN", "timestep"])
def test_weights_that_cannot_be_read_are_an_error_in_one_line(change, error, which):
    pipe = own_pipeline("sd3")
    model = pipe.transformer
    embedder = model.time_text_embed.timestep_embedder
    change(model.transformer_blocks[0].norm1.linear if which == "adaLN" else embedder.linear_2)
    with pytest.raises(TideError, match=error) as raised:
        build_model(adapter_for(pipe), 0, TrainConfig(n_latents=64, k=4))
    assert "\n" not in str(raised.value)


class Packed(nn.Parameter):
    """As quantisers' own parameters are: not what they are named, and of no use to a plain layer."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            raise NotImplementedError("linear")
        return super().__torch_function__(func, types, args, kwargs or {})


def whole_numbers(like: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(torch.zeros(like.shape, dtype=torch.int8), requires_grad=False)


def test_a_table_that_is_not_finite_is_an_error():
    pipe = own_pipeline("sana")
    pipe.transformer.transformer_blocks[1].scale_shift_table.data[0, 0] = torch.nan
    adapter_for(pipe).modulation(0)
    with pytest.raises(TideError, match="the weights of a block's table are not finite"):
        adapter_for(pipe).modulation(1)


def test_weights_in_eight_bits_without_a_dtype_to_compute_in_are_an_error():
    pipe = own_pipeline("sd3")
    pipe.transformer.to(torch.float8_e4m3fn)
    with pytest.raises(TideError, match="float8_e4m3fn, which is a storage format only"):
        adapter_for(pipe).dtype  # noqa: B018


# -- wrappers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_transformer_inside_wrappers_is_found(process_group):
    pipe = own_pipeline("dit")
    model, before = pipe.transformer, modulations(pipe)
    distributed = nn.parallel.DistributedDataParallel(model.requires_grad_())
    for wrapped in (torch.compile(model), distributed, torch.compile(distributed)):
        assert unwrapped(wrapped) is model
        vars(pipe)["transformer"] = wrapped
        assert adapter_for(pipe).transformer is model
        assert_equal(modulations(pipe), before)


def test_a_transformer_in_parts_on_several_devices_is_refused():
    pipe = own_pipeline("dit")
    vars(pipe)["transformer"] = nn.DataParallel(pipe.transformer)
    with pytest.raises(TideError, match="in DataParallel has its weights or rows split"):
        adapter_for(pipe)
