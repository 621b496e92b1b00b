"""A pipeline's run and a TIDE for one of its blocks, for the tests of edits inside it."""

from __future__ import annotations

import torch

from tide.adapters import adapter_for, tap
from tide.editing import Edit, Place
from tide.sae import TIDE, TIDEConfig

BLOCK, N, K, SILENT = 6, 96, 12, 5
STEPS = 4


def draw(pipe, prompts=("a red cube",), *, guidance=1.0, n_steps=STEPS, **kwargs) -> torch.Tensor:
    n_images = len(prompts) * kwargs.get("num_images_per_prompt", 1)
    return pipe(
        list(prompts),
        num_inference_steps=n_steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(i) for i in range(n_images)],
        output_type="latent",
        use_resolution_binning=False,
        clean_caption=False,
        max_sequence_length=20,
        **{"height": 64, "width": 64, **kwargs},
    ).images


def make_sae(pipe, block: int, **options) -> TIDE:
    """A TIDE with the block's own modulation, made to fire on its activations; latent 5 never does."""
    adapter = adapter_for(pipe)
    seen = []
    with tap(adapter, {block: lambda x, call: seen.append((x.clone(), call.timestep))}):
        draw(pipe)
    modulation = adapter.modulation(block)
    config = TIDEConfig(192, N, K, modulation=modulation.config, family="pixart", block=block, **options)
    sae = TIDE(config, modulation).eval()
    sae.calibrate(torch.cat([x.flatten(0, 1) for x, _ in seen]), torch.cat([t for _, t in seen]))
    with torch.no_grad():
        sae.b_enc[SILENT] = -1e6
    return sae


class Watch(Edit):
    """Changes nothing, and keeps what it was given."""

    def __init__(self) -> None:
        self.places: list[Place] = []

    def latents(self, z, place):
        assert (z > 0).any()
        self.places.append(place)
        return z


def recorded(pipe, block: int = BLOCK, **kwargs) -> list[torch.Tensor]:
    """The block's output at every call of a run, as the next block gets it."""
    seen = []
    module = pipe.transformer.transformer_blocks[block]
    hook = module.register_forward_hook(lambda _m, _a, output: seen.append(output.clone()))
    try:
        draw(pipe, **kwargs)
    finally:
        hook.remove()
    return seen


def hooks_of(pipe) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_hooks_with_kwargs)
        for m in pipe.transformer.modules()
    )


def assert_untouched(pipe, plain) -> None:
    assert hooks_of(pipe) == 0
    assert "encode_prompt" not in vars(pipe)
    assert torch.equal(draw(pipe), plain[1.0])
