"""Pipelines of Flux 2, Qwen-Image, Z-Image, Chroma and FIBO that draw from pictures, and two images of a prompt."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers.families import FAMILIES, adapter
from tests.helpers.families.parts_pictures import OF_FAMILIES, picture_pipeline
from tide.adapters import Adapter, adapter_for, registry, tap
from tide.adapters.pipelines import SUPPORTED
from tide.editing import Erase, Scale, edit
from tide.errors import TideError
from tide.training import TrainConfig, build_model

FAMILY_OF = {name: spec.family for spec in registry.specs() if spec.family in OF_FAMILIES for name in spec.pipelines}
#: Classes that put reference pictures behind the image.
WITH_REFERENCES = (
    "Flux2KleinInpaintPipeline",
    "Flux2KleinPipeline",
    "QwenImageEditInpaintPipeline",
    "QwenImageEditPipeline",
    "BriaFiboEditPipeline",
)
PICTURES = sorted({name for name in FAMILY_OF if any(each in name for each in ("2Img", "Inpaint", "Control", "Edit"))})
STEPS = 3


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """Qwen-Image-Edit enlarges its pictures to an area that a tiny model need not draw."""
    for module, found in (("edit", (16, 32, None)), ("edit_inpaint", (16, 32, None)), ("edit_plus", (16, 32))):
        path = f"diffusers.pipelines.qwenimage.pipeline_qwenimage_{module}.calculate_dimensions"
        monkeypatch.setattr(path, lambda _area, _ratio, found=found: found)


def noise(width: int, height: int) -> Image.Image:
    values = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def drawn(pipe: Any, *, guided: bool = True, n_images: int = 1, **changes: Any) -> torch.Tensor:
    name, family = type(pipe).__name__, FAMILIES[adapter_for(pipe).family]
    taken = inspect.signature(type(pipe).__call__).parameters
    prompts = family.prompts[: 1 if "EditPlus" in name else 2]
    if name == "BriaFiboEditPipeline":
        prompts = tuple(f'{{"edit_instruction": "{prompt}"}}' for prompt in prompts)
    height, width = family.size
    mask: Any = Image.new("L", (width, height))
    mask.paste(255, (0, 0, width, height // 2))
    if name == "ZImageControlNetInpaintPipeline":  # it repeats a picture for every prompt, and not a mask
        mask = [mask] * len(prompts)
    pictures = {each: mask if "mask" in each else noise(width, height) for each in SUPPORTED[name]}
    arguments = {**family.unguided, **(family.guided if guided else {}), **family.arguments, "strength": 1.0}
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
    given = {**family.pixels, **arguments, **pictures, **changes, "num_images_per_prompt": n_images}
    given["num_images_per_prompt"] = n_images
    return adapter_for(pipe).generate(
        prompts,
        n_steps=STEPS,
        guidance_scale=given.pop("guidance_scale", 1.0),
        generators=[torch.Generator().manual_seed(i) for i in range(len(prompts) * n_images)],
        **{name: value for name, value in given.items() if name in taken},
    )


def rows_of(own: Adapter, block: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The image tokens of the calls of the first step, and which rows are the prompts'."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(x, call):
        assert call.grid == FAMILIES[own.family].grid
        seen.append((x.clone(), call.conditional))

    with tap(own, {block: keep}):
        latents = drawn(own.pipe, **options)
    assert latents.shape[1] == own.latent_channels
    assert own.token_grid(*latents.shape[2:]) == FAMILIES[own.family].grid
    rows, conditional = zip(*seen[: len(seen) // STEPS], strict=True)
    return torch.cat(rows), torch.cat(conditional)


@pytest.mark.parametrize("name", PICTURES)
def test_rows_are_the_prompts_and_tokens_are_the_images(name):
    own = adapter_for(picture_pipeline(name, FAMILY_OF[name]))
    alone, everywhere = rows_of(own, own.n_blocks - 2, guided=False)
    rows, conditional = rows_of(own, own.n_blocks - 2)
    assert everywhere.all()
    assert len(rows) == 2 * len(alone)
    torch.testing.assert_close(rows[conditional], alone, rtol=1e-4, atol=1e-4)
    assert (rows[~conditional] - alone).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_edits_reach_the_image_and_no_op_edits_leave_its_bits(name):
    pipe = picture_pipeline(name, FAMILY_OF[name])
    own = adapter_for(pipe)
    sae = build_model(own, own.n_blocks - 2, TrainConfig(n_latents=96, k=12, modulation_init="adaln")).eval()
    plain = drawn(pipe)
    assert plain.isfinite().all()
    with edit(pipe, sae, Scale(range(96), 1.0), branch="both"):
        assert torch.equal(drawn(pipe), plain)
    with edit(pipe, sae, Erase(range(96)), branch="conditional") as met:
        assert not torch.equal(drawn(pipe), plain)
    assert met.rows


@pytest.mark.parametrize("name", WITH_REFERENCES)
@pytest.mark.parametrize("block", [0, -1])
def test_reference_pictures_are_not_edited(name, block):
    """What a block returns is edited at the image's tokens; those of text and references keep their bits."""
    own = adapter_for(picture_pipeline(name, FAMILY_OF[name]))
    # Flux 2 takes no smaller ones.
    references = {} if SUPPORTED[name] else {"image": noise(64, 64)}
    n_tokens = FAMILIES[own.family].grid[0] * FAMILIES[own.family].grid[1]
    before, after = [], []
    module = own.hook_module(own.resolve_block(block))
    first = module.register_forward_hook(lambda _m, _a, output: before.append(_joined(output)))
    with tap(own, {block: lambda x, call: x + 1}):
        second = module.register_forward_hook(lambda _m, _a, output: after.append(_joined(output)))
        drawn(own.pipe, guided=False, **references)
    first.remove()
    second.remove()
    changed = (after[0] - before[0]).abs().amax((0, 2)) > 0.5
    assert int(changed.sum()) == n_tokens
    start = int(changed.nonzero()[0])
    assert changed[start : start + n_tokens].all()
    assert changed.shape[0] - start >= 2 * n_tokens  # references follow the image


def _joined(output: Any) -> torch.Tensor:
    return (torch.cat(output, dim=1) if isinstance(output, tuple) else output).clone()


@pytest.mark.parametrize("family", OF_FAMILIES)
def test_rows_of_two_images_of_each_prompt(family):
    own = adapter(family)
    alone, _ = rows_of(own, own.n_blocks - 2, guided=False, n_images=2)
    rows, conditional = rows_of(own, own.n_blocks - 2, n_images=2)
    assert (len(alone), len(rows), int(conditional.sum())) == (4, 8, 4)
    torch.testing.assert_close(rows[conditional], alone, rtol=1e-4, atol=1e-4)
    assert (rows[~conditional] - alone).abs().max() > 1e-4


def test_qwen_image_edit_encodes_no_prompts_without_a_picture():
    own = adapter_for(picture_pipeline("QwenImageEditPipeline", "qwen_image"))
    with pytest.raises(TideError, match="QwenImageEditPipeline reads prompts together with a picture; collect along"):
        own.encode_prompts(["a red cube"])
