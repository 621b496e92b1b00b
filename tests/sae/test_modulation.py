"""The modulation equals the norm output of the very block it was copied from."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch

from tide.adapters import adapter_for, tap
from tide.errors import TideError
from tide.sae.modulation import Modulation, ModulationConfig

SMALL = ModulationConfig(d_model=6, d_embedding=10, n_frequencies=8)


def norm_input_and_output(pipe, block: int, chunk: str):
    """Runs the pipeline's transformer on two rows at two timesteps; what the block's norm takes and what the
    attention (or the feed-forward) behind it is given, with the call."""
    adapter = adapter_for(pipe)
    module: Any = adapter.blocks[block]
    seen: dict[str, Any] = {}
    norm, reader = (module.norm1, module.attn1) if chunk == "msa" else (module.norm2, module.ff)
    hooks = [
        norm.register_forward_hook(lambda _m, _a, output: seen.update(normed=output)),
        reader.register_forward_pre_hook(lambda _m, args: seen.update(read=args[0])),
    ]
    text = adapter.encode_prompts(["a red cube", "a tree, far"], 20)
    latents = torch.randn(2, 4, 16, 8, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), tap(adapter, {block: lambda x, call: seen.update(call=call)}):
            adapter.denoise(latents, torch.tensor([951, 30]), text)
    finally:
        for hook in hooks:
            hook.remove()
    return adapter, seen


@pytest.mark.parametrize("chunk", ["msa", "mlp"])
@pytest.mark.parametrize("name", ["alpha", "alpha_with_sizes", "sigma"])
def test_equals_the_blocks_own_norm(request, name, chunk):
    adapter, seen = norm_input_and_output(request.getfixturevalue(name), 1, chunk)
    call = seen["call"]
    assert (call.conditioning is not None) == (name == "alpha_with_sizes")
    with torch.no_grad():
        scale, shift = adapter.modulation(1, chunk)(call.timestep, call.conditioning)
    assert scale.shape == shift.shape == (2, adapter.d_model)
    assert scale.dtype == torch.float32
    expected = seen["normed"] * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(seen["read"], expected, rtol=1e-5, atol=1e-5)
    # The two timesteps matter, so that agreement says something.
    assert (scale[0] - scale[1]).abs().max() > 1e-3


def test_next_block(alpha):
    adapter = adapter_for(alpha)
    timestep = torch.tensor([500.0])
    torch.testing.assert_close(
        adapter.modulation(2, next_block=True)(timestep), adapter.modulation(3)(timestep), rtol=0, atol=0
    )
    with pytest.raises(TideError, match="block 7 is the last one"):
        adapter.modulation(7, next_block=True)


def test_config_rebuilds_it_without_the_model(alpha_with_sizes):
    original = adapter_for(alpha_with_sizes).modulation(0)
    config = ModulationConfig(**json.loads(json.dumps(asdict(original.config))))
    copy = Modulation(config)
    copy.load_state_dict(original.state_dict())
    timestep, conditioning = torch.tensor([10.0, 900.5]), torch.randn(2, 48)
    torch.testing.assert_close(copy(timestep, conditioning), original(timestep, conditioning), rtol=0, atol=0)


def test_parameters_are_a_copy_in_fp32(alpha):
    modulation = adapter_for(alpha).modulation(0)
    assert {p.dtype for p in modulation.parameters()} == {torch.float32}
    own = {p.data_ptr() for p in modulation.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in alpha.transformer.parameters())


@pytest.mark.parametrize("missing", ["scale", "shift"])
def test_a_missing_half_is_zeros_and_the_other_stays(missing):
    config = ModulationConfig(6, 10, 8, has_scale=missing != "scale", has_shift=missing != "shift")
    modulation = Modulation.random(config, torch.Generator().manual_seed(0))
    assert modulation.linear.out_features == 6
    scale, shift = modulation(torch.tensor([3.0]))
    zero, other = (scale, shift) if missing == "scale" else (shift, scale)
    assert not zero.any()
    assert other.any()
    with pytest.raises(TideError, match="needs a scale or a shift"):
        ModulationConfig(6, 10, has_scale=False, has_shift=False)


def test_random_is_deterministic_and_depends_on_the_timestep():
    first, second = (Modulation.random(SMALL, torch.Generator().manual_seed(5)) for _ in range(2))
    scale, shift = first(torch.tensor([1.0, 999.0]))
    torch.testing.assert_close((scale, shift), second(torch.tensor([1.0, 999.0])), rtol=0, atol=0)
    assert not torch.equal(scale[0], scale[1])


def test_timestep_factor_multiplies_the_timestep():
    one = Modulation(SMALL)
    thousand = Modulation(ModulationConfig(6, 10, 8, timestep_factor=1000.0))
    thousand.load_state_dict(one.state_dict())
    torch.testing.assert_close(thousand(torch.tensor([0.25])), one(torch.tensor([250.0])))


def test_stays_fp32_under_autocast():
    modulation = Modulation(SMALL)
    expected = modulation(torch.tensor([951.0]))
    with torch.autocast("cpu", torch.bfloat16):
        found = modulation(torch.tensor([951.0]))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_gradients_reach_every_parameter():
    modulation = Modulation(SMALL)
    scale, shift = modulation(torch.tensor([7.0]))
    (scale.sum() + 2 * shift.square().sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in modulation.parameters())


def test_conditioning_is_asked_for_and_refused():
    conditioned = Modulation(ModulationConfig(6, 10, 8, conditioned=True))
    with pytest.raises(TideError, match="pass conditioning="):
        conditioned(torch.tensor([1.0]))
    with pytest.raises(TideError, match="leave conditioning out"):
        Modulation(SMALL)(torch.tensor([1.0]), torch.zeros(1, 10))
