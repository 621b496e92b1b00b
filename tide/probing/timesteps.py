"""What the transformer is given of the scheduler's timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tide.probing.recording import Run

#: The usual units: a + b t for the scheduler's timestep t.
UNITS = ((0.0, 1.0), (0.0, 1 / 1000), (1.0, -1 / 1000), (1000.0, -1.0))
#: How far a timestep may be off, relative to the range of all: half precision rounds.
_CLOSE = 5e-3


@dataclass(frozen=True)
class FoundTimestep:
    """The argument that holds the timestep, and its unit; ``known``: one of :data:`UNITS`."""

    argument: str
    unit: tuple[float, float]
    known: bool


def in_words(unit: tuple[float, float]) -> str:
    """``t``, ``t / 1000`` or ``1 - t / 1000``."""
    offset, factor = unit
    size = abs(factor)
    divided = 0 < size < 1 and abs(1 / size - round(1 / size)) < 1e-6
    part = "t" if size == 1 else f"t / {round(1 / size)}" if divided else f"{size:g} t"
    if not offset:
        return part if factor > 0 else f"-{part}"
    return f"{offset:g} {'-' if factor < 0 else '+'} {part}"


def find_timestep(run: Run) -> FoundTimestep | None:
    """The argument that is a linear function of the scheduler's timestep, in a run without guidance."""
    times = torch.tensor([float(each["timestep"]) for each in run.steps])
    if len(run.passes) != len(times):
        return None
    names = sorted(run.passes[0].arguments, key=lambda name: "timestep" not in name)
    for name in names:
        values = [_number(each.arguments.get(name)) for each in run.passes]
        if None in values:
            continue
        found = _unit(times, torch.tensor(values))
        if found is not None:
            return FoundTimestep(name, *found)
    return None


def _unit(times: Tensor, values: Tensor) -> tuple[tuple[float, float], bool] | None:
    spread = float(values.max() - values.min())
    if spread <= 0 or times.max() == times.min():
        return None
    for offset, factor in UNITS:
        if float((offset + factor * times - values).abs().max()) < _CLOSE * spread:
            return (offset, factor), True
    factor = float(values[0] - values[-1]) / float(times[0] - times[-1])
    offset = float(values[0]) - factor * float(times[0])
    off = float((offset + factor * times - values).abs().max())
    return ((offset, factor), False) if off < _CLOSE * spread and len(times) > 2 else None


def _number(value: Any) -> float | None:
    """The one number of an argument whose rows are alike."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Tensor) and value.numel() and value.ndim < 2 and bool((value == value.flatten()[0]).all()):
        return float(value.flatten()[0])
    return None


def given_timesteps(run: Run, argument: str, n_rows: int) -> Sequence[Tensor]:
    """What each pass was given, ``[n_rows]``."""
    return [
        torch.as_tensor(each.arguments[argument], dtype=torch.float32).cpu().reshape(-1).expand(n_rows)
        for each in run.passes
    ]
