"""Taps: what they see, what they change, and that they go away."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.helpers.adapters import own_modules
from tide.adapters import adapter_for, register, run_until, tap
from tide.adapters.families.pixart import PixArtAdapter
from tide.errors import TideError

CALL = {
    "use_resolution_binning": False,
    "clean_caption": False,
    "output_type": "latent",
    "num_inference_steps": 3,
}
MODULES = {"output": lambda b: b, "attention": lambda b: b.attn1, "feed_forward": lambda b: b.ff}


def n_hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def run(pipe, **kwargs):
    return pipe("a red cube, far", generator=torch.Generator().manual_seed(0), **{**CALL, **kwargs}).images


@pytest.mark.parametrize("tensor", ["output", "attention", "feed_forward"])
def test_sees_what_a_plain_hook_sees(alpha, tensor):
    adapter = adapter_for(alpha)
    plain, tapped = {2: [], 6: []}, {2: [], 6: []}
    handles = [
        MODULES[tensor](adapter.blocks[i]).register_forward_hook(lambda _m, _a, out, i=i: plain[i].append(out))
        for i in plain
    ]
    with tap(adapter, {i: lambda x, call, i=i: tapped[i].append(x) for i in (2, 6)}, tensor):
        run(alpha)
    for handle in handles:
        handle.remove()
    for i in plain:
        assert len(tapped[i]) == 3
        for seen, expected in zip(tapped[i], plain[i], strict=True):
            assert seen.shape == (2, 64, 192)
            assert seen is expected


@pytest.mark.parametrize("tensor", ["output", "attention", "feed_forward"])
def test_a_no_op_leaves_the_latents_bit_identical(alpha, tensor):
    adapter = adapter_for(alpha)
    expected = run(alpha)
    with tap(adapter, dict.fromkeys(range(8), lambda x, call: None), tensor):
        assert torch.equal(run(alpha), expected)
    with tap(adapter, dict.fromkeys(range(8), lambda x, call: x.clone()), tensor):
        assert torch.equal(run(alpha), expected)
    with tap(adapter, {}):
        assert torch.equal(run(alpha), expected)


def test_a_replacement_reaches_the_next_block(alpha):
    adapter = adapter_for(alpha)
    seen = []
    handle = adapter.blocks[4].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with tap(adapter, {3: lambda x, call: torch.full_like(x, 2.0, dtype=torch.float64)}):
        changed = run(alpha, num_inference_steps=2)
    handle.remove()
    assert all(torch.equal(x, torch.full_like(x, 2.0)) and x.dtype == torch.float32 for x in seen)
    assert not torch.equal(changed, run(alpha, num_inference_steps=2))


def test_calls_carry_the_schedulers_timesteps(alpha, alpha_with_sizes):
    seen = []
    with tap(adapter_for(alpha), {0: lambda x, call: seen.append(call)}):
        run(alpha, num_inference_steps=7)
    assert [call.timestep.tolist() for call in seen] == [[float(t)] * 2 for t in alpha.scheduler.timesteps]
    assert all(call.conditioning is None and call.batch_size == 2 for call in seen)
    with tap(adapter_for(alpha_with_sizes), {0: lambda x, call: seen.append(call)}):
        run(alpha_with_sizes, height=64, width=64, guidance_scale=1.0)
    assert seen[-1].conditioning.shape == (1, 48)


@pytest.mark.parametrize("tensor", ["attention", "feed_forward"])
def test_inputs_are_what_a_plain_hook_sees(alpha, tensor):
    """Of the rows that a call takes as well."""
    adapter, plain, calls = adapter_for(alpha), [], []
    handle = MODULES[tensor](adapter.blocks[2]).register_forward_pre_hook(lambda _m, args: plain.append(args[0]))
    with tap(adapter, {2: lambda x, call: calls.append(call)}, tensor, inputs=True):
        run(alpha)
    handle.remove()
    assert len(plain) == len(calls) == 3
    assert all(call.inputs is expected for call, expected in zip(calls, plain, strict=True))
    assert torch.equal(calls[0].take(calls[0].conditional).inputs, plain[0][1:])


def test_only_modules_have_inputs(alpha):
    for tensor in ("output", "feed_forward_input"):
        with pytest.raises(TideError, match=f"^{tensor} has no input to read beside it; use attention or feed_forward"):
            with tap(adapter_for(alpha), {2: lambda x, call: None}, tensor, inputs=True):
                pass


def test_inputs_that_an_adapter_does_not_find(alpha, monkeypatch):
    monkeypatch.setattr(PixArtAdapter, "image_tokens", lambda self, output, tensor="output": output[0])
    with pytest.raises(
        TideError, match=r"^the adapter of pixart does not find the image tokens in feed_forward_input; let its image_"
    ):
        with tap(adapter_for(alpha), {2: lambda x, call: None}, "feed_forward_input"):
            run(alpha)


@pytest.mark.parametrize("tensor", ["output", "attention", "feed_forward"])
def test_run_until_stops_after_the_last_tapped_block(alpha, tensor):
    adapter = adapter_for(alpha)
    ran, seen = [], []
    handles = [
        block.register_forward_pre_hook(lambda _m, _a, i=i: ran.append(i)) for i, block in enumerate(adapter.blocks)
    ]
    run_until(adapter, {i: lambda x, call, i=i: seen.append(i) for i in (4, 1)}, lambda: run(alpha), tensor)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 2, 3, 4]
    assert seen == [1, 4]
    assert n_hooks(alpha.transformer) == 0


@pytest.mark.parametrize("where", ["body", "tap"])
def test_hooks_go_away_after_an_exception(alpha, where):
    def fail(x, call):
        raise RuntimeError("inside")

    def failing_use():
        with tap(adapter_for(alpha), {3: fail, 5: lambda x, call: None}):
            assert n_hooks(alpha.transformer) == 4
            if where == "tap":
                run(alpha)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        failing_use()
    assert n_hooks(alpha.transformer) == 0


def test_run_until_passes_other_exceptions_on(alpha):
    def fail(x, call):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_until(adapter_for(alpha), {3: fail}, lambda: run(alpha))
    assert n_hooks(alpha.transformer) == 0


def test_bad_taps(alpha):
    adapter = adapter_for(alpha)

    def nothing(x, call):
        return None

    for match, taps, kwargs in [
        (r"block 12 does not exist; this transformer has blocks 0\.\.7", {12: nothing}, {}),
        ("block 6 is tapped twice", {6: nothing, "penultimate": nothing}, {}),
        (
            "tensor 'mlp' is unknown; use one of output, attention, feed_forward",
            {6: nothing},
            {"tensor": "mlp"},
        ),
        ("no block to stop after", {}, {"stop_after": True}),
    ]:
        with pytest.raises(TideError, match=match), tap(adapter, taps, **kwargs):
            pass
    assert n_hooks(alpha.transformer) == 0
    with (
        pytest.raises(
            TideError, match=r"replacement for block 3 has shape \[2, 64, 1\]; its tokens have \[2, 64, 192\]"
        ),
        tap(adapter, {3: lambda x, call: x[..., :1]}),
    ):
        run(alpha)


class Joint(nn.Module):
    """A transformer whose blocks return (text, image), as those of SD3 and Flux do."""

    class Block(nn.Module):
        def forward(self, text, image):
            return text + 1, image * 2

    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, hidden_states, encoder_hidden_states, timestep):
        text, image = encoder_hidden_states, hidden_states
        for block in self.transformer_blocks:
            text, image = block(text, image)
        return text, image


class JointAdapter(PixArtAdapter):
    family = "joint"

    def image_tokens(self, output, tensor="output"):
        return output[1]

    def with_image_tokens(self, output, x, tensor="output"):
        return output[0], x

    def embedding_of(self, block):
        return None

    def grid_of(self, args, kwargs):
        return None


def test_tuple_outputs(tmp_path):
    model = Joint()
    with own_modules(tmp_path):
        register(Joint)(JointAdapter)
        adapter = adapter_for(SimpleNamespace(transformer=model))
    seen = []
    with tap(adapter, {1: lambda x, call: seen.append(call.timestep) or x + 10}):
        text, image = model(torch.ones(2, 4, 3), torch.zeros(2, 5, 3), torch.tensor(7))
    assert torch.equal(text, torch.full((2, 5, 3), 3.0))
    assert torch.equal(image, torch.full((2, 4, 3), 28.0))  # ((1 * 2 * 2) + 10) * 2
    assert seen[0].tolist() == [7.0, 7.0]


def test_offloaded_weights_move_before_the_conditioning_is_made(alpha, monkeypatch):
    """accelerate's hook moves them inside the call, the conditioning is read before it."""
    adapter, order = adapter_for(alpha), []

    class Offload:
        def pre_forward(self, module, *args, **kwargs):
            order.append("moved")
            return args, kwargs

    monkeypatch.setattr(alpha.transformer, "_hf_hook", Offload(), raising=False)
    monkeypatch.setattr(type(adapter), "conditioning_of", lambda *given: order.append("conditioning"))
    with tap(adapter, {2: lambda x, call: None}):
        run(alpha)
    assert order == ["moved", "conditioning"] * 3


def test_arguments_are_replaced_before_the_pass(alpha):
    """Whether the pipeline passes them by name or by position; what is asked sees the rows of the prompt."""
    adapter, seen, text = adapter_for(alpha), [], []

    def before(arguments, conditional, timestep):
        seen.append((conditional.tolist(), timestep.tolist()))
        return {"encoder_hidden_states": arguments["encoder_hidden_states"] + 1}

    latents = torch.zeros(2, 4, 8, 8)
    given = adapter.encode_prompts(["a", "b"])
    states = given["encoder_hidden_states"]
    module = alpha.transformer.caption_projection
    handle = module.register_forward_pre_hook(lambda _, args: text.append(args[0].clone()))
    try:
        with tap(adapter, {}, before=before):
            adapter.denoise(latents, 500.0, given)
            alpha.transformer(latents, states, timestep=torch.tensor([500.0, 500.0]), return_dict=False)
    finally:
        handle.remove()
    assert all(torch.equal(each, states + 1) for each in text)
    assert seen == [([True, True], [500.0, 500.0])] * 2
