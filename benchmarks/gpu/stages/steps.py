"""The training step: its gradients, its time over its floor, its memory."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks import gate
from benchmarks.gpu.bench import LARGE, PAPER, SPARSE
from benchmarks.gpu.check import Check, Figures, Unit, explained
from benchmarks.gpu.contest import contest, ours, seconds_of
from benchmarks.gpu.replay import in_both_forms
from benchmarks.measure import peak
from benchmarks.peers import Contender, DenseTorch
from benchmarks.shapes import Shape, make_problem
from benchmarks.table import Bar

STEPS = (PAPER, SPARSE)


def gradients(check: Check) -> None:
    """Every gradient against float64, all loss terms, both regimes."""
    for regime, full in (("sparse", SPARSE), ("dense", PAPER)):
        shape = check.shape(full).with_tokens(64 if check.dry_run else 2048)
        for dtype in (torch.float32,) if check.dry_run else (torch.float32, torch.bfloat16):
            name = f"{regime} {str(dtype).removeprefix('torch.')} {shape}"
            check.unit(name, partial(_gradients, check, regime, shape, dtype, name))


def _gradients(check: Check, regime: str, shape: Shape, dtype: torch.dtype, name: str, unit: Unit) -> None:
    problem = gate.clear_problem(shape, check.device, dtype, all_terms=True)
    truth = gate.truth(problem, dtype, all_terms=True)
    contender = ours(check, all_terms=True, regime=regime)
    step = contender.prepare(problem, None if dtype == torch.float32 else dtype)
    errors = truth.errors(step)
    unit.figures |= {leaf: {"gate_error": error} for leaf, error in errors.items()}
    worst = max(errors.values(), key=lambda error: float("inf") if error != error else error)
    allowed = gate.tolerance(contender, dtype)
    unit.bars.append(Bar(f"gradients, {name}: worst relative error", worst, allowed, at_most=True))


def step(check: Check) -> None:
    """The step at the paper's shape and with few active latents, against its floor and dense torch."""
    for full in STEPS:
        check.unit(str(full), partial(_step, check, check.shape(full)))


def _step(check: Check, shape: Shape, unit: Unit) -> None:
    mse, all_terms = ours(check), ours(check, all_terms=True)
    figures = contest(check, unit, shape, [mse, all_terms, DenseTorch()], shape.n_tokens)
    unit.bars += in_both_forms(lambda figures: step_bars(shape, figures, mse.name, all_terms.name), figures)


def step_bars(shape: Shape, figures: Figures, mse: str, all_terms: str) -> list[Bar]:
    """The squared error's step over its floor, and the step of all terms over it."""
    seconds, bars = seconds_of(figures), []
    if mse in seconds:
        over = seconds[mse] / figures[mse]["floor_seconds"]
        wanted = (1.25, 1.15) if shape.density > 0.01 else (1.5,)
        for bar, aim in zip(wanted, ("", " (aim)"), strict=False):
            bars.append(Bar(f"step {shape} over its floor{aim}", over, bar, at_most=True))
        if all_terms in seconds:
            over = seconds[all_terms] / seconds[mse]
            bars.append(Bar(f"step {shape}, all terms over the squared error", over, 1.2, at_most=True))
    return bars


def memory(check: Check) -> None:
    """Peak memory of the step at the largest shape, against dense torch's."""
    check.unit(str(LARGE), partial(_memory, check, check.shape(LARGE)))


def _memory(check: Check, shape: Shape, unit: Unit) -> None:
    problem = make_problem(shape, check.device, check.dtype)
    contenders: list[Contender] = [ours(check, all_terms=True), ours(check), DenseTorch()]
    for contender in contenders:
        figure = unit.figures[contender.name] = {}
        with explained(figure, check):
            try:
                step = contender.prepare(problem, check.autocast)
                before = 0
                if check.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(check.device)
                    before = torch.cuda.memory_allocated(check.device)
                step.run()
                figure |= peak(step.run, check.device, before=step.clear).record()
            except torch.OutOfMemoryError as error:
                held = torch.cuda.max_memory_allocated(check.device) - before
                figure |= {"peak_extra_bytes": held, "note": f"at least; {str(error).split('.')[0]}"}
            del step
    most = {name: figure.get("peak_extra_bytes") for name, figure in unit.figures.items()}
    extra, dense = most[contenders[0].name], most[contenders[-1].name]
    if extra is not None and dense is not None:
        what = f"peak extra memory {shape}, all terms over dense torch's"
        unit.bars.append(Bar(what, extra / max(dense, 1), 1 / 8, at_most=True))
