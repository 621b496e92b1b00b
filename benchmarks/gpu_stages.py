"""The stages of `benchmarks.gpu_check`: tests and measurements on a GPU, the most important first."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import gate
from benchmarks.floors import select_seconds, step_floors
from benchmarks.measure import Timing, interleaved, peak
from benchmarks.peers import Contender, DenseTorch, Ours, SaeLens, Sparsify, interpreted
from benchmarks.probes import gather_bandwidth
from benchmarks.shapes import Shape, make_problem
from benchmarks.table import Bar
from tide_kernels import reference, tune
from tide_kernels.dispatch import choose

__all__ = ["STAGES", "Check", "interpreted"]

ROOT = Path(__file__).parent.parent
TESTS = "tests/kernels"
DRY_TESTS = ["--collect-only", "-qq", f"{TESTS}/test_reference_gpu.py"]
PAPER = Shape(16384, 1152, 18432, 922)
SPARSE = Shape(16384, 1152, 18432, 32)
LARGE = Shape(65536, 1152, 73728, 3686)
WIDE = Shape(16384, 4608, 18432, 922)
GATE_TOKENS = 2048  # for the grid's gates; the paper's shape is checked in full

Figures = dict[str, dict[str, Any]]


class Check:
    """Where and how long to measure, and the results of the current stage."""

    def __init__(self, device: torch.device, dry_run: bool, deadline: float) -> None:
        self.device, self.dry_run, self.deadline = device, dry_run, deadline
        self.dtype = torch.float32 if dry_run else torch.bfloat16
        self.backend = "reference" if dry_run else "triton"
        self.begin()

    def begin(self) -> None:
        self.figures: dict[str, Figures] = {}
        self.bars: list[Bar] = []
        self.notes: list[str] = []

    def results(self) -> dict[str, Any]:
        return {"figures": self.figures, "bars": [bar.record() for bar in self.bars], "notes": self.notes}

    def left(self) -> float:
        """Seconds during which further stages may start."""
        return self.deadline - time.monotonic()

    def alive(self) -> bool:
        """Whether the device still answers after an error."""
        try:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
                torch.cuda.empty_cache()
        except RuntimeError:
            return False
        return True

    def shape(self, shape: Shape) -> Shape:
        """The shape itself, or in a dry run a small one of about its density."""
        if not self.dry_run:
            return shape
        return Shape(64, 32, 256, max(1, round(256 * shape.density)))

    @property
    def autocast(self) -> torch.dtype | None:
        return None if self.dtype == torch.float32 else self.dtype

    @property
    def repetitions(self) -> int:
        return 2 if self.dry_run else 15

    def times(self, runs: dict[str, Callable[[], object]], **options: Any) -> dict[str, Timing]:
        return interleaved(runs, self.device, repetitions=self.repetitions, budget=20, **options)

    def ops(self, shape: Shape) -> Any:
        found = choose(self.backend, "auto", device=self.device, dtype=self.dtype, n_latents=shape.n_latents, k=shape.k)
        return found.ops

    def normal(self, *size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(*size, device=self.device).to(dtype or self.dtype)


def _pytest(check: Check, *arguments: str) -> None:
    """Runs tests in a separate process; if they fail, the stage fails."""
    # tests/conftest.py is for pipelines and needs diffusers.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x" if check.dry_run else "--maxfail=20",
        f"--confcutdir={TESTS}",
    ]
    limit = max(30.0, min(check.left() / 2, 480.0))
    try:
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the tests took more than {limit:.0f} s") from None
    lines = (done.stdout + done.stderr).strip().splitlines()
    check.notes += [line for line in lines if line.startswith(("FAILED", "ERROR"))] + lines[-1:]
    if done.returncode:
        raise RuntimeError(f"pytest {' '.join(arguments)} ended with {done.returncode}: {' / '.join(lines[-3:])}")


def gpu_tests(check: Check) -> None:
    """The tests marked gpu."""
    _pytest(check, *(DRY_TESTS if check.dry_run else ["-m", "gpu", TESTS]))


def kernel_tests(check: Check) -> None:
    """The tests of Triton kernels, which elsewhere run in the interpreter."""
    folder = f"{TESTS}/triton"
    _pytest(check, *(DRY_TESTS if check.dry_run else [f"--ignore={folder}/test_aot.py", folder]))


def gradients(check: Check) -> None:
    """Every gradient against float64, all loss terms, both regimes."""
    for regime in ("sparse", "dense"):
        for dtype in (torch.float32,) if check.dry_run else (torch.float32, torch.bfloat16):
            shape = check.shape(PAPER if regime == "dense" else SPARSE).with_tokens(64 if check.dry_run else 2048)
            problem = gate.clear_problem(shape, check.device, dtype, all_terms=True)
            truth = gate.truth(problem, dtype, all_terms=True)
            contender = Ours(check.backend, all_terms=True, regime=regime)
            step = contender.prepare(problem, None if dtype == torch.float32 else dtype)
            errors = truth.errors(step)
            name = f"{regime} {str(dtype).removeprefix('torch.')}"
            check.figures[f"{name} {shape}"] = {leaf: {"gate_error": error} for leaf, error in errors.items()}
            worst = max(errors.values(), key=lambda error: float("inf") if error != error else error)
            allowed = gate.tolerance(contender, dtype)
            check.bars.append(Bar(f"gradients, {name}: worst relative error", worst, allowed, at_most=True))


def step(check: Check) -> None:
    """The training step at the paper's shape, against its floor and dense torch."""
    for shape in (check.shape(PAPER), check.shape(SPARSE)):
        figures = _contest(check, shape, [Ours(check.backend), Ours(check.backend, True), DenseTorch()], shape.n_tokens)
        ours, all_terms = figures[f"tide {check.backend}"], figures[f"tide {check.backend}, all terms"]
        floors = step_floors(shape, check.device, check.dtype)
        for floor in floors:
            check.notes.append(f"{shape} {floor.regime} floor {floor.seconds * 1e3:.3f} ms: " + _parts(floor.parts))
        floor = floors[0] if shape.density > 0.01 else floors[1]
        for name, figure in (("mse", ours), ("all terms", all_terms)):
            if "seconds" in figure:
                over = figure["seconds"] / floor.seconds
                check.bars.append(Bar(f"step {shape} over its floor, {name}", over, 1.25, at_most=True))


def _parts(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds * 1e3:.3f}" for name, seconds in parts.items())


def _contest(check: Check, shape: Shape, contenders: list[Contender], gate_tokens: int) -> Figures:
    """Times and memory of contenders whose gradients are right; for the others, the reason why there is no figure."""
    figures = check.figures.setdefault(f"step {shape}", {})
    checked = shape.with_tokens(min(gate_tokens, shape.n_tokens))
    problem = make_problem(shape, check.device, check.dtype)
    truths: dict[bool, tuple[Any, gate.Truth]] = {}
    steps = {}
    for contender in contenders:
        figure = figures[contender.name] = {}
        if reason := contender.refuses(shape, check.device):
            figure["note"] = reason
            continue
        try:
            if contender.all_terms not in truths:
                small = gate.clear_problem(checked, check.device, check.dtype, all_terms=contender.all_terms)
                truths[contender.all_terms] = (small, gate.truth(small, check.dtype, all_terms=contender.all_terms))
            small, truth = truths[contender.all_terms]
            figure["gate_error"] = gate.check(contender, contender.prepare(small, check.autocast), truth, check.dtype)
            prepared = contender.prepare(problem, check.autocast)
            figure |= peak(prepared.run, check.device, before=prepared.clear).record()
            prepared.clear()
            steps[contender.name] = prepared
        except (gate.GateError, torch.OutOfMemoryError, RuntimeError) as error:
            figure["note"] = " ".join(str(error).split())[:200]
            if not check.alive():
                raise
    floor = min(f.seconds for f in step_floors(shape, check.device, check.dtype))
    for name, timing in check.times({name: prepared.run for name, prepared in steps.items()}).items():
        figures[name] |= timing.record() | {"share_of_floor": floor / timing.median}
    return figures


def selection(check: Check) -> None:
    """Selection in place and compact, against ``torch.topk`` and a copy."""
    for n_latents in (4608, 18432, 73728):
        shape = check.shape(Shape(16384, 1152, n_latents, n_latents // 20))
        pre, k, ops = check.normal(shape.n_tokens, shape.n_latents), shape.k, check.ops(shape)
        exact = reference.select(pre[:1024], k)
        if not all(torch.equal(a, b) for a, b in zip(ops.select(pre[:1024], k), exact, strict=True)):
            raise gate.GateError(f"select at {shape} selects entries that the contract does not")
        z = pre[:1024].clone()
        ops.keep_top_(z, k)
        if not torch.equal(z.gather(1, exact[1].clamp(min=0).long()), exact[0]) or int((z != 0).sum()) != int(
            (exact[1] >= 0).sum()
        ):
            raise gate.GateError(f"keep_top_ at {shape} selects entries that the contract does not")
        scratch = torch.empty_like(pre)
        restore = partial(scratch.copy_, pre)
        times = check.times(
            {
                "in place": partial(ops.keep_top_, scratch, k),
                "compact": partial(ops.select, pre, k),
                "torch.topk": partial(pre.topk, k, dim=1, sorted=False),
            },
            before={"in place": restore},
        )
        floor = select_seconds(shape, check.device, check.dtype)
        check.figures[f"selection {shape}"] = {
            name: {**timing.record(), "share_of_floor": floor / timing.median} for name, timing in times.items()
        } | {"reading and writing once": {"seconds": floor}}
        if n_latents == 18432:
            ours = times["in place"].median
            check.bars.append(Bar(f"select {shape} over reading and writing once", ours / floor, 2.0, at_most=True))
            faster = times["torch.topk"].median / ours
            check.bars.append(Bar(f"select {shape}, times faster than torch.topk", faster, 5.0))


def products(check: Check) -> None:
    """PyTorch's products at the five shapes of a step, and what a fused ReLU costs."""
    shape = check.shape(PAPER)
    n_tokens, d_model, n_latents = shape.n_tokens, shape.d_model, shape.n_latents
    x, W, b = check.normal(n_tokens, d_model), check.normal(n_latents, d_model), check.normal(n_latents)
    z = check.normal(n_tokens, n_latents)
    runs: dict[str, Callable[[], object]] = {
        "encode: linear": lambda: F.linear(x, W, b),
        "encode: _addmm_activation": lambda: torch._addmm_activation(b, x, W.T),
        "decode": lambda: z @ W,
        "d latents": lambda: x @ W.T,
        "d W_dec": lambda: z.T @ x,
    }
    if check.device.type == "cuda":  # the form that sums over chunks
        runs["d W_enc, float32 result"] = lambda: torch.mm(z.T, x, out_dtype=torch.float32)
    flops = 2 * n_tokens * d_model * n_latents
    figures: Figures = {name: dict(timing.record()) for name, timing in check.times(runs).items()}
    for figure in figures.values():
        figure["note"] = f"{flops / figure['seconds'] / 1e12:.0f} TFLOP/s"
    check.figures[f"products {shape}"] = figures


def gathers(check: Check) -> None:
    """The bandwidth of row gathers from tables of 10, 42 and 170 MB, which determines where the regimes break even."""
    figures = {}
    for n_latents in (4608, 18432, 73728):
        shape = check.shape(Shape(16384, 1152, n_latents, 64))
        bandwidth = gather_bandwidth(shape.n_latents, shape.d_model, shape.k, check.device, check.dtype)
        megabytes = shape.n_latents * shape.d_model * check.dtype.itemsize / 1e6
        figures[f"{megabytes:.0f} MB"] = {"bytes_per_second": bandwidth, "note": f"{bandwidth / 1e12:.2f} TB/s"}
    check.figures["gather bandwidth"] = figures


def masked_product(check: Check) -> None:
    """The masked gradient of the latents, against the plain product and an elementwise pass."""
    shape = check.shape(PAPER)
    ops = check.ops(shape)
    grad, W = check.normal(shape.n_tokens, shape.d_model), check.normal(shape.n_latents, shape.d_model)
    z = check.normal(shape.n_tokens, shape.n_latents)
    ops.keep_top_(z, shape.k)
    sums = torch.zeros(shape.n_latents, device=check.device)
    fired = torch.zeros(shape.n_latents, dtype=torch.int64, device=check.device)
    runs: dict[str, Callable[[], object]] = {
        "masked_gradient": lambda: ops.masked_gradient(grad, W, z, 0.0, None, 1.0, sums, fired),
        "product": lambda: grad @ W.T,
        "product and mask": lambda: (grad @ W.T).masked_fill_(z == 0, 0),
    }
    check.figures[f"d latents {shape}"] = {name: t.record() for name, t in check.times(runs).items()}


def encoders(check: Check) -> None:
    """`encode_topk` in one launch and in several."""
    shape = check.shape(PAPER)
    if reason := tune.refusal():
        check.notes.append(reason)
        return
    seconds = tune.encoders(tune.Shape(*_sizes(shape)), check.dtype, check.device, tune.gpu_timer)
    check.figures[f"encode_topk {shape}"] = {path: {"seconds": value} for path, value in seconds.items()}


def _sizes(shape: Shape) -> tuple[int, int, int, int]:
    return shape.n_tokens, shape.d_model, shape.n_latents, shape.k


def dispatch(check: Check) -> None:
    """The density at which the dense regime starts to win."""
    if reason := tune.refusal():
        check.notes.append(reason)
        return
    times = tune.regimes(tune.Shape(*_sizes(PAPER)), check.dtype, check.device, tune.gpu_timer)
    check.figures["step by regime"] = {
        f"{density:.3%} {regime}": {"seconds": seconds}
        for density, both in times.items()
        for regime, seconds in zip(("sparse", "dense"), both, strict=True)
    }
    found = tune.break_even(times)
    check.notes.append(f"break-even density: {'none' if found is None else f'{found:.3%}'}")


def tuning(check: Check) -> None:
    """Tunes launch configurations, in at most a third of the remaining time."""
    printed = io.StringIO()
    minutes = max(check.left() / 60 / 3, 0.1)
    with redirect_stdout(printed), redirect_stderr(printed):
        tune.main(["--minutes", str(minutes), "--no-dispatch"])
    check.notes += printed.getvalue().splitlines()
    try:
        from tide_kernels.triton import configs
    except ImportError:
        return
    path = configs.cache_file()
    if path.exists():
        check.notes.append("tuned.json: " + json.dumps(configs.read(path), sort_keys=True))


def grid(check: Check) -> None:
    """All loss terms against each peer's squared error, over k and n."""
    shapes = [
        Shape(16384, 1152, n_latents, k) for n_latents in (18432, 4608, 73728) for k in (n_latents // 20, 32, 64, 256)
    ]
    shapes.insert(1, WIDE)
    for full in shapes[:2] if check.dry_run else shapes:
        if check.left() < 20:
            check.notes.append(f"no time was left for {full}")
            continue
        shape = check.shape(full)
        ours = Ours(check.backend, all_terms=True)
        contenders: list[Contender] = [ours, Ours(check.backend), DenseTorch(), Sparsify(), SaeLens()]
        figures = _contest(check, shape, contenders, GATE_TOKENS)
        _grid_bars(check, shape, figures, ours.name)


def _grid_bars(check: Check, shape: Shape, figures: Figures, ours: str) -> None:
    seconds = {name: figure["seconds"] for name, figure in figures.items() if "seconds" in figure}
    if ours not in seconds:
        return
    few = shape.k <= 64 and shape.n_latents >= 18432
    at_five_percent = abs(shape.density - 0.05) < 0.005
    wanted = {
        "dense torch": 1.0,
        "eai-sparsify": 4.0 if at_five_percent else 1.0,
        "sae-lens": 1.6 if at_five_percent else 1.0,
    }
    rivals = {name: seconds[name] / seconds[ours] for name in wanted if name in seconds}
    for name, faster in rivals.items():
        check.bars.append(Bar(f"step {shape}, all terms, times faster than {name}", faster, wanted[name]))
    if few and rivals:
        check.bars.append(Bar(f"step {shape}, all terms, times faster than the best", min(rivals.values()), 2.0))


def memory(check: Check) -> None:
    """Peak memory of the step at the largest shape, against dense torch's."""
    shape = check.shape(LARGE)
    problem = make_problem(shape, check.device, check.dtype)
    figures: Figures = check.figures.setdefault(f"memory {shape}", {})
    contenders: list[Contender] = [Ours(check.backend, all_terms=True), Ours(check.backend), DenseTorch()]
    for contender in contenders:
        try:
            step = contender.prepare(problem, check.autocast)
            step.run()
            figures[contender.name] = peak(step.run, check.device, before=step.clear).record()
            step.clear()
        except torch.OutOfMemoryError as error:
            held = torch.cuda.max_memory_allocated(check.device)
            figures[contender.name] = {"peak_extra_bytes": held, "note": f"at least; {str(error).split('.')[0]}"}
            check.alive()
    ours, dense = (figures[contenders[i].name]["peak_extra_bytes"] for i in (0, 2))
    check.bars.append(Bar(f"peak extra memory {shape} over dense torch's", ours / max(dense, 1), 1 / 8, at_most=True))


STAGES: dict[str, Callable[[Check], None]] = {
    "gpu tests": gpu_tests,
    "gradients": gradients,
    "step": step,
    "selection": selection,
    "products": products,
    "gathers": gathers,
    "masked product": masked_product,
    "encoders": encoders,
    "dispatch": dispatch,
    "memory": memory,
    "tuning": tuning,
    "step, tuned": step,
    "grid": grid,
    "kernel tests": kernel_tests,
}
