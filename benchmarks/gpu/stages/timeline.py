"""Where a step's time goes: its kernels, the gaps between them, and the same step replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.floors import step_floor
from benchmarks.gpu.bench import PAPER, SPARSE
from benchmarks.gpu.check import Check, Unit
from benchmarks.gpu.contest import GATE_TOKENS, ours
from benchmarks.gpu.replay import captured
from benchmarks.gpu.timeline import record, summary
from benchmarks.peers import Step
from benchmarks.shapes import Problem, Shape, make_problem
from benchmarks.threshold_steps import THRESHOLD_ACTIVATIONS, Activation, batch_cut
from benchmarks.threshold_steps import ours as threshold_step

Maker = Callable[[Problem], Step]

REPETITIONS = 5
LISTED = 14  # kernels, the rest of a step is small


def timeline(check: Check) -> None:
    """The squared error's step, that of all terms, and those of threshold activations, at 5 % and with few active
    latents."""

    def topk(all_terms: bool) -> Maker:
        return lambda problem: ours(check, all_terms=all_terms).prepare(problem, check.autocast)

    def by_threshold(activation: Activation) -> Maker:
        options: dict[str, Any] = {"autocast": check.autocast, "backend": check.backend, "buffered": True}
        return lambda problem: threshold_step(problem, activation, _cut(problem), **options)

    makers = {"": topk(False), ", all terms": topk(True)}
    makers |= {f", {activation}": by_threshold(activation) for activation in THRESHOLD_ACTIVATIONS}
    for full in (PAPER, SPARSE):
        for title, make in makers.items():
            check.unit(f"{full}{title}", partial(_timeline, check, check.shape(full), make))


def _cut(problem: Problem) -> float:
    return batch_cut(problem.first(GATE_TOKENS))


def _timeline(check: Check, shape: Shape, make: Maker, unit: Unit) -> None:
    step = make(make_problem(shape, check.device, check.dtype))
    for _ in range(3):
        step.run()
    found = summary(record(step.run, check.device, REPETITIONS), REPETITIONS)
    for name, (count, seconds) in list(found.kernels.items())[:LISTED]:
        note = f"{count / REPETITIONS:g} a step, {seconds / found.busy:.1%} of the kernels' time"
        unit.figures[name[:80]] = {"seconds": seconds / REPETITIONS, "note": note}
    rest = sum(seconds for _, seconds in list(found.kernels.values())[LISTED:])
    if rest:
        note = f"{sum(n for n, _ in found.kernels.values()) / REPETITIONS:g} kernels a step in all"
        unit.figures["the rest"] = {"seconds": rest / REPETITIONS, "note": note}
    unit.notes.append(f"kernels run in {found.share:.1%} of the step; {1 - found.share:.1%} are gaps")
    unit.notes += [
        f"gap of {seconds * 1e6:.0f} us between {before[:60]} and {after[:60]}"
        for seconds, before, after in found.gaps[:3]
    ]
    _graph(check, shape, step, unit)


def _graph(check: Check, shape: Shape, step: Step, unit: Unit) -> None:
    """The step launched kernel by kernel, and replayed."""
    step.run()
    eager = {name: gradient.clone() for name, gradient in step.gradients().items()}
    replay = captured(step, check.device)
    replay()
    if different := [name for name, gradient in step.gradients().items() if not torch.equal(gradient, eager[name])]:
        raise RuntimeError(f"the replayed step has other gradients: {', '.join(different)}")
    floor = step_floor(shape, check.device, check.dtype).seconds
    for name, timing in check.times({"step, eager": step.run, "step, graph": replay}).items():
        unit.figures[name] = timing.record() | {"floor_seconds": floor}
