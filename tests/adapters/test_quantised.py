"""Quantised transformers: read, edited and learnt from like plain ones, and what is copied of them is what they run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn

from tests.helpers import quantised
from tests.helpers.families import FAMILIES, draw, hooks_of, misfit, pipeline, prepared
from tide.activations import collect
from tide.adapters import adapter_for, tap
from tide.adapters.quantised import dequantised, is_plain, measured
from tide.adapters.weights import linear_of
from tide.editing import Erase, edit
from tide.errors import TideError
from tide.fingerprint import fingerprint, pipeline_fingerprints
from tide.loading import load_adapter
from tide.training import ProgressiveK, TrainConfig, Trainer, build_model


@dataclass(frozen=True)
class Kind:
    """A way to quantise. ``tolerance`` is of the modulation, relative to what it changes; layers of less than
    ``width`` cannot be quantised; ``known`` ones need not be run to be copied."""

    quantise: Callable[[Any, Path], Any]
    tolerance: float = 1e-4
    width: int = 32
    known: bool = True


# Inputs are rounded too, to eight bits where it says so; a CPU multiplies four bits in bfloat16 (2^-9) if it can.
KINDS = {
    "GGUF, 8 bits": Kind(quantised.gguf("Q8_0")),
    "GGUF, 4 bits": Kind(quantised.gguf("Q4_0")),
    "GGUF, bfloat16": Kind(quantised.gguf("BF16")),
    "torchao, 8 bits": Kind(quantised.torchao("Int8WeightOnlyConfig")),
    "torchao, 8 bits and inputs": Kind(quantised.torchao("Int8DynamicActivationInt8WeightConfig"), 1e-2),
    "torchao, 4 bits": Kind(quantised.torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4)),
    "torchao, float8": Kind(quantised.torchao("Float8WeightOnlyConfig")),
    "bitsandbytes, 4 bits": Kind(quantised.four_bits(quant_type="nf4"), 4e-3, width=64),
    "bitsandbytes, 8 bits and inputs": Kind(quantised.eight_bits(6.0), 1e-2),
    "quanto, 8 bits": Kind(quantised.quanto("qint8")),
    "quanto, 4 bits": Kind(quantised.quanto("qint4")),
    "FLUX, float8": Kind(quantised.black_forest("fp8r")),
    "FLUX, 4 bits": Kind(quantised.black_forest("nvfp4")),
    "an unknown one": Kind(quantised.unknown, known=False),
}
#: One with a single stream of tokens, one with two.
NAMES = ("sana", "sd3")
BOTH = [pytest.param(kind, name, id=f"{kind}, {name}") for kind in KINDS for name in NAMES]


def quantised_pipeline(name: str, kind: str, folder: Path) -> Any:
    """The family's pipeline, wide enough, with a quantised copy of its transformer."""
    pipe, chosen = copy.copy(pipeline(name)), KINDS[kind]
    model = copy.deepcopy(pipe.transformer)
    if chosen.width > adapter_for(pipe).d_model:
        times = math.ceil(chosen.width / adapter_for(pipe).d_model)
        wide = {"num_attention_heads", "num_cross_attention_heads", "caption_projection_dim", "cross_attention_dim"}
        config = {key: value * times if key in wide else value for key, value in model.config.items()}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vars(pipe)["transformer"] = type(model).from_config(config)
        model = prepared(pipe).transformer
    vars(pipe)["transformer"] = chosen.quantise(model, folder).eval()
    return pipe


def layers_of(pipe: Any) -> list[nn.Module]:
    """The layers that a quantiser has taken."""
    linear = [module for module in pipe.transformer.modules() if hasattr(module, "in_features")]
    return [module for module in linear if not is_plain(module)]


@pytest.mark.parametrize(("kind", "name"), BOTH)
@torch.no_grad()
def test_taps_and_edits(kind, name, tmp_path):
    pipe = quantised_pipeline(name, kind, tmp_path)
    own, family, seen = adapter_for(pipe), FAMILIES[name], []
    assert len(layers_of(pipe)) > 20
    assert own.dtype == torch.float32
    plain = draw(name, pipe=pipe)
    with tap(own, {1: lambda x, call: seen.append(x)}):
        assert torch.equal(draw(name, pipe=pipe), plain)
    with tap(own, {1: lambda x, call: x.clone()}):
        assert torch.equal(draw(name, pipe=pipe), plain)
    assert {tuple(x.shape) for x in seen} == {(2, math.prod(family.grid), own.d_model)}
    assert all(x.isfinite().all() for x in seen)
    sae = build_model(own, 1, TrainConfig(n_latents=96, k=12, modulation_init="adaln")).eval()
    with edit(pipe, sae, Erase(range(96))) as met:
        assert not torch.allclose(draw(name, pipe=pipe), plain, atol=1e-3)
    assert met.rows
    assert hooks_of(pipe) == 0


@pytest.mark.parametrize(("kind", "name"), BOTH)
@torch.no_grad()
def test_the_copied_modulation_is_that_of_the_blocks(kind, name, tmp_path):
    pipe = quantised_pipeline(name, kind, tmp_path)
    own = adapter_for(pipe)
    before = [own.modulation(block).state_dict() for block in range(own.n_blocks)]
    for block in (0, own.n_blocks - 1):
        assert misfit(pipe, name, block) < KINDS[kind].tolerance
    # Running changes how some keep their weights, and not what is read of them, but for rounding.
    for block, weights in enumerate(before):
        for key, value in own.modulation(block).state_dict().items():
            assert (value - weights[key]).norm() <= KINDS[kind].tolerance * value.norm()


@pytest.mark.parametrize(("kind", "name"), BOTH)
def test_collect_and_train(kind, name, tmp_path):
    pipe = quantised_pipeline(name, kind, tmp_path)
    own, family = adapter_for(pipe), FAMILIES[name]
    config = TrainConfig(
        n_latents=64, k=8, steps=12, batch_tokens=32, log_every=1, progressive_k=ProgressiveK(shape="off")
    )
    size = [side // own.pixels_per_latent for side in family.size]
    latents = torch.randn(2, own.latent_channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        data = [(latents, list(family.prompts))]
        batches = [batch[1] for batch in collect(own, data, [1], token_fraction=1.0, max_sequence_length=20)]
    trainer = Trainer(build_model(own, 1, config), config, tmp_path / "run", progress=False)
    trainer.fit(batches * config.steps)
    assert trainer.history[-1]["mse"] < trainer.history[0]["mse"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].known])
def test_what_is_dequantised_is_what_runs(kind, tmp_path):
    """The weights that a known kind shows, beside those that are measured by running the layer."""
    pipe = quantised_pipeline("sd3", kind, tmp_path)
    # torchao rounds the largest input, which is all there is in a row of the identity, down to 127 / 127.5 of itself.
    tolerance = 5e-3 if KINDS[kind].tolerance > 1e-4 else 1e-5
    for layer in layers_of(pipe):
        weight = dequantised(layer)
        assert weight is not None
        found, bias = measured(layer, "a layer", torch.float32)
        assert weight.shape == (layer.out_features, layer.in_features)
        assert (weight.float() - found).norm() <= tolerance * found.norm()
        torch.testing.assert_close(bias, layer.bias.detach().float(), rtol=tolerance, atol=1e-6)


def test_a_saved_pipeline_is_loaded_as_it_is(tmp_path):
    pipe = pipeline("pixart")
    parts = {**pipe.components, "transformer": KINDS["torchao, 8 bits"].quantise(pipe.transformer, tmp_path / "plain")}
    type(pipe)(**parts).save_pretrained(tmp_path / "pipeline")
    own = load_adapter(str(tmp_path / "pipeline"))
    assert len(layers_of(own.pipe)) > 20
    assert pipeline_fingerprints(own.pipe)["transformer"] == fingerprint([parts["transformer"]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_is_of_the_quantised_weights(kind, tmp_path):
    model = quantised_pipeline("sd3", kind, tmp_path).transformer
    plain = quantised_pipeline("sd3", "an unknown one", tmp_path).transformer if kind == "" else pipeline("sd3")
    found = fingerprint([model])
    assert found == fingerprint([model])
    assert found != fingerprint([plain] if isinstance(plain, nn.Module) else [plain.transformer])
    bias = model.transformer_blocks[1].attn.to_q.bias
    bias.data.add_(1)
    assert fingerprint([model]) != found


CPU = torch.device("cpu")
OFFLOADS = {
    "sequential": lambda model: cpu_offload(model, CPU),
    "groups of blocks": lambda model: apply_group_offloading(
        model, CPU, offload_type="block_level", num_blocks_per_group=1
    ),
    "groups of leaves": lambda model: apply_group_offloading(model, CPU, offload_type="leaf_level"),
}
#: What accelerate itself cannot move: tensors whose class asks for more than their values.
STUCK = ("GGUF, 8 bits", "bitsandbytes, 4 bits", "quanto, 8 bits")
OFFLOADED = [*STUCK, "torchao, 8 bits", "bitsandbytes, 8 bits and inputs", "FLUX, float8", "an unknown one"]


@pytest.mark.parametrize(
    ("kind", "how"),
    [(kind, how) for kind in OFFLOADED for how in OFFLOADS if how != "sequential" or kind not in STUCK],
)
@torch.no_grad()
def test_offloaded_and_quantised(kind, how, tmp_path):
    pipe = quantised_pipeline("sd3", kind, tmp_path)
    plain, expected = draw("sd3", pipe=pipe), adapter_for(pipe).modulation(1).state_dict()
    OFFLOADS[how](pipe.transformer)
    # Also in the middle of a run, which goes on as before.
    with tap(adapter_for(pipe), {1: lambda x, call: adapter_for(pipe).modulation(2) and None}):
        assert torch.equal(draw("sd3", pipe=pipe), plain)
    for key, value in adapter_for(pipe).modulation(1).state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    assert torch.equal(draw("sd3", pipe=pipe), plain)


@pytest.mark.parametrize("fails", [False, True])
def test_groups_of_torchaos_tensors_are_put_back_by_themselves(fails, tmp_path, monkeypatch):
    """They hold several tensors each, of which ``data`` shows none."""
    pipe, moves = quantised_pipeline("sd3", "torchao, 8 bits", tmp_path), []
    OFFLOADS["groups of blocks"](pipe.transformer)
    group = "diffusers.hooks.group_offloading.ModuleGroup"

    def onload(self: Any) -> None:
        moves.append("on")
        if fails:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(f"{group}.onload_", onload)
    monkeypatch.setattr(f"{group}.offload_", lambda self: moves.append("off"))
    adapter_for(pipe).modulation(1)
    assert moves == []  # all is on the device where it is to be
    for module in pipe.transformer.modules():
        if (registry := vars(module).get("_diffusers_hook")) is not None:
            registry.get_hook("group_offloading").group.onload_device = torch.device("meta")
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            adapter_for(pipe).modulation(1)
    else:
        adapter_for(pipe).modulation(1)
    assert moves.count("on") == moves.count("off") > 0


@pytest.mark.parametrize("kind", ["GGUF, 8 bits", "torchao, 8 bits", "bitsandbytes, 4 bits", "FLUX, float8"])
@torch.no_grad()
def test_adapters_on_quantised_layers(kind, tmp_path):
    """Nothing is merged, which would round again: the layers are run as they are."""
    peft = pytest.importorskip("peft", reason="LoRA is peft's")
    pipe = quantised_pipeline("sd3", kind, tmp_path)
    before = adapter_for(pipe).modulation(1).linear.weight.clone()
    targets = r".*(norm1\.linear|timestep_embedder\.linear_[12])"
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    peft.inject_adapter_in_model(config, pipe.transformer).eval()
    assert (adapter_for(pipe).modulation(1).linear.weight - before).norm() > before.norm() / 10
    assert misfit(pipe, "sd3", 1) < KINDS[kind].tolerance


@torch.no_grad()
def test_half_precision(tmp_path, monkeypatch):
    """The dtype of a model whose first floating point numbers are of eight bits; weights as rounded for running."""
    monkeypatch.setattr(quantised, "COMPUTE", torch.bfloat16)
    pipe = copy.copy(pipeline("sd3"))
    model = quantised.black_forest("fp8r")(copy.deepcopy(pipe.transformer).to(torch.bfloat16), tmp_path)
    del model.pos_embed.proj  # in bfloat16, ahead of all others
    vars(pipe)["transformer"] = model
    assert model.dtype == torch.float8_e4m3fn
    assert adapter_for(pipe).dtype == torch.bfloat16
    layer = model.transformer_blocks[0].norm1.linear
    weight, bias = linear_of(layer, "a layer")
    assert weight.dtype == bias.dtype == torch.float32
    assert torch.equal(weight, weight.bfloat16().float())
    found, _ = measured(layer, "a layer", torch.bfloat16)
    # Of 8 bits each: of a weight times 64, and the bias less its share of that.
    assert (found - weight).norm() < 2**-8 * weight.norm()


# -- layers of one's own ---------------------------------------------------------------------------------------------


def filled(layer: Any, seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    return layer.requires_grad_(False)


class Coarse(nn.Linear):
    """Rounds its inputs to multiples of a seventh of the largest one: four bits."""

    def forward(self, x: Tensor) -> Tensor:
        unit = x.abs().amax(-1, keepdim=True).clamp(min=1e-6) / 7
        return super().forward((x / unit).round() * unit)


class Absolute(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


class Elsewhere(nn.Module):
    """Without a weight, and with a width that is wider than a slice of the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features = 300
        self.columns = nn.ParameterList(torch.randn(300, 2, generator=torch.Generator().manual_seed(0)).unbind(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x @ column for column in self.columns], -1) + 3


def test_a_layer_without_a_weight_is_run():
    layer = Elsewhere()
    weight, bias = linear_of(layer, "a layer")
    torch.testing.assert_close(weight, torch.stack([*layer.columns]).detach())
    torch.testing.assert_close(bias, torch.full((2,), 3.0))


@pytest.mark.parametrize("kind", [Coarse, Absolute])
def test_a_layer_that_is_not_linear_is_refused(kind):
    with pytest.raises(TideError, match=rf"^a layer is a {kind.__name__} \(torch.float32\), which is not linear to .*"):
        linear_of(filled(kind(256, 64)), "a layer")


def test_weights_that_are_not_loaded_are_not_run():
    layer = quantised.Unknown(32, 8, device="meta")
    with pytest.raises(TideError, match=r"^the weights of a layer are not loaded"):
        linear_of(layer, "a layer")
    layer = Elsewhere()
    layer.columns = nn.ParameterList(each.to("meta") for each in layer.columns)
    with pytest.raises(TideError, match=r"^a layer is a Elsewhere, whose weights cannot be read"):
        linear_of(layer, "a layer")


def test_a_measured_weight_that_is_not_finite_is_refused():
    layer = filled(quantised.Unknown(32, 8))
    layer.weight.data[1, 2] = torch.inf
    with pytest.raises(TideError, match="a layer"):
        linear_of(layer, "a layer")


def test_weights_that_processes_share_are_refused(process_group):
    """With tensor parallelism; running such a layer would wait for the other processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_module

    mesh = init_device_mesh("cpu", (1,))
    layer = distribute_module(filled(nn.Linear(32, 8)), mesh)
    with pytest.raises(
        TideError, match=r"^the weights of a layer are split among processes \(DTensor\); load .* whole"
    ):
        linear_of(layer, "a layer")


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
