"""The performance bars for a CPU: ``python -m benchmarks.cpu_bars``.

All times in a ratio are from one run, with interleaved repetitions, and are taken only after the gradients or the
result were found to be right. Float32, d_model = 1152. Run it on a machine that does nothing else;
``OMP_NUM_THREADS`` sets the threads. Writes ``benchmarks/results/cpu-<date>.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import gate, peers, threshold_bars
from benchmarks.environment import environment
from benchmarks.floors import linears
from benchmarks.measure import interleaved, peak
from benchmarks.shapes import MSE, Problem, Shape, make_problem
from benchmarks.table import RESULTS, Bar, bar_table, figure_table, write
from tide_kernels import reference, tide_loss
from tide_kernels.dispatch import choose

CPU = torch.device("cpu")
DTYPE = torch.float32


@dataclass(frozen=True)
class Plan:
    """The shapes of the bars."""

    steps: dict[Shape, tuple[float, float]]  # times faster than dense torch, and than the best peer
    products: dict[Shape, float]  # at most this many times the encoder's product
    selects: tuple[Shape, ...]
    thresholds: tuple[Shape, ...]  # steps of threshold activations
    encodes: tuple[Shape, ...]
    repetitions: int


PLAN = Plan(
    steps={
        Shape(512, 1152, 16384, 819): (3.0, 6.0),
        Shape(256, 1152, 4608, 32): (2.0, 3.0),
        Shape(256, 1152, 4608, 230): (2.0, 2.0),
    },
    products={Shape(512, 1152, 16384, 819): 1.6, Shape(2048, 1152, 16384, 32): 1.4},
    selects=tuple(Shape(256, 1152, n, n // 20) for n in (4608, 18432, 73728)),
    thresholds=(Shape(512, 1152, 16384, 819), Shape(4096, 1152, 16384, 819)),
    encodes=(Shape(512, 1152, 16384, 819), Shape(4096, 1152, 16384, 819)),
    repetitions=9,
)
TOY = Plan(
    steps={Shape(32, 48, 128, 8): (3.0, 6.0)},
    products={Shape(32, 48, 128, 8): 1.6},
    selects=(Shape(8, 48, 256, 12),),
    thresholds=(Shape(32, 48, 128, 8),),
    encodes=(Shape(32, 48, 128, 8),),
    repetitions=2,
)


KINDS = ("select", "step", "product", "encode", "thresholds")


def step_bars(shape: Shape, wanted: tuple[float, float], plan: Plan) -> tuple[dict[str, Any], list[Bar]]:
    """Forward and backward against the peers, and the memory needed."""
    problem = gate.clear_problem(shape, CPU, DTYPE, all_terms=False)
    truth = gate.truth(problem, DTYPE, all_terms=False)
    steps, figures = {}, {}
    contenders: list[peers.Contender] = [peers.Ours("auto"), *peers.peers()]
    for contender in contenders:
        if reason := contender.refuses(shape, CPU):
            print(f"  {contender.name} is left out: {reason}")
            continue
        step = contender.prepare(problem, None)
        figures[contender.name] = {"gate_error": gate.check(contender, step, truth, DTYPE)}
        steps[contender.name] = step
    timings = interleaved({n: s.run for n, s in steps.items()}, CPU, repetitions=plan.repetitions, warmup=1, budget=120)
    for name, step in steps.items():
        figures[name] |= timings[name].record() | peak(step.run, CPU, before=step.clear).record()
    ours, dense = timings["tide auto"].median, timings["dense torch"].median
    rivals = {name: t.median for name, t in timings.items() if name not in ("tide auto", "dense torch")}
    # Adds to existing gradients: fresh ones would be the same memory for all contenders.
    extra = {
        "dense torch": peak(steps["dense torch"].accumulate, CPU).extra,
        "tide gradients=": peak(accumulating_step(problem), CPU).extra,
    }
    for name, value in extra.items():
        figures.setdefault(name, {})["accumulating_extra_bytes"] = value
    memory = extra["tide gradients="] / max(extra["dense torch"], 1)
    bars = [Bar(f"step {shape}, times faster than dense torch", dense / ours, wanted[0])]
    if rivals:
        best = min(rivals, key=lambda name: rivals[name])
        bars.append(Bar(f"step {shape}, times faster than {best}", rivals[best] / ours, wanted[1]))
    bars.append(Bar(f"step {shape}, peak extra memory over dense torch's", memory, 0.25, at_most=True))
    return figures, bars


def accumulating_step(problem: Problem) -> Callable[[], object]:
    """The whole step, with gradients added to existing buffers, as training adds them to ``.grad``."""
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    W_enc, b_enc, W_dec, b_dec = (problem.weights()[name].detach() for name in names)
    tensors = (W_enc, b_enc, W_dec, b_dec)
    buffers = {name: torch.zeros_like(tensor) for name, tensor in zip(names, tensors, strict=True)}
    return lambda: tide_loss(problem.x, *tensors, problem.k, weights=MSE, gradients=buffers)


def product_bars(shape: Shape, wanted: float, plan: Plan) -> tuple[dict[str, Any], list[Bar]]:
    """The whole step against the product that any exact TopK has to compute, by PyTorch's fastest way."""
    problem = make_problem(shape, CPU, DTYPE)
    products = linears(problem.x, problem.W_enc, problem.b_enc)
    runs = {"step": accumulating_step(problem), **products}
    timings = interleaved(runs, CPU, repetitions=plan.repetitions, budget=120)
    fastest = min(products, key=lambda name: timings[name].median)
    value = timings["step"].median / timings[fastest].median
    bar = Bar(f"step {shape} over the encoder's product ({fastest})", value, wanted, at_most=True)
    return {name: timing.record() for name, timing in timings.items()}, [bar]


def select_bars(shape: Shape, plan: Plan) -> tuple[dict[str, Any], list[Bar]]:
    """Selection against ``torch.topk`` of the same pre-activations."""
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(shape.n_tokens, shape.n_latents, generator=generator)
    ops = choose("auto", "auto", device=CPU, dtype=DTYPE, n_latents=shape.n_latents, k=shape.k).ops
    for got, exact in zip(ops.select(pre, shape.k), reference.select(pre, shape.k), strict=True):
        if not torch.equal(got, exact):
            raise gate.GateError(f"select at n={shape.n_latents} selects entries that the contract does not")
    runs: dict[str, Callable[[], object]] = {
        "select": lambda: ops.select(pre, shape.k),
        "torch.topk": lambda: pre.topk(shape.k, dim=1, sorted=False),
    }
    timings = interleaved(runs, CPU, repetitions=2 * plan.repetitions + 1)
    value = timings["torch.topk"].median / timings["select"].median
    bar = Bar(f"select n={shape.n_latents} k={shape.k}, times faster than torch.topk", value, 4.0)
    return {name: timing.record() for name, timing in timings.items()}, [bar]


def measure(plan: Plan, out: Path, kinds: Sequence[str]) -> None:
    """Measures, prints and writes all figures of some kinds."""
    chosen = choose("auto", "auto", device=CPU, dtype=DTYPE, n_latents=4608, k=230)
    record: dict[str, Any] = {**environment(CPU), "backend": chosen.backend, "figures": {}, "bars": []}
    print(f"{record['processor']}, {record['threads']} threads, backend {chosen.backend}")
    stages: dict[str, Callable[[], tuple[dict[str, Any], list[Bar]]]] = {
        **{f"select {s}": partial(select_bars, s, plan) for s in plan.selects},
        **{f"step {s}": partial(step_bars, s, wanted, plan) for s, wanted in plan.steps.items()},
        **{f"product {s}": partial(product_bars, s, wanted, plan) for s, wanted in plan.products.items()},
        **{f"encode {s}": partial(threshold_bars.encode_bars, s, plan.repetitions) for s in plan.encodes},
        **{f"thresholds {s}": partial(threshold_bars.step_bars, s, plan.repetitions) for s in plan.thresholds},
    }
    stages = {name: stage for name, stage in stages.items() if name.split()[0] in kinds}
    bars: list[Bar] = []
    for name, stage in stages.items():
        figures, found = stage()
        record["figures"][name] = figures
        bars += found
        record["bars"] = [bar.record() for bar in bars]
        write(out, record)
        print(f"\n{name}\n{figure_table(figures)}", flush=True)
    print(f"\n{bar_table(record['bars'])}\n\n{out}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_bars", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / f"cpu-{date.today().isoformat()}.json")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, to check that everything runs")
    parser.add_argument("--only", choices=KINDS, nargs="+", default=KINDS, help="the kinds of figures, all by default")
    options = parser.parse_args(arguments)
    measure(TOY if options.dry_run else PLAN, options.out, options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
