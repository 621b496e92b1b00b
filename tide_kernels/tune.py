"""Measures launch configurations on the GPU at hand: ``python -m tide_kernels.tune``.

Each kernel is run at the shapes given, from its configuration in use uphill: neighbours that change one entry are
timed, the fastest becomes the next start, until none gains. A candidate counts only if its result equals that of the
start. Winners go into the file that `tide_kernels.triton.configs` reads, after each kernel, so that a run that is cut
off keeps what it found. Choices of the host (cuBLAS or Triton) are entries like the others. The break-even density
of the regimes, and the single launch against the split encoder, are measured and printed.
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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide_kernels import encode_topk, tide_loss
from tide_kernels.losses import LossWeights

Config = dict[str, int]
Results = tuple[Tensor, ...]
Run = Callable[[], Results]

GAIN = 0.97  # a candidate has to take at most this share of the best time so far
GROUP_TOKENS = 256  # tokens of a timestep group

# Entries that are no sizes: what else they may be. Of group_tokens, either side of GROUP_TOKENS.
_CHOICES = {
    "cublas": (0, 1),
    "compiled": (0, 1),
    "group_tokens": (GROUP_TOKENS // 2, GROUP_TOKENS * 2),
    "maxnreg": (96, 128, 168, 240),
}
_LEAST = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}  # of a matrix product on tensor cores
_RANGE = {"num_warps": (1, 32), "num_stages": (1, 5)}


@dataclass(frozen=True)
class Shape:
    n_tokens: int
    d_model: int
    n_latents: int
    k: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From ``N,d,n,k``."""
        try:
            return cls(*map(int, text.split(",")))
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no shape: write N,d,n,k") from error

    def __str__(self) -> str:
        return f"N={self.n_tokens} d={self.d_model} n={self.n_latents} k={self.k}"


SHAPES = (Shape(16384, 1152, 18432, 922), Shape(16384, 1152, 18432, 32))


@dataclass(frozen=True)
class Job:
    """A kernel at a shape, and what `configs` looks its configuration up by."""

    kernel: str
    arch: str
    dtype: torch.dtype
    size: int
    run: Run
    label: str = ""


@dataclass(frozen=True)
class Outcome:
    job: Job
    before: Config
    after: Config
    seconds_before: float
    seconds_after: float
    trials: int


class Operands:
    """The tensors of a shape, each made when first asked for."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.generator = torch.Generator(device).manual_seed(0)

    def normal(self, *size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, generator=self.generator, device=self.device) * scale).to(self.dtype)

    @cached_property
    def x(self) -> Tensor:
        return self.normal(self.shape.n_tokens, self.shape.d_model)

    @cached_property
    def grad(self) -> Tensor:
        return self.normal(self.shape.n_tokens, self.shape.d_model, scale=0.1)

    @cached_property
    def W(self) -> Tensor:
        return self.normal(self.shape.n_latents, self.shape.d_model, scale=self.shape.d_model**-0.5)

    @cached_property
    def b(self) -> Tensor:
        return self.normal(self.shape.n_latents, scale=0.1)

    @cached_property
    def scale(self) -> Tensor:
        return self.normal(max(1, self.shape.n_tokens // GROUP_TOKENS), self.shape.d_model, scale=0.1)

    @cached_property
    def group(self) -> Tensor:
        tokens = torch.arange(self.shape.n_tokens, device=self.device)
        return tokens * len(self.scale) // self.shape.n_tokens

    @cached_property
    def pre(self) -> Tensor:
        return torch.nn.functional.linear(self.x, self.W, self.b)

    @cached_property
    def code(self) -> tuple[Tensor, Tensor]:
        return _backend().select(self.pre, self.shape.k)

    @cached_property
    def layout(self) -> Any:
        return _backend().transpose(self.code[1], self.shape.n_latents)

    @cached_property
    def z(self) -> Tensor:
        z = self.pre.clone()
        _backend().keep_top_(z, self.shape.k)
        return z

    def sums(self) -> Tensor:
        return torch.zeros(self.shape.n_latents, self.shape.d_model, device=self.device)


def _backend() -> Any:
    from tide_kernels import triton

    return triton


def _select(o: Operands) -> Run:
    if o.shape.k / o.shape.n_latents <= _backend().dense_above(o.device):
        return lambda: _backend().select(o.pre, o.shape.k)
    scratch = torch.empty_like(o.pre)

    def in_place() -> Results:  # the copy is the same for all candidates
        _backend().keep_top_(scratch.copy_(o.pre), o.shape.k)
        return (scratch,)

    return in_place


def _scatter(o: Operands) -> Run:
    out = o.sums()

    def run() -> Results:
        _backend().scatter(o.code[0], o.layout, o.grad, out.zero_())
        return (out,)

    return run


def _backward_latents(o: Operands) -> Run:
    grad_W_dec, grad_W_enc = o.sums(), o.sums()
    grad_b_enc = torch.zeros(o.shape.n_latents, device=o.device)

    def run() -> Results:
        sums = tuple(total.zero_() for total in (grad_W_dec, grad_W_enc, grad_b_enc))
        return _backend().backward_latents(*o.code, o.layout, o.grad, o.x, o.W, None, *sums), *sums

    return run


def _masked_gradient(o: Operands) -> Run:
    grad_b_enc = torch.zeros(o.shape.n_latents, device=o.device)
    fired = torch.zeros(o.shape.n_latents, dtype=torch.int64, device=o.device)

    def run() -> Results:
        sums = (grad_b_enc.zero_(), fired.zero_())
        return _backend().masked_gradient(o.grad, o.W, o.z, 0.0, None, 1.0, *sums), *sums

    return run


def _encoder_gradients(o: Operands) -> Run:
    grad_W = o.sums()
    tables = torch.zeros(2, *o.scale.shape, device=o.device)

    def run() -> Results:
        sums = (grad_W.zero_(), *tables.zero_())
        _backend().encoder_gradients(o.z, o.x, o.x, o.scale, o.scale, o.group, False, o.W, *sums)
        return sums

    return run


def _product(o: Operands) -> Run:
    from tide_kernels.triton.product import product

    out = torch.empty_like(o.pre)

    def run() -> Results:
        product(o.x, o.W.T, out, bias=o.b)
        return (out,)

    return run


def _loss(o: Operands) -> Run:
    def run() -> Results:
        found = _backend().reconstruction_loss(o.x, o.grad.float(), o.grad[0], 1.0, 1.0, o.dtype, False)
        return found.squared, found.distance, found.gradient

    return run


# How each kernel is run, and which size `configs` goes by. In the order of what a step spends on them.
_RUNNERS: dict[str, tuple[Callable[[Operands], Run], str]] = {
    "select": (_select, "n_latents"),
    "masked_gradient": (_masked_gradient, "d_model"),
    "encoder_gradients": (_encoder_gradients, "d_model"),
    "pre_activations": (lambda o: lambda: (_backend().pre_activations(o.x, o.W, o.b),), "d_model"),
    "backward_latents": (_backward_latents, "d_model"),
    "gather": (lambda o: lambda: (_backend().gather(*o.code, o.W),), "d_model"),
    "encode": (
        lambda o: lambda: _backend().encode(o.x, o.scale, o.scale, o.group, False, o.W, o.b, o.shape.k),
        "d_model",
    ),
    "reconstruction_loss": (_loss, "d_model"),
    "code_sums": (lambda o: lambda: _backend().code_sums(o.z, True, 0.1), "n_latents"),
    "modulate": (
        lambda o: lambda: (_backend().modulate(o.x, o.scale, o.scale, o.group, False, o.dtype),),
        "d_model",
    ),
    "scatter": (_scatter, "d_model"),
    "sampled": (lambda o: lambda: (_backend().sampled(o.grad, o.W, o.code[1]),), "d_model"),
    "product": (_product, "d_model"),
}
KERNELS = tuple(_RUNNERS)
_SPARSE = ("backward_latents", "gather", "scatter", "sampled")
_DENSE = ("masked_gradient", "encoder_gradients", "code_sums")


def jobs(kernels: Sequence[str], shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device) -> Iterator[Job]:
    """The kernels at the shapes at which they would run: each regime's at its densities."""
    from tide_kernels.triton import launch

    arch = launch.architecture(device)
    seen = set()
    for shape in shapes:
        operands = Operands(shape, dtype, device)
        dense = shape.k / shape.n_latents > _backend().dense_above(device)
        for kernel in kernels:
            runner, size = _RUNNERS[kernel]
            place = (kernel, getattr(shape, size))
            if kernel in (_SPARSE if dense else _DENSE) or place in seen:
                continue
            seen.add(place)
            yield Job(kernel, arch, dtype, place[1], runner(operands), f"{kernel} {shape}")


def neighbours(config: Config) -> list[Config]:
    """Configurations that differ from this one in one entry: sizes halved or doubled, stages one more or less."""
    found = []
    for name, value in config.items():
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
    start: Config, seconds_at_start: float, measure: Callable[[Config], float | None], deadline: float = math.inf
) -> tuple[Config, float, int]:
    """The best configuration uphill from ``start``, its time, and how many were tried.

    ``measure`` gives a configuration's time, or None if it fails; ``deadline`` is one of `time.monotonic`.
    """
    best, seconds, tried = start, seconds_at_start, [start]
    while True:
        round_best, round_seconds = best, seconds
        for candidate in neighbours(best):
            if candidate in tried or time.monotonic() > deadline:
                continue
            tried.append(candidate)
            taken = measure(candidate)
            if taken is not None and taken < min(GAIN * seconds, round_seconds):
                round_best, round_seconds = candidate, taken
        if round_best is best:
            return best, seconds, len(tried) - 1
        best, seconds = round_best, round_seconds


def same(results: Results, expected: Results) -> bool:
    """Whether results are equal: integers exactly, floats up to the rounding of another order of summation."""
    for got, want in zip(results, expected, strict=True):
        if not want.dtype.is_floating_point:
            if not torch.equal(got, want):
                return False
        elif not float((got.double() - want.double()).norm()) <= _allowed(want) * float(want.double().norm()):
            return False
    return True


def _allowed(tensor: Tensor) -> float:
    return max(1e-5, torch.finfo(tensor.dtype).eps)


def save(path: Path, entries: dict[str, Config]) -> None:
    """Adds entries to the file of configurations, which is replaced at once."""
    known = json.loads(path.read_text()) if path.exists() else {}
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
    """Has the kernels use ``config``, by way of a file of its own."""
    from tide_kernels.triton import configs

    saved = os.environ.get("TIDE_KERNELS_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.json"
        path.write_text(json.dumps({key: config}))
        os.environ["TIDE_KERNELS_CACHE"] = str(path)
        configs.reload()
        try:
            yield
        finally:
            if saved is None:
                del os.environ["TIDE_KERNELS_CACHE"]
            else:
                os.environ["TIDE_KERNELS_CACHE"] = saved
            configs.reload()


def tune(job: Job, timer: Callable[[Run], float], deadline: float = math.inf) -> Outcome:
    """Climbs from the job's configuration in use. ``timer`` gives the seconds of a run."""
    from tide_kernels.triton import configs

    key = configs.key(job.kernel, job.arch, job.dtype, job.size)
    before = dict(configs.lookup(job.kernel, job.arch, job.dtype, job.size))

    def clones() -> Results:
        return tuple(result.clone() for result in job.run())

    with _trial(key, before):
        expected, seconds_before = clones(), timer(job.run)

    def measure(config: Config) -> float | None:
        with _trial(key, config):
            try:
                return timer(job.run) if same(clones(), expected) else None
            except Exception:  # out of registers or shared memory, or the compiler gives up: no candidate
                return None

    after, seconds_after, trials = climb(before, seconds_before, measure, deadline)
    return Outcome(job, before, after, seconds_before, seconds_after, trials)


def tune_all(
    todo: Sequence[Job], timer: Callable[[Run], float], path: Path, minutes: float = math.inf
) -> Iterator[Outcome]:
    """Tunes one job after the other, each in its share of the time, and saves each winner."""
    from tide_kernels.triton import configs

    end = time.monotonic() + 60 * minutes
    for i, job in enumerate(todo):
        left = end - time.monotonic()
        if left <= 0:
            return
        outcome = tune(job, timer, time.monotonic() + left / (len(todo) - i))
        if outcome.after != outcome.before:
            save(path, {configs.key(job.kernel, job.arch, job.dtype, job.size): outcome.after})
            configs.reload()
        yield outcome


def break_even(times: dict[float, tuple[float, float]]) -> float | None:
    """The density at which the dense regime starts to win, from (sparse, dense) seconds by density.

    Between two densities, straight in the logarithms; None if one regime wins everywhere.
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
    """Seconds of the encoder, single launch and split."""
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
    return _backend().only_by_name()


def show(outcome: Outcome) -> str:
    changed = {n: f"{outcome.before[n]}->{v}" for n, v in outcome.after.items() if outcome.before[n] != v}
    gain = outcome.seconds_before / outcome.seconds_after
    times = f"{outcome.seconds_before * 1e3:9.3f} {outcome.seconds_after * 1e3:9.3f} {gain:6.2f} {outcome.trials:6}"
    return f"{outcome.job.label:52} {times}  {' '.join(f'{n} {v}' for n, v in changed.items()) or 'as it was'}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tide_kernels.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), help="only these")
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, default=list(SHAPES), metavar="N,d,n,k")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--minutes", type=float, default=10.0, help="stop tuning kernels after this long (default: 10)")
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
    for outcome in tune_all(
        list(jobs(options.kernels, options.shapes, dtype, device)), gpu_timer, path, options.minutes
    ):
        print(show(outcome), flush=True)
    if not options.no_dispatch:
        for line in dispatch_lines(options.shapes[0], dtype, device, gpu_timer):
            print(line, flush=True)
    return 0


def dispatch_lines(
    shape: Shape, dtype: torch.dtype, device: torch.device, timer: Callable[[Run], float]
) -> Iterator[str]:
    """What was measured of the choices between regimes and between encoders."""
    times = regimes(shape, dtype, device, timer)
    for density, (sparse, dense) in times.items():
        yield f"density {density:.3%}: sparse {sparse * 1e3:.3f} ms, dense {dense * 1e3:.3f} ms"
    found = break_even(times)
    in_use = f"in use: {_backend().dense_above(device):.3%}"
    yield (
        f"dense wins above {found:.3%} ({in_use})" if found else f"one regime wins at all of these densities ({in_use})"
    )
    taken = encoders(shape, dtype, device, timer)
    yield f"encode_topk {shape}: " + ", ".join(f"{path} {seconds * 1e3:.3f} ms" for path, seconds in taken.items())


if __name__ == "__main__":
    sys.exit(main())
