"""What a probe found, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tide.adapters.spec import Blocks, Spec
from tide.probing import timesteps
from tide.probing.blocks import FoundList
from tide.probing.geometry import Geometry
from tide.probing.modulation import FoundModulation
from tide.probing.text import FoundGuidance
from tide.probing.timesteps import FoundTimestep
from tide.probing.vae import FoundScaling

#: What is said of the VAE, by what is known of its ``shift_factor``.
_SHIFTS = {None: "by scaling_factor", True: "by shift_factor and scaling_factor", False: "without its shift_factor"}


def in_words(
    spec: Spec,
    found: Sequence[FoundList],
    modulations: Sequence[FoundModulation],
    geometry: Geometry,
    guidance: FoundGuidance,
    timestep: FoundTimestep | None,
    scaling: FoundScaling,
) -> list[tuple[str, str]]:
    """(what, what was found), a line each."""
    lines = [("latents", _latents(geometry))]
    for each, kind, made in zip(found, spec.blocks, modulations, strict=True):
        lines += _blocks(each, kind, made)
    if spec.embedding is not None:
        embedding = spec.embedding
        added = "something is added" if embedding.conditioned else "nothing is added"
        lines.append(("timestep embedding", f"{embedding.path or 'the transformer'}: {embedding.embedder}, {added}"))
    if timestep is not None:
        lines.append(("timestep", f"{timestep.argument} = {timesteps.in_words(timestep.unit)}"))
    lines.append(("text", ", ".join(f"{name} = output {i}" for name, i in spec.text.outputs.items()) or "not found"))
    if guidance.rows is not None:
        lines.append(("guidance", f"{guidance.rows}, by {guidance.scale}"))
    kind_of = "velocity (flow matching)" if spec.flow_matching else "by the scheduler's prediction_type"
    lines.append(("prediction", f"{kind_of}, sign {spec.sign:+d}"))
    how = "by latents_mean and latents_std" if scaling.by_channel else _SHIFTS[scaling.shifts]
    lines.append(("VAE", "not seen" if scaling.missing else how))
    return lines


def _latents(geometry: Geometry) -> str:
    size, grid = (" x ".join(map(str, each)) for each in (geometry.size, geometry.grid))
    kind = "packed 2 x 2" if geometry.packed else f"patches of {geometry.patch}"
    return f"{geometry.argument}: {size} become {grid} tokens, {kind}"


def _blocks(found: FoundList, kind: Blocks, made: FoundModulation) -> Iterator[tuple[str, str]]:
    name = type(found.blocks[0]).__name__
    yield kind.path, f"{len(found.blocks)} of {name}, width {found.width}, output: {kind.output}"
    for what in ("attention", "feed_forward"):
        path = getattr(kind, what)
        places = f"{getattr(kind, f'{what}_input')} -> {getattr(kind, f'{what}_output')}"
        yield f"  {what}", f"{path} ({places})" if path else "none to hook"
    for chunk, (shift, scale) in made.chunks.items():
        parts = [f"{name} {place}" for name, place in (("shift", shift), ("scale", scale)) if place is not None]
        source = made.linear.get(chunk) or f"the argument {made.given}"
        table = f" + {made.table}" if made.table else ""
        yield f"  modulation {chunk}", f"chunks {', '.join(parts)} of {source}{table}"
