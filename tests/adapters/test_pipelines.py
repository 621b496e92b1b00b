"""Every pipeline class of diffusers that holds one of our transformers: supported, and then right, or refused."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.helpers.families import CORE, FAMILIES, pipeline, variant
from tests.helpers.families.flux import build_flux
from tide.adapters import Call, adapter_for, allow_pipeline, pipelines, registry, tap
from tide.adapters.families.flux import FluxAdapter
from tide.adapters.pipelines import REFUSED, SUPPORTED
from tide.editing import Erase, Scale, Steer, edit
from tide.errors import TideError
from tide.loading import load_adapter
from tide.training import TrainConfig, build_model

#: The family of every class of pipelines.
FAMILY_OF = {name: spec.family for spec in registry.specs() for name in (*spec.pipelines, *spec.refused)}
PICTURES = [name for name in SUPPORTED if FAMILY_OF[name] in CORE and (SUPPORTED[name] or "Kontext" in name)]


def family_of(name: str) -> str:
    return FAMILY_OF[name]


def classes_with_our_transformers() -> dict[str, type]:
    """All pipeline classes below diffusers.pipelines whose constructor names one of our transformer classes."""
    ours = re.compile("|".join(rf"\b{spec.transformer}\b" for spec in registry.specs()))
    folder, found = Path(diffusers.__file__).parent, {}
    for file in sorted((folder / "pipelines").rglob("*.py")):
        if not ours.search(file.read_text()):
            continue
        module = importlib.import_module(".".join(("diffusers", *file.relative_to(folder).with_suffix("").parts)))
        for cls in vars(module).values():
            if inspect.isclass(cls) and issubclass(cls, diffusers.DiffusionPipeline):
                signature = inspect.signature(cls.__init__)
                if any(ours.search(str(each.annotation)) for each in signature.parameters.values()):
                    found[cls.__name__] = cls
    return found


def test_every_class_of_diffusers_that_takes_our_transformers_has_a_row():
    found = classes_with_our_transformers()
    assert len(found) > 30
    assert not found.keys() - SUPPORTED.keys() - REFUSED.keys()
    assert not SUPPORTED.keys() & REFUSED.keys()
    for name, inputs in SUPPORTED.items():
        if name in found:  # others are of other releases of diffusers
            assert set(inputs) <= inspect.signature(found[name].__call__).parameters.keys()


def hollow(cls: type, family: str) -> Any:
    """An instance of a pipeline class without its parts, but for a transformer."""
    pipe = object.__new__(cls)
    vars(pipe)["transformer"] = pipeline(family).transformer
    return pipe


@pytest.mark.parametrize("name", REFUSED)
def test_refused_classes_say_why_and_what_to_use(name):
    reason, instead = REFUSED[name]
    with pytest.raises(TideError) as error:
        adapter_for(hollow(getattr(diffusers, name), family_of(name)))
    said = str(error.value)
    assert said.startswith(f"{name} is not supported ({reason}); use ")
    assert instead is None or f"use diffusers.{instead}.from_pipe(pipe), which draws with the same parts" in said
    assert instead is None or instead in SUPPORTED


@pytest.mark.parametrize("name", [name for name in REFUSED if REFUSED[name][1] is not None and FAMILY_OF[name] in CORE])
def test_what_is_advised_instead_of_a_refused_class_works(name, tmp_path):
    """``from_pipe`` makes the pipeline that is named, which has an adapter, draws, and can be saved for a command."""
    instead = REFUSED[name][1]
    assert instead is not None
    cls, family = getattr(diffusers, name), family_of(name)
    taken = inspect.signature(cls.__init__).parameters
    parts = {**pipeline(family).components, "requires_safety_checker": False}
    if family == "flux":
        parts = {**build_flux(in_channels=96).components, "resolution": 32}
    pipe = cls(**{part: value for part, value in parts.items() if part in taken})
    made = getattr(diffusers, instead).from_pipe(pipe)
    own = adapter_for(made)
    assert own.family == family
    made.save_pretrained(tmp_path)
    assert load_adapter(tmp_path, device="cpu").family == family
    if not SUPPORTED[instead]:
        drawn = own.generate(
            FAMILIES[family].prompts,
            n_steps=2,
            guidance_scale=3.0,
            generators=[torch.Generator().manual_seed(i) for i in (0, 1)],
            height=FAMILIES[family].size[0],
            width=FAMILIES[family].size[1],
            **FAMILIES[family].arguments,
        )
        assert drawn.isfinite().all()


@pytest.mark.parametrize(
    ("name", "family"), [("StableDiffusion3PAGPipeline", "sd3"), ("PixArtSigmaPAGPipeline", "pixart")]
)
def test_whole_pag_pipelines_are_refused_by_edits_too(name, family):
    cls = getattr(diffusers, name)
    taken = inspect.signature(cls.__init__).parameters
    pipe = cls(**{part: value for part, value in pipeline(family).components.items() if part in taken})
    change = Steer(torch.tensor([500.0]), torch.ones(1, 32))
    with pytest.raises(TideError, match=f"{name} is not supported"), edit(pipe, None, change, block=0):
        pass


def test_a_subclass_of_a_supported_class_is_supported():
    class Mine(diffusers.PixArtAlphaPipeline):
        pass

    assert adapter_for(hollow(Mine, "pixart")).family == "pixart"


def test_a_subclass_of_a_refused_class_is_refused():
    class Mine(diffusers.PixArtSigmaPAGPipeline):
        pass

    with pytest.raises(TideError, match="Mine is not supported"):
        adapter_for(hollow(Mine, "pixart"))


class Unknown(diffusers.DiffusionPipeline):
    pass


class Bare:
    pass


#: The name of a supported class of diffusers, by somebody else.
Namesake = type("FluxPipeline", (diffusers.DiffusionPipeline,), {})


@pytest.mark.parametrize("cls", [Unknown, Namesake, Bare], ids=["unknown", "namesake", "no pipeline"])
def test_an_unknown_class_is_refused_and_can_be_allowed(cls, monkeypatch):
    monkeypatch.setattr(pipelines, "_ALLOWED", set())
    pipe = hollow(cls, "flux")
    with pytest.raises(TideError, match=rf"how {cls.__name__} calls .*allow_pipeline\({cls.__name__}\)"):
        adapter_for(pipe)
    assert FluxAdapter(pipe).family == "flux"
    assert allow_pipeline(cls) is cls
    assert adapter_for(pipe).family == "flux"


def test_an_adapter_of_ones_own_serves_any_pipeline(monkeypatch):
    monkeypatch.setattr(registry, "_ADAPTERS", dict(registry._ADAPTERS))

    @registry.register(diffusers.FluxTransformer2DModel)
    class Mine(FluxAdapter):
        pass

    assert type(adapter_for(hollow(Unknown, "flux"))) is Mine


# -- supported classes that draw from pictures --------------------------------------------------------------------


def draw(name: str, *, guided: bool = True, **changes: Any) -> torch.Tensor:
    pipe, family = variant(name), FAMILIES[family_of(name)]
    taken = inspect.signature(type(pipe).__call__).parameters
    height, width = family.size
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(5))
    half = (torch.arange(height * width).view(1, 1, height, width) < height * width // 2).float()
    pictures = {each: half if "mask" in each else pixels for each in SUPPORTED[name] or ("image",)}
    arguments = {"guidance_scale": 1.0, **(family.guided if guided else {}), **family.arguments}
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * 2
    if "strength" in taken:
        arguments["strength"] = 1.0
    if "_auto_resize" in taken:
        arguments["_auto_resize"] = False
    arguments = {each: value for each, value in arguments.items() if each in taken}
    return adapter_for(pipe).generate(
        family.prompts,
        n_steps=3,
        generators=[torch.Generator().manual_seed(i) for i in range(2)],
        **{"height": height, "width": width, **arguments, **pictures, **changes},
    )


def texts_of_the_prompts(name: str) -> torch.Tensor:
    family = FAMILIES[family_of(name)]
    own = adapter_for(variant(name))
    return own.encode_prompts(family.prompts, family.arguments.get("max_sequence_length"))["encoder_hidden_states"]


@pytest.mark.parametrize("name", PICTURES)
def test_rows_and_tokens_are_those_of_the_image_that_is_drawn(name):
    """A row is conditional where its text is a prompt's. Tokens are those that become the image."""
    own, block = adapter_for(variant(name)), 1
    rows, columns = FAMILIES[family_of(name)].grid
    expected: list[torch.Tensor] = []
    seen: list[tuple[torch.Size, Call]] = []
    texts = texts_of_the_prompts(name)

    def keep_rows(_module, args, kwargs):
        given = own.arguments(args, kwargs)["encoder_hidden_states"]
        prompts = [any(bool(torch.allclose(row, text, atol=1e-5)) for text in texts) for row in given]
        expected.append(torch.tensor(prompts))

    handle = own.transformer.register_forward_pre_hook(keep_rows, with_kwargs=True)
    try:
        with tap(own, {block: lambda x, call: seen.append((x.shape, call))}):
            latents = draw(name)
    finally:
        handle.remove()
    assert seen
    assert len(seen) == len(expected)
    for (shape, call), conditional in zip(seen, expected, strict=True):
        assert torch.equal(call.conditional, conditional)
        assert shape == (len(conditional), rows * columns, own.d_model)
    assert any(call.conditional.any() for _, call in seen)
    assert latents.shape[1] == own.latent_channels
    assert own.token_grid(*latents.shape[-2:]) == (rows, columns)


@pytest.mark.parametrize("name", PICTURES)
def test_edits_reach_the_image_and_no_op_edits_leave_its_bits(name):
    pipe = variant(name)
    own = adapter_for(pipe)
    sae = build_model(own, 1, TrainConfig(n_latents=96, k=12, modulation_init="adaln")).eval()
    plain = draw(name)
    assert plain.isfinite().all()
    with edit(pipe, sae, Scale(range(96), 1.0), branch="both"):
        assert torch.equal(draw(name), plain)
    with edit(pipe, sae, Erase(range(96)), branch="conditional") as met:
        assert not torch.allclose(draw(name), plain, atol=1e-3)
    assert met.rows


@pytest.mark.parametrize("name", ["FluxKontextPipeline", "FluxKontextInpaintPipeline"])
@pytest.mark.parametrize("tensor", ["output", "attention"])
def test_reference_pictures_of_kontext_are_not_edited(name, tensor):
    """The hooked module's own output is the image's tokens, then the reference's: those keep their bits."""
    own = adapter_for(variant(name))
    rows, columns = FAMILIES["flux"].grid
    n = rows * columns
    before, after, grids = [], [], set()
    place = 1 if tensor == "output" else 0
    module = own.hook_module(0, tensor)
    first = module.register_forward_hook(lambda _m, _a, output: before.append(output[place].clone()))

    def moved(x, call):
        grids.add(call.grid)
        return x + 1

    with tap(own, {0: moved}, tensor):
        second = module.register_forward_hook(lambda _m, _a, output: after.append(output[place].clone()))
        draw(name)
    first.remove()
    second.remove()
    assert before[0].shape[1] == 2 * n
    assert torch.equal(after[0][:, n:], before[0][:, n:])
    torch.testing.assert_close(after[0][:, :n], before[0][:, :n] + 1)
    assert grids == {(rows, columns)}


def test_kontext_without_a_picture_draws_from_the_prompt():
    shapes: list[int] = []
    with tap(adapter_for(variant("FluxKontextPipeline")), {0: lambda x, call: shapes.append(x.shape[1])}):
        draw("FluxKontextPipeline", image=None)
    assert set(shapes) == {8}


@pytest.mark.parametrize("name", ["FluxFillPipeline", "FluxImg2ImgPipeline", "StableDiffusion3InpaintPipeline"])
def test_a_missing_picture_is_named(name):
    own = adapter_for(variant(name))
    with pytest.raises(TideError, match=f"{name} draws from image.* besides the prompt"):
        own.generate(["a"], n_steps=2, guidance_scale=1.0, generators=[torch.Generator()])


@pytest.mark.parametrize("name", ["FluxFillPipeline", "FluxControlPipeline", "StableDiffusion3InpaintPipeline"])
def test_noised_images_alone_are_refused_where_the_model_is_given_pictures_beside_them(name):
    own = adapter_for(variant(name))
    with pytest.raises(TideError, match="channels of pictures beside the latents"):
        own.denoise(
            torch.zeros(1, own.latent_channels, 8, 8), 500, {"encoder_hidden_states": texts_of_the_prompts(name)}
        )


def test_pictures_of_another_size_than_asked_for_are_an_error():
    picture = torch.rand(1, 3, 16, 16)
    with pytest.raises(TideError, match="drew 4 tokens and not 4 x 2"):
        draw("FluxKontextInpaintPipeline", image=picture)
