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

import torch

from benchmarks.gpu.bench import PAPER, SPARSE, Bench
from benchmarks.gpu.primitives import DENSE, SPARSE_KERNELS, Operands, Run
from benchmarks.measure import synchronise
from benchmarks.peers import Ours
from benchmarks.shapes import Shape, make_problem
from tide_kernels import native

SMALL = (Shape(128, 128, 512, 26), Shape(66, 70, 300, 15))
FULL = {"dense": PAPER, "sparse": SPARSE}


def small(bench: Bench) -> int:
    """Every primitive and the compiled selection, then the steps. Returns how many there were."""
    count = 0
    for shape in SMALL:
        operands = Operands(bench, shape)
        runs = {name: build(operands) for name, build in (DENSE | SPARSE_KERNELS).items()}
        for name, run in (runs | _compiled_selection(operands)).items():
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
    return count


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
