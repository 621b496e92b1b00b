"""TIDEs become folders of other libraries with the same latents and reconstructions, frozen at a timestep."""

from __future__ import annotations

import json

import pytest
import torch

from tests.helpers.converted import ALL, PAIRS, REFUSED, TRANSCODERS, assert_same, tide_of, timestep_of
from tests.helpers.foreign_saes import D, K, N, function_of, rows_apart
from tide.conversion import Origin, read_sae, write_sae
from tide.errors import TideError
from tide.sae import TIDE, Position, TIDEConfig
from tide.sae.modulation import ModulationConfig


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_latents_and_reconstruction(pair, tmp_path):
    library, name = pair
    model, timestep = tide_of(name), timestep_of(name)
    found = write_sae(model, tmp_path, library, at=timestep)
    function = function_of(tmp_path)
    x = rows_apart(function)
    wanted = function(x.double())
    assert found.library == library
    assert_same(model.dense(x, timestep), wanted.z)
    with torch.no_grad():
        assert_same(model(x, timestep), wanted.y)


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_and_back(pair, tmp_path):
    library, name = pair
    model, timestep = tide_of(name), timestep_of(name)
    write_sae(model, tmp_path, library, at=timestep)
    back = read_sae(tmp_path).model
    x = rows_apart(function_of(tmp_path))
    assert Origin.of(back.config) == Origin.of(model.config)
    assert_same(back.dense(x), model.dense(x, timestep))
    assert_same(back(x).detach(), model(x, timestep).detach())


@pytest.mark.parametrize("pair", REFUSED, ids=" ".join)
def test_what_a_library_has_not(pair, tmp_path):
    library, name = pair
    with pytest.raises(TideError, match=r" has no .*; convert "):
        write_sae(tide_of(name), tmp_path / "out", library, at=timestep_of(name))
    assert not (tmp_path / "out").exists()


def test_another_timestep_is_another_sae(tmp_path):
    model = tide_of("topk modulated")
    for timestep in (0, 999):
        write_sae(model, tmp_path / str(timestep), "sparsify", at=timestep)
    x = rows_apart(function_of(tmp_path / "0"))
    first, last = (function_of(tmp_path / each)(x.double()).z for each in ("0", "999"))
    assert float((first - last).abs().max()) > 0.01


def test_what_is_lost(tmp_path):
    prefixes = "that the first 8, 16 latents are dictionaries of their own"
    lost = write_sae(tide_of("batch_topk nested"), tmp_path / "a", "overcomplete").lost
    assert lost[0] == prefixes
    assert any("centre" in each for each in lost)
    assert write_sae(tide_of("batch_topk nested"), tmp_path / "b", "dictionary_learning").lost == ()
    assert write_sae(tide_of("topk modulated"), tmp_path / "c", "saelens", at=20.5).lost == ("all timesteps but 20.5",)


def test_files_say_where_it_was_trained(tmp_path):
    write_sae(tide_of("topk modulated"), tmp_path, "saelens", at=20)
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    expected = {"block": 2, "family": "pixart", "pipeline": "p", "tensor": "output", "target": None, "timestep": 20.0}
    assert metadata["tide"] == expected


@pytest.mark.parametrize("name", [name for name in ALL if timestep_of(name) is None])
def test_a_timestep_of_a_plain_sae_is_refused(name, tmp_path):
    with pytest.raises(TideError, match="does not depend on the timestep; leave the timestep out"):
        write_sae(tide_of(name), tmp_path / "out", "saelens", at=5)


@pytest.mark.parametrize("name", [name for name in ALL if timestep_of(name) is not None])
def test_a_modulated_one_without_a_timestep_is_refused(name, tmp_path):
    with pytest.raises(TideError, match="give the timestep that it is to be frozen at"):
        write_sae(tide_of(name), tmp_path / "out", "sparsify")


def modulated(**options):
    modulation = ModulationConfig(d_model=D, d_embedding=8, n_frequencies=16, **options.pop("modulation", {}))
    return TIDE(TIDEConfig(d_model=D, n_latents=N, k=K, modulation=modulation, **options))


def test_a_layer_norm_cannot_be_folded(tmp_path):
    with pytest.raises(TideError, match=r"LayerNorm of its input .* cannot be folded into weights"):
        write_sae(modulated(pre_norm="layernorm"), tmp_path / "out", "saelens", at=5)


def test_several_timesteps_are_refused(tmp_path):
    with pytest.raises(TideError, match="several are given; give one"):
        write_sae(modulated(), tmp_path / "out", "saelens", at=torch.tensor([5.0, 6.0]))


@pytest.mark.parametrize("timestep", [-1, 1000.5, float("nan"), float("inf")])
def test_a_timestep_that_no_scheduler_has(tmp_path, timestep):
    with pytest.raises(TideError, match="is not the scheduler's; give one from 0 to 1000"):
        write_sae(modulated(), tmp_path / "out", "saelens", at=timestep)
    assert not (tmp_path / "out").exists()


def test_conditioning_belongs_to_the_position(tmp_path):
    model = modulated(modulation={"conditioned": True})
    with pytest.raises(TideError, match="also depends on the model's conditioning"):
        write_sae(model, tmp_path / "out", "saelens", at=5)
    at = Position(5.0, torch.randn(1, 8, generator=torch.Generator().manual_seed(0)))
    lost = write_sae(model, tmp_path / "out", "saelens", at=at).lost
    assert lost[:2] == ("all timesteps but 5", "all conditionings but the one given")
    function = function_of(tmp_path / "out")
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(2))
    wanted = function(x.double())
    apart = wanted.margin > 1e-4
    assert_same(model.dense(x[apart], at), wanted.z[apart])


def test_weights_that_float32_does_not_hold(tmp_path):
    model = tide_of("topk")
    model.activation_scale.fill_(1e-38)
    with torch.no_grad():
        model.W_enc.mul_(1e3)
    with pytest.raises(TideError, match="W_enc is not finite in float32 once scale and modulation are folded in"):
        write_sae(model, tmp_path / "out", "saelens")


def test_a_folder_of_another_sae_is_left_alone(tmp_path):
    tide_of("topk").save_pretrained(tmp_path)
    with pytest.raises(TideError, match=r"holds model\.safetensors already; write to another folder"):
        write_sae(tide_of("topk"), tmp_path, "dictionary_learning")
    assert read_config(tmp_path)["format"] == "tide-sae/1"


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", TRANSCODERS)
def test_transcoders_name_their_module(name, tmp_path):
    library = "sparsify" if name.startswith("topk") else "saelens"
    write_sae(tide_of(name), tmp_path, library, at=timestep_of(name))
    config = read_sae(tmp_path).model.config
    assert (config.target, config.tensor) == ("attention", "attention_input")
