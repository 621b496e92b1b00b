"""What the tests of all families share: which of them run by default, and what they give the pipelines."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.families import FAMILIES, adapter
from tide.adapters import Adapter, Call, tap

#: Families that go through all tests by default: the others do in ``make test-slow``.
THOROUGH = ("flux", "lumina2", "pixart", "wan")


def each_family(metafunc: pytest.Metafunc, quick: Collection[str] = ()) -> None:
    """Runs a test with every family, by default with a few; those named ``quick`` with all."""
    every = metafunc.function.__name__ in quick
    marks = {name: [] if every or name in THOROUGH else [pytest.mark.slow] for name in FAMILIES}
    metafunc.parametrize("name", [pytest.param(name, marks=marks[name]) for name in FAMILIES])


def size_of(name: str) -> tuple[int, ...]:
    """Of the latents, behind their channels."""
    own, family = adapter(name), FAMILIES[name]
    frames = () if family.frames is None else (own.latent_frames(family.frames),)
    return *frames, *(side // own.pixels_per_latent for side in family.size)


def latents_of(name: str, n: int = 2) -> Tensor:
    shape = (n, adapter(name).latent_channels, *size_of(name))
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def n_tokens(name: str) -> int:
    return prod(FAMILIES[name].grid)


def pictures_of(name: str) -> Tensor:
    """Two images, or clips of a video family, or sounds."""
    family = FAMILIES[name]
    frames = () if family.frames is None else (family.frames,)
    channels = 2 if adapter(name).draws == "audio" else 3
    return torch.rand(2, channels, *frames, *family.size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def text_of(name: str) -> dict[str, Tensor]:
    return adapter(name).encode_prompts(FAMILIES[name].prompts, FAMILIES[name].arguments.get("max_sequence_length"))


@dataclass(frozen=True)
class Modulated:
    """What a block's attention, or feed-forward, read in a call, and what it should have by the copied modulation."""

    read: Tensor
    expected: Tensor
    call: Call
    scale: Tensor
    shift: Tensor


@torch.no_grad()
def modulated(own: Adapter, name: str, block: int, chunk: str) -> Modulated:
    """In one call at two timesteps."""
    module, seen = own.blocks[block], dict[str, Any]()
    norms = FAMILIES[name].norms_of(module)
    norm, reader = (attrgetter(path)(module) for path in norms.get(chunk, norms["msa"]))

    def first(what: str, value: Any) -> None:
        """A norm and a feed-forward may run on the text as well, behind the image."""
        seen[what] = seen.get(what, value)

    hooks = [
        norm.register_forward_hook(lambda _m, _a, output: first("normed", output)),
        reader.register_forward_pre_hook(
            lambda _m, args, kwargs: first("read", args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        ),
    ]
    with tap(own, {block: lambda x, call: seen.update(call=call)}):
        own.denoise(latents_of(name), torch.tensor([900, 40]), text_of(name))
    for hook in hooks:
        hook.remove()
    scale, shift = own.modulation(block, chunk)(seen["call"].timestep, seen["call"].conditioning)
    read = seen["read"].flatten(2).transpose(1, 2) if seen["read"].ndim == 4 else seen["read"]
    n_parts = len(seen["normed"]) // len(scale)  # the rows may be frames of a clip
    rows_scale, rows_shift = (each.repeat_interleave(n_parts, 0)[:, None] for each in (scale, shift))
    expected = seen["normed"] * (1 + rows_scale) + rows_shift
    return Modulated(read[:, -expected.shape[1] :], expected, seen["call"], scale, shift)
