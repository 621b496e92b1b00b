"""Steps of several contenders on one problem: each behind the correctness gate, then timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import gate
from benchmarks.floors import step_floor
from benchmarks.gpu.check import Check, Figures, Unit, explained
from benchmarks.gpu.replay import captured, replayed
from benchmarks.measure import peak
from benchmarks.peers import Contender, Ours, Step
from benchmarks.shapes import Problem, Shape, make_problem

GATE_TOKENS = 2048  # where the gate at full size would take most of the time


def ours(check: Check, *, all_terms: bool = False, regime: str = "auto") -> Ours:
    """The measured path: gradients into existing buffers."""
    return Ours(check.backend, all_terms, regime, buffered=True)


def contest(
    check: Check, unit: Unit, shape: Shape, contenders: Sequence[Contender], gate_tokens: int = GATE_TOKENS
) -> Figures:
    """Times and memory of contenders whose gradients are right; for the others, the reason why there is no figure."""
    gates = _Gates(check, shape.with_tokens(min(gate_tokens, shape.n_tokens)))
    problem = make_problem(shape, check.device, check.dtype)
    floor = step_floor(shape, check.device, check.dtype)
    unit.notes.append(f"{floor.regime} floor {floor.seconds * 1e3:.3f} ms: {_parts(floor.parts)}")
    steps: dict[str, Step] = {}
    for contender in contenders:
        figure = unit.figures.setdefault(contender.name, {})
        with explained(figure, check):
            if reason := contender.refuses(shape, check.device):
                figure["note"] = reason
                continue
            figure["gate_error"] = gates.error(contender)
            step = contender.prepare(problem, check.autocast)
            step.run()
            figure |= peak(step.run, check.device, before=step.clear).record()
            step.clear()
            steps[contender.name] = step
    runs = {name: step.run for name, step in steps.items()} | replays(check, unit.figures, steps)
    for name, timing in check.times(runs).items():
        unit.figures[name] |= timing.record() | {"floor_seconds": floor.seconds}
    return unit.figures


def replays(check: Check, figures: Figures, steps: dict[str, Step]) -> dict[str, Callable[[], object]]:
    """The steps that a GPU can run as graphs: ours and plain PyTorch's. The figure of one that cannot be says why.

    Other packages' steps take many times as long as their launches.
    """
    runs = {}
    for name, step in steps.items():
        if name.startswith(("tide", "dense torch")):
            figure = figures.setdefault(replayed(name), {})
            with explained(figure, check):
                runs[replayed(name)] = captured(step, check.device)
    return runs


class _Gates:
    """Gates a contender's gradients on a problem of the shape; the truths are made when they are first needed."""

    def __init__(self, check: Check, shape: Shape) -> None:
        self.check, self.shape = check, shape
        self.truths: dict[bool, tuple[Problem, gate.Truth]] = {}

    def error(self, contender: Contender) -> float:
        check, all_terms = self.check, contender.all_terms
        if all_terms not in self.truths:
            problem = gate.clear_problem(self.shape, check.device, check.dtype, all_terms=all_terms)
            self.truths[all_terms] = problem, gate.truth(problem, check.dtype, all_terms=all_terms)
        problem, truth = self.truths[all_terms]
        return gate.check(contender, contender.prepare(problem, check.autocast), truth, check.dtype)


def _parts(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds * 1e3:.3f}" for name, seconds in parts.items())


def seconds_of(figures: Figures) -> dict[str, Any]:
    """The times of those that have one."""
    return {name: figure["seconds"] for name, figure in figures.items() if "seconds" in figure}
