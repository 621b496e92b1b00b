"""The bars of threshold activations for a CPU, a part of ``python -m benchmarks.cpu_bars``.

A step of BatchTopK and one of JumpReLU beside this package's step of TopK and beside those of SAELens
(`benchmarks.threshold_steps`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import peers
from benchmarks.floors import linears
from benchmarks.gate import GateError
from benchmarks.measure import interleaved
from benchmarks.shapes import Shape, make_problem
from benchmarks.table import Bar
from benchmarks.threshold_steps import Activation, batch_cut, ours, sae_lens, truth
from tide_kernels import encode_threshold

CPU = torch.device("cpu")
#: At most this many times the TopK step.
OVER_TOPK: dict[Activation, float] = {"batch_topk": 1.0, "jumprelu": 1.15}
OVER_SAE_LENS, OVER_PRODUCT = 6.0, 1.15


def step_bars(shape: Shape, repetitions: int) -> tuple[dict[str, Any], list[Bar]]:
    """BatchTopK's and JumpReLU's steps against TopK's and SAELens'."""
    problem = make_problem(shape, CPU, torch.float32)
    cut = batch_cut(problem)
    exact = truth(problem, cut)
    steps, figures = {"tide topk": ours(problem, "topk", cut)}, {}
    missing = peers.SaeLens().refuses(shape, CPU)
    if missing is not None:
        print(f"  sae-lens is left out: {missing}")
    for activation in OVER_TOPK:
        for maker, name, allowed in ((ours, f"tide {activation}", 1e-5), (sae_lens, f"sae-lens {activation}", 1e-4)):
            if maker is sae_lens and missing is not None:
                continue
            steps[name] = maker(problem, activation, cut)
            figures[name] = {"gate_error": exact.check(name, steps[name], allowed)}
            steps[name].clear()
    timings = interleaved({n: s.run for n, s in steps.items()}, CPU, repetitions=repetitions, warmup=1, budget=240)
    for name in steps:
        figures[name] = figures.get(name, {}) | timings[name].record()
    bars = []
    for activation, most in OVER_TOPK.items():
        own = timings[f"tide {activation}"].median
        over = own / timings["tide topk"].median
        bars.append(Bar(f"{activation} step {shape} over the topk step", over, most, at_most=True))
        if missing is None:
            times = timings[f"sae-lens {activation}"].median / own
            bars.append(Bar(f"{activation} step {shape}, times faster than sae-lens", times, OVER_SAE_LENS))
    return figures, bars


def encode_bars(shape: Shape, repetitions: int) -> tuple[dict[str, Any], list[Bar]]:
    """`encode_threshold` with a stored threshold against the encoder's product, by PyTorch's fastest way."""
    problem = make_problem(shape, CPU, torch.float32)
    cut = batch_cut(problem)
    operands = (problem.x, problem.W_enc, problem.b_enc)
    count = int(encode_threshold(*operands, cut, k=problem.k)[2].sum())
    if abs(count - len(problem.x) * problem.k) > 1e-4 * count:
        raise GateError(f"{count} latents are above the {len(problem.x) * problem.k}-th largest")
    products = linears(*operands)
    runs: dict[str, Callable[[], object]] = {
        "encode_threshold": lambda: encode_threshold(*operands, cut, k=problem.k),
        **products,
    }
    timings = interleaved(runs, CPU, repetitions=repetitions, budget=120)
    fastest = min(products, key=lambda name: timings[name].median)
    value = timings["encode_threshold"].median / timings[fastest].median
    bar = Bar(
        f"encode {shape} by a threshold over the encoder's product ({fastest})", value, OVER_PRODUCT, at_most=True
    )
    return {name: timing.record() for name, timing in timings.items()}, [bar]
