"""How far a sampling run has come, in the steps that it really makes, and which part of a run is asked for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tide.errors import TideError

#: Fractions this close are the same: 1 - 1/3 and 2/3 differ in their last bit.
ROUNDING = 1e-9
#: By how much of the largest timestep a call's may differ from the scheduler's: bfloat16 keeps 8 bits.
HALF_PRECISION = 2**-7


def step_range(steps: tuple[float, float] | None) -> tuple[float, float]:
    """The part of the run that ``steps`` asks for; raises :class:`~tide.errors.TideError` if it is not a valid part."""
    if steps is None:
        return 0.0, 1.0
    first, last = steps
    if not 0 <= first < last <= 1:
        raise TideError(f"steps = {steps} must be two fractions of the sampling run, 0 <= first < last <= 1")
    return float(first), float(last)


def is_within(step: int, n_steps: int, part: tuple[float, float]) -> bool:
    """Whether step ``step`` of ``n_steps``, counted from 0, is in the ``part`` of the run: first <= step / n_steps <
    last."""
    first, last = part
    return first - ROUNDING <= step / n_steps < last - ROUNDING


def check_steps(steps: tuple[float, float] | None, n_steps: int) -> None:
    """Raises :class:`~tide.errors.TideError` where the part ``steps`` of a run holds none of its ``n_steps`` steps."""
    first, last = step_range(steps)
    if not any(is_within(step, n_steps, (first, last)) for step in range(n_steps)):
        raise TideError(
            f"steps {first:g} {last:g} holds none of the {n_steps} sampling steps; give fractions {1 / n_steps:g} "
            "apart or more"
        )


def run_position(scheduler: Any, timestep: float, timesteps: Any = None) -> tuple[int, int]:
    """(step, number of steps) of a call at ``timestep`` in the run that the scheduler is set to. ``timesteps`` are
    those of its calls, where they are not the scheduler's own (:attr:`~tide.adapters.Adapter.run_timesteps`).

    The run begins where the scheduler was told to begin (image to image skips the noisiest steps). A second-order
    scheduler is called twice in each step except the last, possibly at repeated timesteps, so calls are counted by the
    scheduler's own index. A call at another timestep than the due one, as outside of a run, belongs to the step with
    the nearest timestep.
    """
    call, n_calls, order = run_call(scheduler, timestep, timesteps)
    return call // order, math.ceil(n_calls / order)


def run_call(scheduler: Any, timestep: float, timesteps: Any = None) -> tuple[int, int, int]:
    """(call, number of calls, calls of a step) of a call at ``timestep``; see :func:`run_position`."""
    begin = getattr(scheduler, "begin_index", None) or 0
    run = torch.as_tensor(scheduler.timesteps if timesteps is None else timesteps).float().cpu()[begin:]
    n_calls, order = len(run), int(getattr(scheduler, "order", 1))
    call = _due(scheduler, begin)
    if call is None or not 0 <= call < n_calls or not _is_near(run, call, timestep):
        call = int((run - timestep).abs().argmin())
    return call, n_calls, order


def _due(scheduler: Any, begin: int) -> int | None:
    """How many calls of the run the scheduler has stepped over, where it counts them."""
    if hasattr(scheduler, "step_index"):
        return 0 if scheduler.step_index is None else scheduler.step_index - begin
    return getattr(scheduler, "counter", None)  # PNDM, which repeats a timestep, too


def _is_near(run: Tensor, call: int, timestep: float) -> bool:
    return abs(float(run[call]) - timestep) <= HALF_PRECISION * float(run.abs().max())
