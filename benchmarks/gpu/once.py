"""Runs kernels once, under a tool that watches them: ``python -m benchmarks.gpu.once``.

``small`` runs every primitive, the compiled selection and the whole step, in both regimes and with all terms, at two
small shapes: one that fills its tiles and one that fills none. ``step`` runs one step of training size between the
calls that start and stop a profiler.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.bench import PAPER, SPARSE, Bench
from benchmarks.gpu.primitives import DENSE, SPARSE_KERNELS, Operands, Run
from benchmarks.gpu.thresholds import works
from benchmarks.measure import synchronise
from benchmarks.peers import Ours
from benchmarks.shapes import ALL_TERMS, Problem, Shape, make_problem
from benchmarks.threshold_steps import BANDWIDTH
from tide_kernels import native, tide_loss

SMALL = (Shape(128, 128, 512, 26), Shape(66, 70, 300, 15))
FULL = {"dense": PAPER, "sparse": SPARSE}


def small(bench: Bench) -> int:
    """Every primitive and the compiled selection, then the steps by every activation. Returns how many there were."""
    count = 0
    for shape in SMALL:
        operands = Operands(bench, shape)
        runs = {name: build(operands) for name, build in (DENSE | SPARSE_KERNELS).items()}
        runs |= {name: work.run for name, work in works(bench, shape).items()} | _compiled_selection(operands)
        for name, run in runs.items():
            if run is not None:
                print(f"{name} {shape}", flush=True)
                run()
                synchronise(bench.device)
                count += 1
        problem = make_problem(shape, bench.device, bench.dtype)
        for regime in FULL:
            contender = Ours(bench.backend, all_terms=True, regime=regime, buffered=True)
            print(f"step, {regime} {shape}", flush=True)
            contender.prepare(problem, bench.autocast).run()
            synchronise(bench.device)
            count += 1
            for activation, by_group in (("batch_topk", False), ("batch_topk", True), ("jumprelu", True)):
                with_thresholds = " with thresholds" * by_group
                print(f"step of {activation}{with_thresholds}, {regime} {shape}", flush=True)
                _threshold_step(bench, problem, activation, by_group, regime)
                synchronise(bench.device)
                count += 1
    return count


def _threshold_step(bench: Bench, problem: Problem, activation: str, by_group: bool, regime: str) -> None:
    """All terms, modulation, and thresholds of each group of tokens."""
    leaves = problem.weights() | problem.modulation()
    options: dict[str, Any] = {"group": problem.group, "dead": problem.dead, "k_aux": problem.k_aux}
    if by_group:
        leaves["threshold"] = torch.full((len(problem.scale), len(problem.W_enc)), 1.5, device=bench.device)
        options["bandwidth"] = BANDWIDTH
    options |= {"weights": ALL_TERMS, "paired": True, "backend": bench.backend, "regime": regime}
    options |= {name: tensor.clone().requires_grad_() for name, tensor in leaves.items()}
    with torch.autocast(bench.device.type, bench.dtype, enabled=bench.autocast is not None):
        total = tide_loss(problem.x, k=problem.k, activation=activation, **options).total
    total.backward()


def _compiled_selection(operands: Operands) -> dict[str, Run | None]:
    """The selection of csrc/cuda, which runs elsewhere only if it was measured to be faster than Triton's."""
    # In a dry run the CPU's kernels stand in for those of the GPU.
    if native.cuda_unavailable() if operands.bench.device.type == "cuda" else native.unavailable():
        return {}
    runs: dict[str, Run | None] = {}
    for pre in (operands.pre, operands.pre.float()):
        name = f"compiled, {str(pre.dtype).removeprefix('torch.')}"
        runs[f"select {name}"] = partial(native.select, pre, operands.shape.k)
        runs[f"keep_top_ {name}"] = partial(native.keep_top_, pre.clone(), operands.shape.k)
    return runs


def step(bench: Bench, regime: str) -> None:
    """One warm step of all terms, which a profiler sees alone."""
    problem = make_problem(bench.shape(FULL[regime]), bench.device, bench.dtype)
    prepared = Ours(bench.backend, all_terms=True, buffered=True).prepare(problem, bench.autocast)
    prepared.run()
    synchronise(bench.device)
    if bench.device.type == "cuda":
        torch.cuda.profiler.start()
    prepared.run()
    synchronise(bench.device)
    if bench.device.type == "cuda":
        torch.cuda.profiler.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.once", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("small", "step"))
    parser.add_argument("--regime", choices=list(FULL), default="dense")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    bench = Bench(options.dry_run)
    if options.what == "small":
        print(f"ran {small(bench)} kernels and steps")
    else:
        step(bench, options.regime)
    return 0


if __name__ == "__main__":
    sys.exit(main())
