"""The training step, forward and backward: this package's backends and their peers.

The peers compute the mean squared error; this package computes that and, in a second step, all of its loss terms.
Steps are timed only after their gradients were compared with float64. Run with ``pytest benchmarks --benchmark-only``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from benchmarks import gate, peers
from benchmarks.floors import step_floor
from benchmarks.measure import peak, synchronise
from benchmarks.shapes import Problem, Shape, compute_dtype, step_shapes

SHAPES = step_shapes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
CONTENDERS = peers.ours() + peers.peers()


@cache
def _problem(shape: Shape, device: torch.device, all_terms: bool) -> tuple[Problem, gate.Truth]:
    dtype = compute_dtype(device)
    problem = gate.clear_problem(shape, device, dtype, all_terms=all_terms)
    return problem, gate.truth(problem, dtype, all_terms=all_terms)


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step(benchmark: Any, contender: peers.Contender, shape: Shape, device: torch.device) -> None:
    reason = contender.refuses(shape, device)
    if reason is not None:
        pytest.skip(reason)
    dtype = compute_dtype(device)
    problem, truth = _problem(shape, device, contender.all_terms)
    step = contender.prepare(problem, None if dtype == torch.float32 else dtype)
    error = gate.check(contender, step, truth, dtype)

    def run() -> None:
        step.run()
        synchronise(device)

    benchmark.group = f"step {shape}"
    benchmark.extra_info |= {
        "name": contender.name,
        "kind": "ours" if contender.name.startswith("tide") else "peer",
        "gate_error": error,
        "floor_seconds": step_floor(shape, device, dtype).seconds,
        **peak(run, device, before=step.clear).record(),
    }
    benchmark.pedantic(run, rounds=5 if device.type == "cpu" else 20, warmup_rounds=1)
