"""Every family's real pipeline, tiny and with random weights, a module each."""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module
from operator import attrgetter
from pkgutil import iter_modules
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from tests.helpers.families.family import Family
from tests.helpers.families.flux import build_flux
from tests.helpers.families.hunyuan import build_hunyuan
from tests.helpers.families.sana import build_sana
from tests.helpers.families.sd3 import build_sd3
from tide.adapters import Adapter, adapter_for, tap

STEPS = 3
#: Families of images that tests of single features go through; every family goes through ``test_families.py``.
CORE = ("dit", "flux", "hunyuan", "lumina2", "lumina_next", "pixart", "sana", "sd3")

FAMILIES: dict[str, Family] = {
    module.name: import_module(f"{__name__}.{module.name}").FAMILY
    for module in iter_modules(__path__)
    if not module.name.startswith(("family", "parts"))
}
#: Families that guide by a call of its own for the negative prompt.
TWO_CALLS = ("flux", "lumina2")


def prepared(pipe: Any, seed: int = 0) -> Any:
    """``pipe`` in evaluation mode, its weights random but reproducible and no branch of a block silent."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
            for parameter in component.parameters() if name == "transformer" else ():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.2, generator=generator)
    return pipe


@cache
def pipeline(name: str) -> Any:
    """The family's tiny pipeline; tests share it and leave it as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return prepared(FAMILIES[name].build())


def adapter(name: str) -> Adapter:
    return adapter_for(pipeline(name))


def _parts_of(name: str) -> dict[str, Any]:
    """The parts of a tiny pipeline of this class, and more: those of its family, with what the class adds."""
    if name.startswith("Flux"):
        # Of each token 16 of latents, and as many of a picture; Fill has a mask of 4 x 4 pixels of each latent, too.
        beside = 80 if "Fill" in name else 16 if "FluxControlNet" not in name and "Control" in name else 0
        parts = build_flux(in_channels=16 + beside).components
        net: Any = diffusers.FluxControlNetModel
        options = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    elif name.startswith("Stable"):
        inpainting = name == "StableDiffusion3InpaintPipeline"
        parts = (build_sd3(in_channels=33, latent_channels=16) if inpainting else build_sd3()).components
        net = diffusers.SD3ControlNetModel
        options = {"num_layers": 2, "num_extra_conditioning_channels": int("Inpainting" in name)}
    elif name.startswith("Sana"):
        parts = build_sana().components
        config = {**parts["transformer"].config, "num_layers": 1}
        return {**parts, "controlnet": diffusers.SanaControlNetModel.from_config(config)}
    else:
        parts = build_hunyuan().components
        net, options = (
            diffusers.HunyuanDiT2DControlNetModel,
            {"transformer_num_layers": 4, "load_weights_from_transformer": False},
        )
        parts["requires_safety_checker"] = False
    return (
        {**parts, "controlnet": net.from_transformer(parts["transformer"], **options)}
        if "ControlNet" in name
        else parts
    )


@cache
def variant(name: str) -> Any:
    """A tiny pipeline of the class ``diffusers.<name>``, which draws from pictures too; shared by the tests."""
    cls = getattr(diffusers, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts, taken = _parts_of(name), inspect.signature(cls.__init__).parameters
        pipe = cls(**{part: value for part, value in parts.items() if part in taken})
    if name.startswith("Flux"):
        pipe.default_sample_size = 8
    return prepared(pipe)


def draw(name: str, *, guided: bool = False, n_steps: int = STEPS, pipe: Any = None, **kwargs: Any) -> Tensor:
    """The final latents of both prompts."""
    family = FAMILIES[name]
    arguments = {**family.unguided, **(family.guided if guided else {}), **family.arguments, **kwargs}
    if name == "dit":
        arguments.pop("negative_prompt", None)
    if isinstance(arguments.get("negative_prompt"), str):
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(family.prompts)
    return adapter_for(pipe or pipeline(name)).generate(
        family.prompts,
        n_steps=n_steps,
        generators=[torch.Generator().manual_seed(i) for i in range(len(family.prompts))],
        **{**family.pixels, **arguments},
    )


def hooks_of(pipe: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.transformer.modules())


def misfit(pipe: Any, name: str, block: int, chunk: str = "msa") -> float:
    """How far ``own.modulation`` of a block is from what the block does, relative to what that changes: of the tokens
    that the attention (or feed-forward) reads against the normed ones, scaled and shifted."""
    own, family = adapter_for(pipe), FAMILIES[name]
    module, seen = own.blocks[block], {}
    norms = family.norms_of(module)
    norm, reader = (attrgetter(path)(module) for path in norms.get(chunk, norms["msa"]))
    hooks = [
        norm.register_forward_hook(lambda _m, _a, output: seen.update(normed=output)),
        reader.register_forward_pre_hook(
            lambda _m, args, kwargs: seen.update(read=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        ),
    ]
    with tap(own, {block: lambda x, call: seen.update(call=call)}):
        draw(name, pipe=pipe, n_steps=2)
    for hook in hooks:
        hook.remove()
    call, read = seen["call"], seen["read"]
    scale, shift = own.modulation(block, chunk)(call.timestep, call.conditioning)
    read = read.flatten(2).transpose(1, 2) if read.ndim == 4 else read
    expected = seen["normed"] * (1 + scale[:, None]) + shift[:, None]
    return float((read - expected).norm() / (read - seen["normed"]).norm())
