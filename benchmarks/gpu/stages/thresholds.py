"""Threshold activations: steps beside TopK's and the peers', and single primitives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.bench import PAPER, SPARSE
from benchmarks.gpu.check import Check, Figures, Unit, explained
from benchmarks.gpu.contest import GATE_TOKENS, replays, seconds_of
from benchmarks.gpu.replay import in_both_forms
from benchmarks.gpu.stages.peers import compiler
from benchmarks.gpu.thresholds import works
from benchmarks.measure import peak
from benchmarks.peers import SaeLens, Step
from benchmarks.shapes import Problem, Shape, make_problem
from benchmarks.table import Bar
from benchmarks.threshold_steps import (
    THRESHOLD_ACTIVATIONS,
    Activation,
    Truth,
    batch_cut,
    dense_jumprelu,
    ours,
    sae_lens,
    truth,
)

Maker = Callable[[Problem, float, torch.dtype | None], Step]


def thresholds(check: Check) -> None:
    """Steps of the squared error by every activation, and the primitives of threshold activations over the time of
    their memory traffic."""
    for full in (PAPER, SPARSE):
        check.unit(f"steps {full}", partial(_steps, check, check.shape(full)))
    for full in (PAPER, SPARSE):
        check.unit(f"primitives {full}", partial(_primitives, check, check.shape(full)))


def makers(check: Check) -> dict[str, Maker]:
    """Steps by contender; ours adds to existing gradients, as in training."""

    def own(activation: Activation) -> Maker:
        return lambda problem, cut, autocast: ours(
            problem, activation, cut, autocast=autocast, backend=check.backend, buffered=True
        )

    def theirs(activation: Activation) -> Maker:
        return lambda problem, cut, autocast: sae_lens(problem, activation, cut, autocast=autocast)

    def plain(compiler: str | None) -> Maker:
        return lambda problem, cut, autocast: dense_jumprelu(problem, cut, autocast=autocast, compiler=compiler)

    return {
        "tide topk": own("topk"),
        **{f"tide {activation}": own(activation) for activation in THRESHOLD_ACTIVATIONS},
        "dense torch jumprelu": plain(None),
        "dense torch jumprelu, compiled": plain(compiler(check)),
        **{f"sae-lens {activation}": theirs(activation) for activation in THRESHOLD_ACTIVATIONS},
    }


def _steps(check: Check, shape: Shape, unit: Unit) -> None:
    """Each behind two gates: in float32, and in the precision that is timed, where entries next to the threshold
    may fall on either side."""
    gate, problem = _Gate(check, shape), make_problem(shape, check.device, check.dtype)
    cut = batch_cut(gate.problem)
    steps: dict[str, Step] = {}
    for name, make in makers(check).items():
        figure = unit.figures.setdefault(name, {})
        with explained(figure, check):
            if name.startswith("sae-lens") and (reason := SaeLens().refuses(shape, check.device)):
                figure["note"] = reason
                continue
            if name != "tide topk":  # which the stage "step" gates
                figure |= gate.errors(name, make)
            step = make(problem, cut, check.autocast)
            step.run()
            figure |= peak(step.run, check.device, before=step.clear).record()
            step.clear()
            steps[name] = step
    runs = {name: step.run for name, step in steps.items()} | replays(check, unit.figures, steps)
    for name, timing in check.times(runs).items():
        unit.figures[name] |= timing.record()
    unit.notes.append(f"threshold {cut:.3f}, the {len(gate.problem.x)} k-th largest pre-activation of as many tokens")
    unit.bars += in_both_forms(partial(step_bars, shape), unit.figures)


class _Gate:
    """Gradients of fewer tokens against float64."""

    def __init__(self, check: Check, shape: Shape) -> None:
        self.check = check
        tokens = min(GATE_TOKENS, shape.n_tokens)
        self.problem = make_problem(shape.with_tokens(tokens), check.device, torch.float32)
        self.cut = batch_cut(self.problem)
        self.truth: Truth = truth(self.problem, self.cut)

    def errors(self, name: str, make: Maker) -> dict[str, Any]:
        """The worst error in float32, and a note of that in the precision that is timed.

        Raises:
            GateError: one of them is too large.
        """
        allowed = 1e-5 if name.startswith("tide") else 1e-4
        found: dict[str, Any] = {"gate_error": self.truth.check(name, make(self.problem, self.cut, None), allowed)}
        if (dtype := self.check.autocast) is not None:
            rounded = self.truth.check(name, make(self.problem, self.cut, dtype), ROUNDED)
            found["note"] = f"gradients are off by {rounded:.1e} in {str(dtype).removeprefix('torch.')}"
        return found


#: In bfloat16 about 2 % of a code's entries are so near to the threshold that rounding decides whether they are active:
#: as if as many were wrong, sqrt(0.02) of a gradient, and twice that for those which replace them.
ROUNDED = 0.3


def step_bars(shape: Shape, figures: Figures) -> list[Bar]:
    """BatchTopK and JumpReLU over TopK, and how many times faster than other steps of the same activation."""
    seconds, bars = seconds_of(figures), []
    for activation in THRESHOLD_ACTIVATIONS:
        own = seconds.get(f"tide {activation}")
        if own is None:
            continue
        if "tide topk" in seconds:
            most = 1.0 if activation == "batch_topk" else 1.15
            what = f"{activation} step {shape} over the topk step"
            bars.append(Bar(what, own / seconds["tide topk"], most, at_most=True))
        for rival, wanted in (("sae-lens", 2.0), ("dense torch", 1.3)):
            times = {n: s for n, s in seconds.items() if activation in n and n.startswith(rival)}
            if times:
                best = min(times, key=lambda n: times[n])
                bars.append(Bar(f"{activation} step {shape}, times faster than {best}", times[best] / own, wanted))
    return bars


def _primitives(check: Check, shape: Shape, unit: Unit) -> None:
    found = works(check, shape)
    times = check.times({name: work.run for name, work in found.items()}, queued=True)
    bandwidth = found["copy"].moved / times["copy"].median
    for name, timing in times.items():
        unit.figures[name] = timing.record() | {"floor_seconds": found[name].moved / bandwidth}
