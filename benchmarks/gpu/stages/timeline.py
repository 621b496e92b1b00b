"""Where a step's time goes: its kernels, the gaps between them, and the same step replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.floors import step_floor
from benchmarks.gpu.bench import PAPER, SPARSE
from benchmarks.gpu.check import Check, Unit
from benchmarks.gpu.contest import ours
from benchmarks.gpu.timeline import record, summary
from benchmarks.peers import Step
from benchmarks.shapes import Shape, make_problem

REPETITIONS = 5
LISTED = 14  # kernels, the rest of a step is small


def timeline(check: Check) -> None:
    """The squared error's step and that of all terms, at 5 % and with few active latents."""
    for full in (PAPER, SPARSE):
        for all_terms in (False, True):
            title = f"{full}{', all terms' if all_terms else ''}"
            check.unit(title, partial(_timeline, check, check.shape(full), all_terms))


def _timeline(check: Check, shape: Shape, all_terms: bool, unit: Unit) -> None:
    problem = make_problem(shape, check.device, check.dtype)
    step = ours(check, all_terms=all_terms).prepare(problem, check.autocast)
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


def captured(step: Step, device: torch.device) -> Callable[[], object]:
    """A replay of the step as a CUDA graph; without a GPU the step itself."""
    if device.type != "cuda":
        return step.run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    return graph.replay
