"""docs/adapters.md: its adapter of Qwen-Image is right on a tiny random one, whose pipeline it never saw."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.adapters import own_modules
from tests.helpers.others import build_qwen_image
from tests.helpers.pages import blocks
from tide.activations import collect
from tide.adapters import adapter_for, tap
from tide.editing import Erase, Scale, edit
from tide.interpretation import record_trajectory
from tide.training import TrainConfig, build_model

PROMPTS = ("a red cube", "a house, far")
#: The tiny VAE makes a latent of 4 x 4 pixels.
SIZE, GRID, STEPS = (32, 16), (4, 2), 3


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Iterator[Any]:
    folder: Path = tmp_path_factory.mktemp("qwen")
    (block,) = (each for each in blocks("docs/adapters.md") if each.file == "qwen_image.py")
    (folder / "qwen_image.py").write_text(block.text)
    with own_modules(folder):
        importlib.import_module("qwen_image")
        yield adapter_for(build_qwen_image())


def drawn(own: Any, *, guided: bool = False, size: tuple[int, int] = SIZE, **options: Any) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    given = {"guidance_scale": 3.0 if guided else 1.0, "height": size[0], "width": size[1], **options}
    return own.generate(PROMPTS, n_steps=STEPS, generators=generators, **given)


def calls_of(own: Any, **options: Any) -> list[tuple[dict[str, Any], torch.Tensor]]:
    found: list[tuple[dict[str, Any], torch.Tensor]] = []
    hook = own.transformer.register_forward_hook(
        lambda _m, args, kwargs, output: found.append((own.arguments(args, kwargs), output[0])), with_kwargs=True
    )
    drawn(own, **options)
    hook.remove()
    return found


def test_it_is_about_a_hundred_lines():
    (block,) = (each for each in blocks("docs/adapters.md") if each.file == "qwen_image.py")
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 120


@pytest.mark.parametrize("block", [0, 1, -1])
@pytest.mark.parametrize("chunk", ["msa", "mlp"])
def test_the_modulation_is_the_blocks(own, block, chunk):
    module, seen = own.blocks[block], {}
    norm, reader = (module.img_norm1, module.attn) if chunk == "msa" else (module.img_norm2, module.img_mlp)
    hooks = [
        norm.register_forward_hook(lambda _m, _a, output: seen.update(normed=output)),
        reader.register_forward_pre_hook(
            lambda _m, args, kwargs: seen.update(read=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        ),
    ]
    with tap(own, {block: lambda x, call: seen.update(call=call)}):
        drawn(own)
    for hook in hooks:
        hook.remove()
    scale, shift = own.modulation(block, chunk)(seen["call"].timestep)
    expected = seen["normed"] * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(seen["read"], expected, rtol=1e-3, atol=1e-3)


def test_denoise_is_the_pipelines_own_call(own):
    calls = calls_of(own)
    text = own.encode_prompts(PROMPTS)
    with torch.no_grad():
        for (given, expected), t in zip(calls, own.pipe.scheduler.timesteps, strict=True):
            latents = own.unpacked(given["hidden_states"], (8, 4))
            torch.testing.assert_close(
                own.denoise(latents, t, text), own.unpacked(expected, (8, 4)), rtol=1e-4, atol=1e-5
            )


def test_timesteps_are_the_schedulers_and_known_before_the_run(own):
    seen = []
    with tap(own, {0: lambda x, call: seen.append(call.timestep)}):
        drawn(own, size=(32, 32))
    torch.testing.assert_close(torch.stack(seen)[:, 0], own.pipe.scheduler.timesteps, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(own.sampling_timesteps(STEPS), own.pipe.scheduler.timesteps)


def test_rows_of_the_prompt_and_their_tokens(own):
    seen = []
    with tap(own, {1: lambda x, call: seen.append((x.clone(), call.conditional.tolist()))}):
        latents = drawn(own, guided=True)
    assert [rows for _, rows in seen] == [[True, True], [False, False]] * STEPS
    assert all(x.shape == (2, GRID[0] * GRID[1], own.d_model) for x, _ in seen)
    assert own.token_grid(*latents.shape[-2:]) == GRID
    alone = []
    with tap(own, {1: lambda x, call: alone.append(x.clone())}):
        drawn(own)
    torch.testing.assert_close(seen[0][0], alone[0])


def test_reference_pictures_are_no_tokens_of_the_image(own):
    """An editing pipeline's call: the picture's tokens follow those of the image."""
    text, seen = own.encode_prompts(PROMPTS), []
    tokens = torch.randn(2, 8 + 6, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), tap(own, {0: lambda x, call: seen.append(x.shape[1]) or x + 1}):
        own.transformer(
            hidden_states=tokens, timestep=torch.tensor([0.5, 0.5]), img_shapes=[[(1, 4, 2), (1, 3, 2)]] * 2, **text
        )
    assert seen == [8]


def test_latents_are_what_the_pipeline_decodes(own):
    latents = drawn(own)
    theirs = own.pipe(
        prompt=list(PROMPTS),
        num_inference_steps=STEPS,
        true_cfg_scale=1.0,
        height=SIZE[0],
        width=SIZE[1],
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
        output_type="pt",
    ).images
    torch.testing.assert_close(own.decode_latents(latents) / 2 + 0.5, theirs, rtol=1e-4, atol=1e-4)
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encoded = own.encode_images(images)
    assert encoded.shape == latents.shape
    raw = own.pipe.vae.encode(images.unsqueeze(2)).latent_dist.mode()
    torch.testing.assert_close(own.decode_latents(encoded), own.pipe.vae.decode(raw).sample[:, :, 0].clamp(-1, 1))


def test_collect_edit_and_trajectory(own):
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (batches,) = collect(own, [(images, list(PROMPTS))], [1], token_fraction=0.5)
    assert batches[1].x.shape == (2 * 2 * GRID[0] * GRID[1] // 2, own.d_model)
    sae = build_model(own, 1, TrainConfig(n_latents=96, k=12)).eval()
    plain = drawn(own, guided=True)
    with edit(own.pipe, sae, Scale(range(96), 1.0)):
        assert torch.equal(drawn(own, guided=True), plain)
    with edit(own.pipe, sae, Erase(range(96))):
        assert not torch.allclose(drawn(own, guided=True), plain, atol=1e-3)
    found = record_trajectory(own, sae, lambda: drawn(own, guided=True))
    torch.testing.assert_close(found.clean[-1], found.final, rtol=1e-3, atol=1e-3)
