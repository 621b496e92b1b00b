"""Scale and shift of a block's image tokens, and the projection that they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tide.adapters.base import Chunk
from tide.probing.blocks import FoundList, Part
from tide.probing.geometry import Geometry
from tide.probing.places import place_of, tokens_at
from tide.probing.recording import ModuleCall, Pass, bound
from tide.probing.values import apart, rounding

#: How far a fit over tokens, or a chunk of a projection, may be off.
_CLOSE = 5e-3


@dataclass(frozen=True)
class Fit:
    """``reader's input = norm's output * scale + shift``, the rows of several passes one after the other.

    ``scale`` and ``shift [rows, d]``; None where the scale is one, or the shift zero.
    """

    norm: str
    reader: str
    scale: Tensor | None
    shift: Tensor | None


@dataclass
class FoundModulation:
    """Of a list's blocks: what a :class:`~tide.adapters.spec.Blocks` says of it, and the projection's path in the
    transformer."""

    chunks: dict[Chunk, tuple[int | None, int | None]] = field(default_factory=dict)
    linear: dict[Chunk, str] = field(default_factory=dict)
    table: str | None = None
    given: str | None = None
    fits: dict[Chunk, Fit] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def first_linear(self) -> str | None:
        return next(iter(self.linear.values()), None)


def find_modulation(
    found: FoundList, passes: Sequence[Pass], transformer: nn.Module, geometry: Geometry
) -> FoundModulation:
    """``passes`` are of different timesteps, and hold the values of the first block and of all outside of blocks."""
    result, close = FoundModulation(), rounding(transformer) * _CLOSE
    readers = _readers(found, passes[0], geometry)
    for chunk, paths in readers.items():
        fit = best_fit(found, paths, passes, geometry, close)
        if fit is not None:
            result.fits[chunk] = fit
            _find_source(result, chunk, fit, found, passes, transformer, close)
    if not result.fits:
        result.missing.append("no module reads a norm's output with a scale or shift that changes with the timestep")
    return result


def _readers(found: FoundList, plain: Pass, geometry: Geometry) -> dict[Chunk, list[str]]:
    """Of each chunk the modules, by path, whose input it modulates."""

    def of(part: Part | None) -> list[str]:
        return [] if part is None else [f"{found.first}.{part.path}"]

    attention, feed_forward = of(found.attention), of(found.feed_forward)
    if attention and feed_forward:
        return {"msa": attention, "mlp": feed_forward}
    either = attention or feed_forward or list(_linears_on_tokens(found, plain, geometry))
    return {"msa": either, "mlp": either}


def _linears_on_tokens(found: FoundList, plain: Pass, geometry: Geometry) -> Iterator[str]:
    for name, module in found.blocks[0].named_modules():
        call = plain.call_of(f"{found.first}.{name}")
        if isinstance(module, nn.Linear) and call is not None and _tokens(call.first, found, geometry) is not None:
            yield call.path


def _tokens(value: object, found: FoundList, geometry: Geometry) -> Tensor | None:
    place = place_of(value, value, geometry, found.width)
    if place is None and isinstance(value, Tensor) and value.ndim == 3 and value.shape[2] == found.width:
        # One tensor of text and image: which part is the image's is known from the blocks of the same stream.
        place = "text + image" if value.shape[1] > geometry.n_tokens else None
    return None if place is None else tokens_at(value, place, geometry)


# -- the fit over tokens ----------------------------------------------------------------------------------------------


def best_fit(
    found: FoundList, readers: Sequence[str], passes: Sequence[Pass], geometry: Geometry, close: float
) -> Fit | None:
    """The fit with the least residual, of a norm of the block and a reader behind it; None if all are off, or if none
    changes with the timestep."""
    fits = [
        (residual, Fit(norm, reader, *_parts(scale, shift)))
        for reader in readers
        for norm in _norms(found, passes[0], reader)
        if (fitted := _fit(found, norm, reader, passes, geometry)) is not None
        for scale, shift, residual in [fitted]
        if residual < close and _changes(scale, shift, len(passes))
    ]
    return min(fits, key=lambda each: each[0])[1] if fits else None


def _norms(found: FoundList, plain: Pass, reader: str) -> Iterator[str]:
    """The innermost norms of the first block that run before the reader."""
    for call in plain.calls:
        if call.path == reader:
            return
        if call.path.startswith(f"{found.first}."):
            module = found.blocks[0].get_submodule(call.path.removeprefix(f"{found.first}."))
            if "Norm" in type(module).__name__ and not any("Norm" in type(m).__name__ for m in module.children()):
                yield call.path


def _fit(
    found: FoundList, norm: str, reader: str, passes: Sequence[Pass], geometry: Geometry
) -> tuple[Tensor, Tensor, float] | None:
    """(scale, shift, relative residual) by least squares over tokens, for every row and channel."""
    pairs = []
    for each in passes:
        left, right = each.call_of(norm), each.call_of(reader)
        if left is None or right is None:
            return None
        normed, read = _tokens(left.output, found, geometry), _tokens(right.first, found, geometry)
        if normed is None or read is None or normed.shape != read.shape:
            return None
        pairs.append((normed.float(), read.float()))
    normed, read = (torch.cat(each) for each in zip(*pairs, strict=True))
    centred, moved = normed - normed.mean(1, keepdim=True), read - read.mean(1, keepdim=True)
    scale = (centred * moved).sum(1) / centred.square().sum(1).clamp(min=1e-12)
    shift = read.mean(1) - scale * normed.mean(1)
    residual = read - (normed * scale[:, None] + shift[:, None])
    return scale, shift, float(residual.norm() / moved.norm().clamp(min=1e-12))


def _changes(scale: Tensor, shift: Tensor, n_passes: int) -> bool:
    """Whether either differs between the first pass and the last one."""
    return any(
        float((each.chunk(n_passes)[0] - each.chunk(n_passes)[-1]).abs().max()) > 1e-4 for each in (scale, shift)
    )


def _parts(scale: Tensor, shift: Tensor) -> tuple[Tensor | None, Tensor | None]:
    return (
        None if float((scale - 1).abs().max()) < _CLOSE else scale,
        None if float(shift.abs().max()) < _CLOSE else shift,
    )


# -- the projection ---------------------------------------------------------------------------------------------------


def _find_source(
    result: FoundModulation,
    chunk: Chunk,
    fit: Fit,
    found: FoundList,
    passes: Sequence[Pass],
    transformer: nn.Module,
    close: float,
) -> None:
    """Fills in where the scale and the shift of a fit come from."""
    for path, rows in _projections(found, passes, transformer):
        for table, added in _tables(found, rows):
            place = _chunk_of(rows + added, fit, close)
            if place is not None:
                result.chunks[chunk], result.linear[chunk], result.table = place, path, table
                return
    for name, rows in _given_rows(found, passes):
        place = _chunk_of(rows, fit, close)
        if place is not None:
            result.chunks[chunk], result.given = place, name
            return
    parts = " and ".join(name for name in ("scale", "shift") if getattr(fit, name) is not None)
    result.missing.append(f"the {parts} of {fit.reader}: no linear layer's chunk, nor a row of an argument, equals it")


def _chunk_of(rows: Tensor, fit: Fit, close: float) -> tuple[int | None, int | None] | None:
    """(shift's, scale's) places among ``rows [B, k, d]``; None if one of them is not there."""
    places: list[int | None] = []
    for wanted in (fit.shift, None if fit.scale is None else fit.scale - 1):
        if wanted is None:
            places.append(None)
            continue
        off = [apart(rows[:, i], wanted) for i in range(rows.shape[1])]
        best = min(range(len(off)), key=off.__getitem__)
        if off[best] > close:
            return None
        places.append(best)
    return places[0], places[1]


def _projections(found: FoundList, passes: Sequence[Pass], transformer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(path, its outputs of all passes ``[B, chunks, d]``) of the linear layers in the block, then of those outside."""
    modules = dict(transformer.named_modules())
    inside = [each.path for each in passes[0].calls if each.path.startswith(f"{found.first}.")]
    outside = [each.path for each in passes[0].calls if each.path not in inside]
    for path in (*inside, *outside):
        if not isinstance(modules[path], nn.Linear) or modules[path].out_features % found.width:
            continue
        rows = _rows([each.call_of(path) for each in passes], found.width)
        if rows is not None:
            yield path, rows


def _rows(calls: Sequence[ModuleCall | None], width: int) -> Tensor | None:
    outputs = [each.output for each in calls if each is not None]
    if len(outputs) < len(calls) or any(each.is_meta for each in outputs):
        return None
    flat = [each.flatten(1) for each in outputs]
    whole = torch.cat(flat).float()
    if outputs[0].numel() // len(outputs[0]) != outputs[0].shape[-1]:  # one for each token
        return None
    return whole.unflatten(1, (-1, width))


def _tables(found: FoundList, rows: Tensor) -> Iterator[tuple[str | None, Tensor]]:
    """The parameters of the block that may be added to a projection's chunks, none first."""
    yield None, torch.zeros(rows.shape[1:], device=rows.device)
    for name, parameter in found.blocks[0].named_parameters(recurse=False):
        if parameter.numel() == rows[0].numel():
            yield name, parameter.detach().float().reshape(rows.shape[1:])


def _given_rows(found: FoundList, passes: Sequence[Pass]) -> Iterator[tuple[str, Tensor]]:
    """Arguments ``[B, rows, d]`` of the block, other than tokens."""
    values: list[Mapping[str, object]] = []
    for each in passes:
        call = each.call_of(found.first)
        assert call is not None
        values.append(bound(found.blocks[0].forward, call.args, call.kwargs))
    for name, value in values[0].items():
        if isinstance(value, Tensor) and value.ndim == 3 and value.shape[2] == found.width:
            yield name, torch.cat([each[name] for each in values]).float()  # type: ignore[misc]
