"""What an adapter hooks in a pipeline, in words: read from the adapter, and from one pass on noise."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import prod

from torch import nn

from tide.adapters import Adapter, tap
from tide.adapters.base import TENSORS
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.pipelines import SUPPORTED, known_as
from tide.adapters.weights import unwrapped
from tide.errors import TideError
from tide.messages import one_line
from tide.probing.drawing import Bench
from tide.probing.timesteps import in_words

#: What a row says: its name and its words.
Row = tuple[str, str]


def describe(adapter: Adapter) -> list[Row]:
    """Lines about a pipeline and its adapter. Runs text encoders and transformer once, on noise in a small size.

    Args:
        adapter: of the pipeline.
    """
    bench = Bench(adapter)
    return [
        *_pipeline(adapter),
        *_tokens(adapter),
        *_blocks(bench),
        *_modulation(adapter),
        *_call(bench),
        *_schedule(adapter),
        *_vae(adapter),
        *_notes(adapter),
    ]


def _pipeline(own: Adapter) -> Iterator[Row]:
    models = f" ({own.spec.models})" if isinstance(own, DeclaredAdapter) and own.spec.models else ""
    yield "family", f"{own.family}{models}"
    inputs = SUPPORTED.get(known_as(type(own.pipe)) or "", ())
    besides = f", which also draws from {' and '.join(inputs)}" if inputs else ""
    yield "pipeline", f"{type(own.pipe).__name__}{besides}"
    turns = ", one of several that take over from each other" if own.runs_in_turn else ""
    yield own.component, f"{type(own.transformer).__name__}{turns}"


def _tokens(own: Adapter) -> Iterator[Row]:
    yield "width", str(own.d_model)
    latents = own.default_latents
    grid = own.token_grid(*latents)
    size = " x ".join(map(str, latents))
    yield "image tokens", f"{' x '.join(map(str, grid))} = {prod(grid)} at the pipeline's own size, {size} latents"


def _blocks(bench: Bench) -> Iterator[Row]:
    own = bench.adapter
    firsts = list(_first_blocks(own))
    for first, last, path, kind in firsts:
        numbers = f"{first}" if first == last else f"{first} to {last}"
        yield f"blocks {numbers}", f"{path}, {last - first + 1} of {kind}"
    try:
        shapes = {first: {tensor: _shape(bench, first, tensor) for tensor in TENSORS} for first, *_ in firsts}
    except (TideError, RuntimeError) as error:
        yield "shapes", f"not seen: {one_line(error)}"
        return
    size = " x ".join(map(str, bench.grid))
    yield "one pass", f"{len(bench.prompts)} prompts, {size} tokens"
    for first, *_ in firsts:
        for tensor, said in shapes[first].items():
            yield f"  {tensor} of {first}", said


def _first_blocks(own: Adapter) -> Iterator[tuple[int, int, str, str]]:
    """(first number, last number, path, class) of every list of blocks."""
    paths = {id(module): name for name, module in own.transformer.named_modules()}
    number = 0
    listed = [(paths.get(id(each), "?").rpartition(".")[0], type(each).__name__) for each in own.blocks]
    for (path, kind), group in groupby(listed):
        n = len(list(group))
        yield number, number + n - 1, path, kind
        number += n


def _shape(bench: Bench, block: int, tensor: str) -> str:
    """The hooked module and the shape of its image tokens."""
    own, seen = bench.adapter, []
    try:
        module = own.hook_module(block, tensor)
    except (TideError, AttributeError):
        return "none to hook"
    with tap(own, {block: lambda x, call: seen.append(list(x.shape))}, tensor):
        bench.denoise()
    return f"{_name_in(own.blocks[block], module)}{seen[0]}"


def _name_in(block: nn.Module, module: nn.Module) -> str:
    name = next((name for name, each in block.named_modules() if each is module), "")
    return f"{name} " if name else ""


def _modulation(own: Adapter) -> Iterator[Row]:
    for first, *_ in _first_blocks(own):
        for chunk in ("msa", "mlp"):
            try:
                config = own.modulation(first, chunk).config
            except TideError as error:
                yield f"modulation {chunk} of {first}", one_line(error)
                continue
            parts = [name for name, there in (("scale", config.has_scale), ("shift", config.has_shift)) if there]
            more = ", conditioned on more than the timestep" if config.conditioned else ", by the timestep alone"
            yield f"modulation {chunk} of {first}", f"{' and '.join(parts)}{_chunks(own, first, chunk)}{more}"


def _chunks(own: Adapter, block: int, chunk: str) -> str:
    if not isinstance(own, DeclaredAdapter):
        return ""
    kind = own.kind_of(block)
    if chunk not in kind.chunks:
        return ""
    places = ", ".join(str(place) for place in reversed(kind.chunks[chunk]) if place is not None)  # type: ignore[index]
    source = kind.linear_of(chunk) or f"argument {kind.given}"  # type: ignore[arg-type]
    return f" (chunks {places} of {source}{f' + {kind.table}' if kind.table else ''})"


def _call(bench: Bench) -> Iterator[Row]:
    own = bench.adapter
    yield "timestep", f"{own.timestep_argument} = {in_words(own.timestep_unit)} for the scheduler's t"
    yield "text", ", ".join(f"{name} {list(value.shape)}" for name, value in bench.text.items())
    if isinstance(own, DeclaredAdapter):
        yield "guidance", own.spec.guidance
    else:
        rows = own.conditional_rows(2, True).tolist()
        yield "guidance", ", ".join("conditional" if each else "unconditional" for each in rows)


def _schedule(own: Adapter) -> Iterator[Row]:
    steps = own.sampling_timesteps(20)
    kind = type(own.pipe.scheduler).__name__
    yield "schedule", f"{kind}, timesteps {float(steps[0]):g} to {float(steps[-1]):g} in {len(steps)} steps"
    sign = -1 if isinstance(own, DeclaredAdapter) and own.spec.sign < 0 else 1
    yield "prediction", f"{own.prediction_type}{', its sign turned' if sign < 0 else ''}"


def _vae(own: Adapter) -> Iterator[Row]:
    vae = unwrapped(getattr(own.pipe, "vae", None))
    if vae is None:
        return
    config = vae.config
    if own.scales_channels:
        said = "latents_mean and latents_std of each channel"
    else:
        shift = getattr(config, "shift_factor", None) if own.shifts_latents else None
        factor = getattr(config, "scaling_factor", None) or 1
        said = f"scaling_factor {factor:g}" + (f", shift_factor {shift:g}" if shift else "")
    yield "VAE", f"{type(vae).__name__}: {said}, {own.pixels_per_latent} pixels a latent"


def _notes(own: Adapter) -> Iterator[Row]:
    if isinstance(own, DeclaredAdapter):
        for note in own.spec.notes:
            yield "note", note
