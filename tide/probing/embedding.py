"""The timestep's embedding that projections read: its sinusoid, its layers, and what is added to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tide.adapters.spec import Embedding, Sinusoid
from tide.probing.recording import ModuleCall, Pass
from tide.probing.values import apart, close

#: Arguments of the sinusoid that models without a module for it are tried with.
_FLIPS, _SHIFTS, _FACTORS = (True, False), (0.0, 1.0), (1.0, 1000.0, 1 / 1000)


@dataclass
class FoundEmbedding:
    """The embedding, or why there is none."""

    embedding: Embedding | None = None
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Layers:
    """The two layers that embed the sinusoid: the module that holds them, and their names in it."""

    path: str
    names: tuple[str, str]


class Embeddings:
    """Looks for the embedding that the linear layer at ``projection`` reads.

    Args:
        transformer: the model.
        passes: of different timesteps.
        projection: the path of the layer.
        block: the path of the first block.
        timesteps: what the transformer was given in each pass, ``[rows]``.
    """

    def __init__(
        self,
        transformer: nn.Module,
        passes: Sequence[Pass],
        projection: str,
        block: str,
        timesteps: Sequence[Tensor],
    ) -> None:
        self.modules = dict(transformer.named_modules())
        self.passes, self.block = passes, block
        self.read = self._values(projection, lambda call: call.first)
        self.timesteps = torch.cat([each.float() for each in timesteps])

    def find(self) -> FoundEmbedding:
        if self.read is None:
            return FoundEmbedding(missing=["what the adaLN projection reads has no row for each image"])
        wholes = list(self._wholes())
        layers = next((each for each in self._layers() if self._sinusoid_of(each) is not None), None)
        if layers is None:
            return FoundEmbedding(missing=["no two linear layers embed a sinusoid of the timestep"])
        sinusoid = self._sinusoid_of(layers)
        assert sinusoid is not None
        kind, factor = sinusoid
        time = self._values(layers.path, lambda call: call.output)
        assert time is not None
        around = [
            (path, part, act)
            for path, part, act in wholes
            if layers.path.startswith(f"{path}.") and (not isinstance(kind, str) or kind.startswith(f"{path}."))
        ]
        if around:
            path, part, activation = max(around, key=lambda each: (each[1] is None, len(each[0])))
            whole = self._part(path, part)
            conditioned = whole is not None and not close(whole, time)
            part = part if conditioned else None  # which is read only for what is added
            return FoundEmbedding(self._embedding(path, part, kind, layers, conditioned, None, factor, activation))
        for activation in (True, False):
            if self._is_read(time, activation):
                parent = _common(layers.path, kind)
                return FoundEmbedding(self._embedding(parent, None, kind, layers, False, None, factor, activation))
        return self._added(layers, kind, factor, time, wholes)

    def _added(
        self,
        layers: _Layers,
        kind: str | Sinusoid,
        factor: float,
        time: Tensor,
        wholes: list[tuple[str, int | None, bool]],
    ) -> FoundEmbedding:
        """The embedding where no module returns the sum: the module that returns what is added."""
        for path, call in self._small():
            value = self._values(path, lambda each: each.output)
            if value is None or value.shape != time.shape or call.path == layers.path:
                continue
            for activation in (True, False):
                if self._is_read(time + value, activation):
                    parent = _common(layers.path, kind, path)
                    return FoundEmbedding(self._embedding(parent, None, kind, layers, True, path, factor, activation))
        where = ", ".join(path for path, *_ in wholes) or "no module's output"
        return FoundEmbedding(missing=[f"what is added to the timestep embedding ({where} is what projections read)"])

    def _embedding(
        self,
        path: str,
        part: int | None,
        kind: str | Sinusoid,
        layers: _Layers,
        conditioned: bool,
        added: str | None,
        factor: float,
        activation: bool,
    ) -> Embedding:
        of_block = path == self.block or path.startswith(f"{self.block}.")
        return Embedding(
            path=path.removeprefix(f"{self.block}.") if of_block else path,
            part=part,
            sinusoid=_below(kind, path) if isinstance(kind, str) else kind,
            embedder=_below(layers.path, path),
            layers=layers.names,
            conditioned=conditioned,
            added=None if added is None else _below(added, path),
            factor=factor,
            of_block=of_block,
            activation=activation,
        )

    # -- values of all passes

    def _values(self, path: str, of: object) -> Tensor | None:
        """``of(call)`` in every pass, ``[rows of all, d]``; None where it is no such tensor."""
        found = []
        for each in self.passes:
            call = each.call_of(path)
            value = None if call is None else of(call)  # type: ignore[operator]
            if not isinstance(value, Tensor) or value.is_meta or not value.is_floating_point():
                return None
            found.append(value.reshape(-1, value.shape[-1]) if value.ndim else value.reshape(1, 1))
        return torch.cat(found)

    def _part(self, path: str, part: int | None) -> Tensor | None:
        return self._values(path, lambda call: call.output if part is None else call.output[part])

    def _small(self) -> Iterator[tuple[str, ModuleCall]]:
        """The modules that return a row for each image."""
        for call in self.passes[0].calls:
            for value in call.output if isinstance(call.output, tuple | list) else (call.output,):
                if isinstance(value, Tensor) and not value.is_meta and value.ndim in (2, 3) and value.numel():
                    yield call.path, call
                    break

    def _is_read(self, value: Tensor, activation: bool) -> bool:
        assert self.read is not None
        if value.shape != self.read.shape:
            return False
        return close(nn.functional.silu(value.float()) if activation else value, self.read)

    def _wholes(self) -> Iterator[tuple[str, int | None, bool]]:
        """(path, place in its output, activation) of the modules that return what the projection reads, before or
        behind a SiLU."""
        for path, call in self._small():
            if isinstance(self.modules[path], nn.SiLU | nn.Dropout | nn.Identity):
                continue
            parts = range(len(call.output)) if isinstance(call.output, tuple | list) else (None,)
            for part in parts:
                value = self._part(path, part)
                for activation in (True, False):
                    if value is not None and self._is_read(value, activation):
                        yield path, part, activation

    # -- the timestep's own part

    def _layers(self) -> Iterator[_Layers]:
        """Modules of two linear layers with a SiLU between them, that return what the second one does."""
        for path, _ in self._small():
            linears = [name for name, each in self.modules[path].named_children() if isinstance(each, nn.Linear)]
            if len(linears) != 2:
                continue
            names = (linears[0], linears[1])
            first, second = (self._values(f"{path}.{name}", lambda call: call.output) for name in names)
            between = self._values(f"{path}.{names[1]}", lambda call: call.first)
            own = self._values(path, lambda call: call.output)
            if first is None or second is None or between is None or own is None or own.shape != second.shape:
                continue
            if close(nn.functional.silu(first), between) and close(own, second):
                yield _Layers(path, names)

    def _sinusoid_of(self, layers: _Layers) -> tuple[str | Sinusoid, float] | None:
        """What makes the layers' input of the timestep, and the factor before it."""
        given = self._values(f"{layers.path}.{layers.names[0]}", lambda call: call.first)
        if given is None:
            return None
        for call in self.passes[0].calls:
            module = self.modules[call.path]
            if not all(hasattr(module, name) for name in ("num_channels", "flip_sin_to_cos", "downscale_freq_shift")):
                continue
            value, entered = (self._values(call.path, each) for each in (lambda c: c.output, _flat_first))
            if value is not None and entered is not None and value.shape == given.shape and close(value, given):
                factor = self._factor(entered.flatten())
                if factor is not None:
                    return call.path, factor
        return self._computed(given)

    def _factor(self, entered: Tensor) -> float | None:
        if entered.shape != self.timesteps.shape:
            return None
        times = self.timesteps.to(entered.device)
        factor = float((entered * times).sum() / times.square().sum().clamp(min=1e-12))
        if apart(factor * times, entered) > 1e-2:
            return None
        return next((known for known in _FACTORS if abs(factor - known) < 1e-2 * known), factor)

    def _computed(self, given: Tensor) -> tuple[Sinusoid, float] | None:
        from diffusers.models.embeddings import get_timestep_embedding

        n = given.shape[1]
        for flip in _FLIPS:
            for shift in _SHIFTS:
                for factor in _FACTORS:
                    times = factor * self.timesteps.to(given.device)
                    if len(times) != len(given) or n % 2:
                        return None
                    found = get_timestep_embedding(times, n, flip, shift)
                    if apart(found, given) < 2e-2:
                        return Sinusoid(n, flip, shift), factor
        return None


def _flat_first(call: ModuleCall) -> Tensor | None:
    value = call.first
    return value.float().reshape(-1, 1) if isinstance(value, Tensor) and not value.is_meta else None


def _common(path: str, *others: str | Sinusoid) -> str:
    """The path of the module that holds all, as far as they are modules."""
    parts = path.split(".")[:-1]
    for other in others:
        while parts and isinstance(other, str) and not other.startswith(f"{'.'.join(parts)}."):
            parts.pop()
    return ".".join(parts)


def _below(path: str, root: str) -> str:
    return path.removeprefix(f"{root}.") if root else path
