"""Tunes launch configurations on this machine's GPU: ``python -m tide_kernels.tune``.

Each kernel is tuned at the given shapes by hill climbing from its current configuration: neighbours that change one
entry are compiled in parallel and timed one after another, and the fastest becomes the next start, until none is
faster. A candidate counts only if its result equals that of the start up to rounding. Winners are saved after each
kernel to the file that `tide_kernels.triton.configs` reads, so that an interrupted run keeps what it found. Choices of
the host (cuBLAS or Triton) are entries like the others. The break-even density of the regimes, and the times of the
single-launch and the split encoder, are printed as well.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from tide_kernels import encode_topk, tide_loss
from tide_kernels.losses import LossWeights
from tide_kernels.tune_runs import (
    DENSE,
    DTYPES,
    GROUP_TOKENS,
    KERNELS,
    RUNNERS,
    SHAPES,
    SPARSE,
    Operands,
    Results,
    Run,
    Shape,
    backend,
)

Config = dict[str, int]

NO_LIMIT = 255  # registers of a thread that the hardware has anyway
DISPATCH_SHARE = 0.15  # of the minutes, for the regimes and the encoders
COMPILING = 15.0  # seconds that a round of candidates may take to compile: none begins later than this
GAIN = 0.97  # a candidate has to be below this share of the best time so far

# The choices for entries that are not sizes. For group_tokens, one on either side of GROUP_TOKENS.
_CHOICES = {
    "bitmask": (0, 1),
    "cublas": (0, 1),
    "compiled": (0, 1),
    "sums": (0, 1),
    "tma": (0, 1),
    "ahead": (0, 1),
    "persistent": (0, 1, 2),
    "group_tokens": (GROUP_TOKENS // 2, GROUP_TOKENS * 2),
    "maxnreg": (96, 128, 168, NO_LIMIT),
}
_LEAST = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}  # of a matrix product on tensor cores
_RANGE = {"num_warps": (1, 32), "num_stages": (1, 5)}


@dataclass(frozen=True)
class Job:
    """A kernel at a shape, and what `configs` looks up its configuration by."""

    kernel: str
    arch: str
    dtype: torch.dtype
    size: int
    run: Run
    label: str = ""

    @property
    def key(self) -> str:
        """The name of its configuration in the file."""
        from tide_kernels.triton import configs

        return configs.key(self.kernel, self.arch, self.dtype, self.size)


@dataclass(frozen=True)
class Outcome:
    job: Job
    before: Config
    after: Config
    seconds_before: float
    seconds_after: float
    trials: int


def jobs(kernels: Sequence[str], shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device) -> Iterator[Job]:
    """The kernels at the shapes at which they would run: those of each regime at its densities."""
    from tide_kernels.triton import configs, launch

    arch = launch.architecture(device)
    seen = set()
    for shape in shapes:
        operands = Operands(shape, dtype, device)
        dense = shape.k / shape.n_latents > backend().dense_above(device)
        for kernel in kernels:
            runner, name = RUNNERS[kernel]
            size = getattr(shape, name)
            kind = DTYPES.get(kernel, dtype)
            key = configs.key(kernel, arch, kind, size)
            if kernel in (SPARSE if dense else DENSE) or key in seen:
                continue
            seen.add(key)
            yield Job(kernel, arch, kind, size, runner(operands), f"{kernel} {shape}")


def neighbours(config: Config, arch: str) -> list[Config]:
    """Configurations that differ from this one in one entry: a size halved or doubled, one stage more or less, another
    limit of registers (which ROCm does not know)."""
    found = []
    limited = arch.startswith("sm") and "num_warps" in config  # a choice of the host alone launches no kernel
    entries = ({"maxnreg": NO_LIMIT} if limited else {}) | config
    for name, value in entries.items():
        if name in _CHOICES:
            values = {choice for choice in _CHOICES[name] if choice != value}
        elif name == "num_stages":
            values = {value - 1, value + 1}
        else:
            values = {value // 2, value * 2}
        low, high = _RANGE.get(name, (_LEAST.get(name, 0 if name in _CHOICES else 1), 2**31))
        found += [config | {name: other} for other in sorted(values) if low <= other <= high]
    return found


def climb(
    start: Config,
    seconds_at_start: float,
    measure: Callable[[Config], float | None],
    arch: str,
    deadline: float = math.inf,
    prepare: Callable[[Sequence[Config]], None] = lambda candidates: None,
    others: Sequence[Config] = (),
) -> tuple[Config, float, int]:
    """Climbs from ``start``. Returns the best configuration, its time, and how many were tried.

    ``measure`` gives a configuration's time, or None if it fails; ``prepare`` is called before with all that are to be
    measured next; ``deadline`` is one of `time.monotonic`. ``others`` are tried along with the neighbours of ``start``.
    """
    best, seconds, tried = start, seconds_at_start, [start]
    while True:
        round_best, round_seconds = best, seconds
        candidates = [each for each in (*neighbours(best, arch), *others) if each not in tried]
        if candidates and time.monotonic() + COMPILING <= deadline:
            prepare(candidates)
        else:
            candidates = []
        for candidate in candidates:
            if time.monotonic() > deadline:
                break
            tried.append(candidate)
            taken = measure(candidate)
            if taken is not None and taken < min(GAIN * seconds, round_seconds):
                round_best, round_seconds = candidate, taken
        if round_best is best:
            return best, seconds, len(tried) - 1
        best, seconds = round_best, round_seconds


def same(results: Results, expected: Results, dtype: torch.dtype) -> bool:
    """Whether results are equal: integers exactly, floats up to the rounding of operands to ``dtype`` and another order
    of summation."""
    allowed = max(1e-5, torch.finfo(dtype).eps) if dtype.is_floating_point else 0.0
    for got, want in zip(results, expected, strict=True):
        if not want.dtype.is_floating_point:
            if not torch.equal(got, want):
                return False
        elif not float((got.double() - want.double()).norm()) <= allowed * float(want.double().norm()):
            return False
    return True


def save(path: Path, entries: dict[str, Config]) -> None:
    """Adds entries to the file of configurations, which is replaced atomically."""
    from tide_kernels.triton import configs

    known = configs.read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(known | entries, indent=1, sort_keys=True) + "\n")
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


@contextmanager
def _trial(key: str, config: Config) -> Iterator[None]:
    """Makes the kernels use ``config``, by a temporary file."""
    from tide_kernels.triton import configs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.json"
        path.write_text(json.dumps({key: config}))
        with configs.using(path):
            yield


def tune(job: Job, timer: Callable[[Run], float], deadline: float = math.inf) -> Outcome:
    """Climbs from the job's configuration in use. ``timer`` gives the seconds of a run."""
    from tide_kernels.triton import configs

    before = dict(configs.lookup(job.kernel, job.arch, job.dtype, job.size))

    def clones() -> Results:
        return tuple(result.clone() for result in job.run())

    with _trial(job.key, before):
        expected, seconds_before = clones(), timer(job.run)

    def measure(config: Config) -> float | None:
        with _trial(job.key, config):
            try:
                return timer(job.run) if same(clones(), expected, job.dtype) else None
            except Exception:  # out of registers or shared memory, or the compiler fails
                return None

    # Entries that a kernel does not have here stay out: descriptors on ROCm, for example.
    others = [before | far for far in configs.FAR.get(job.kernel, ()) if far.keys() <= before.keys()]
    after, seconds_after, trials = climb(
        before, seconds_before, measure, job.arch, deadline, partial(compile_candidates, job), others
    )
    return Outcome(job, before, after, seconds_before, seconds_after, trials)


def compile_candidates(job: Job, candidates: Sequence[Config]) -> None:
    """Compiles the job's kernel in all these configurations at once. Those that fail are found when they are run."""
    from tide_kernels.triton import launch

    with launch.compiling():
        for config in candidates:
            with _trial(job.key, config), suppress(Exception):
                job.run()


def tune_all(
    todo: Sequence[Job], timer: Callable[[Run], float], path: Path, minutes: float = math.inf
) -> Iterator[Outcome]:
    """Tunes one job after another, each in its share of the time, and saves each winner."""
    from tide_kernels.triton import configs

    end = time.monotonic() + 60 * minutes
    for i, job in enumerate(todo):
        left = end - time.monotonic()
        if left <= 0:
            return
        outcome = tune(job, timer, time.monotonic() + left / (len(todo) - i))
        if outcome.after != outcome.before:
            save(path, {job.key: outcome.after})
            configs.reload()
        yield outcome


def break_even(times: dict[float, tuple[float, float]]) -> float | None:
    """The density at which the dense regime starts to win, from (sparse, dense) seconds by density.

    Interpolates linearly in the logarithms; None if one regime wins everywhere.
    """
    ordered = sorted(times.items())
    for (low, (sparse_low, dense_low)), (high, (sparse_high, dense_high)) in pairwise(ordered):
        excess_low, excess_high = math.log(sparse_low / dense_low), math.log(sparse_high / dense_high)
        if excess_low <= 0 < excess_high:
            share = -excess_low / (excess_high - excess_low)
            return math.exp(math.log(low) + share * math.log(high / low))
    return None


DENSITIES = (0.0015, 0.003, 0.006, 0.012, 0.024)


def regimes(
    shape: Shape, dtype: torch.dtype, device: torch.device, timer: Callable[[Run], float]
) -> dict[float, tuple[float, float]]:
    """Seconds of a whole step in the sparse and in the dense regime, by density."""
    o = Operands(shape, dtype, device)
    bias = torch.zeros(shape.d_model, device=device, requires_grad=True)
    W_enc, b_enc, W_dec = (tensor.float().requires_grad_() for tensor in (o.W, o.b, o.W))
    weights = LossWeights(cosine=0.0)

    def step(k: int, regime: str) -> Results:
        with torch.autocast(device.type, dtype):
            options: dict[str, Any] = {"weights": weights, "backend": "triton", "regime": regime}
            total = tide_loss(o.x, W_enc, b_enc, W_dec, bias, k, **options).total
        return torch.autograd.grad(total, (W_enc, b_enc, W_dec, bias))

    found = {}
    for density in DENSITIES:
        k = max(1, round(density * shape.n_latents))
        sparse, dense = (timer(partial(step, k, regime)) for regime in ("sparse", "dense"))
        found[k / shape.n_latents] = (sparse, dense)
    return found


def encoders(shape: Shape, dtype: torch.dtype, device: torch.device, timer: Callable[[Run], float]) -> dict[str, float]:
    """Seconds of the single-launch and of the split encoder."""
    o = Operands(shape, dtype, device)
    modulation: dict[str, Any] = {"scale": o.scale, "shift": o.scale, "group": o.group, "backend": "triton"}

    def encode(path: str) -> Results:
        return encode_topk(o.x, o.W, o.b, shape.k, **modulation, path=path)

    return {path: timer(partial(encode, path)) for path in ("split", "single")}


def gpu_timer(run: Run) -> float:
    """The median time, in seconds, with a cold cache."""
    import triton.testing

    return triton.testing.do_bench(run, warmup=5, rep=40, return_mode="median") / 1e3


def refusal() -> str | None:
    """Why nothing can be measured here, or None."""
    from tide_kernels.dispatch import backend_status

    if not torch.cuda.is_available():
        return "tune measures on a CUDA or ROCm GPU, and this machine has none"
    if reason := backend_status()["triton"]:
        return f"tune measures the Triton backend, which cannot run: {reason}"
    return backend().only_by_name()


def show(outcome: Outcome) -> str:
    changed = {n: f"{outcome.before[n]}->{v}" for n, v in outcome.after.items() if outcome.before[n] != v}
    gain = outcome.seconds_before / outcome.seconds_after
    times = f"{outcome.seconds_before * 1e3:9.3f} {outcome.seconds_after * 1e3:9.3f} {gain:6.2f} {outcome.trials:6}"
    return f"{outcome.job.label:52} {times}  {' '.join(f'{n} {v}' for n, v in changed.items()) or 'unchanged'}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tide_kernels.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), help="only these")
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, default=list(SHAPES), metavar="N,d,n,k")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--minutes", type=float, default=8.0, help="end after about this long (default: 8)")
    parser.add_argument("--no-dispatch", action="store_true", help="leave out the regimes and the encoders")
    options = parser.parse_args(arguments)
    if reason := refusal():
        print(reason, file=sys.stderr)
        return 2
    from tide_kernels.triton import configs

    dtype, device = getattr(torch, options.dtype), torch.device("cuda")
    path = configs.cache_file()
    print(f"{torch.cuda.get_device_name(device)}, {options.dtype}, into {path}")
    print(f"{'kernel':52} {'before ms':>9} {'after ms':>9} {'gain':>6} {'trials':>6}")
    minutes = options.minutes * (1 if options.no_dispatch else 1 - DISPATCH_SHARE)
    for outcome in tune_all(list(jobs(options.kernels, options.shapes, dtype, device)), gpu_timer, path, minutes):
        print(show(outcome), flush=True)
    if not options.no_dispatch:
        for line in dispatch_lines(options.shapes[0], dtype, device, gpu_timer):
            print(line, flush=True)
    return 0


def dispatch_lines(
    shape: Shape, dtype: torch.dtype, device: torch.device, timer: Callable[[Run], float]
) -> Iterator[str]:
    """The measurements that decide between regimes and between encoders."""
    times = regimes(shape, dtype, device, timer)
    for density, (sparse, dense) in times.items():
        yield f"density {density:.3%}: sparse {sparse * 1e3:.3f} ms, dense {dense * 1e3:.3f} ms"
    found = break_even(times)
    in_use = f"in use: {backend().dense_above(device):.3%}"
    yield (
        f"dense wins above {found:.3%} ({in_use})" if found else f"one regime wins at all these densities ({in_use})"
    )
    taken = encoders(shape, dtype, device, timer)
    yield f"encode_topk {shape}: " + ", ".join(f"{path} {seconds * 1e3:.3f} ms" for path, seconds in taken.items())


if __name__ == "__main__":
    sys.exit(main())
