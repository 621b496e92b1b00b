"""Times of the threshold primitives on a GPU: ``python -m benchmarks.threshold_ops``, milliseconds of the device alone,
and of steps of TopK, BatchTopK and JumpReLU, of the squared error, by the host's clock.

Beside each primitive's time is the floor of its memory traffic, at the bandwidth that a copy of the pre-activations has
here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.bench import PAPER, SPARSE, Bench
from benchmarks.measure import Timing
from benchmarks.shapes import Shape, make_problem
from benchmarks.threshold_bars import OVER_TOPK, Activation, ours
from tide_kernels import triton

_BANDWIDTH = 0.3
_GROUPS = 64


def level_of(pre: Tensor, k: int) -> Tensor:
    """The threshold that about k entries of a row exceed."""
    return pre[:64].flatten().float().kthvalue(64 * (pre.shape[1] - k)).values


def runs(bench: Bench, shape: Shape) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """What is timed, and the bytes that it has to move."""
    n_tokens, d_model, n_latents = shape.n_tokens, shape.d_model, shape.n_latents
    pre, out = bench.normal(n_tokens, n_latents), torch.empty(n_tokens, n_latents, dtype=bench.dtype, device="cuda")
    level, capacity = level_of(pre, shape.k), min(n_latents, -(-4 * shape.k // 16) * 16)
    flat, row = level.expand(1, n_latents), level.expand(1, n_latents).contiguous()
    table = level.expand(_GROUPS, n_latents).contiguous()
    group = torch.arange(n_tokens, device="cuda") % _GROUPS
    cut = torch.full((n_tokens,), n_latents - 1, dtype=torch.int32, device="cuda")
    histogram = torch.zeros(2**15, dtype=torch.int64, device="cuda")
    wanted = n_tokens * shape.k
    grad, W = bench.normal(n_tokens, d_model), bench.normal(n_latents, d_model, scale=0.03)
    sums, near = torch.zeros_like(table), torch.zeros_like(table, dtype=torch.int64)
    z = out.clone()
    triton.keep_above(pre, row, None, None, z)
    u, indices, _ = triton.select_above(pre, row - _BANDWIDTH / 2, None, None, capacity)
    layout, slopes = triton.transpose_selected(indices, n_latents), bench.normal(n_tokens, capacity).float()
    dense, code = pre.numel() * pre.element_size(), n_tokens * capacity * (pre.element_size() + 4)
    found: dict[str, tuple[Callable[[], object], float]] = {
        "copy": (lambda: out.copy_(pre), 2 * dense),
        "select_above, one number": (lambda: triton.select_above(pre, flat, None, None, capacity), dense + code),
        "select_above, one number, cut": (lambda: triton.select_above(pre, flat, None, cut, capacity), dense + code),
        "select_above, by latent": (lambda: triton.select_above(pre, row, None, None, capacity), dense + code),
        "select_above, by group": (lambda: triton.select_above(pre, table, group, None, capacity), dense + code),
        "select_above, all overflow": (lambda: triton.select_above(pre, row, None, None, shape.k // 2), dense),
        "keep_above, one number": (lambda: triton.keep_above(pre, flat, None, None, out), 2 * dense),
        "keep_above, one number, cut": (lambda: triton.keep_above(pre, flat, None, cut, out), 2 * dense),
        "keep_above, by latent": (lambda: triton.keep_above(pre, row, None, None, out), 2 * dense),
        "keep_above, by group": (lambda: triton.keep_above(pre, table, group, None, out), 2 * dense),
        "key_histogram_": (lambda: triton.key_histogram_(pre, histogram, 0, None), dense),
        "rank_histogram_": (lambda: triton.rank_histogram_(pre, histogram, 0, wanted), dense),
        "count_equal": (lambda: triton.count_equal(pre, level.to(pre.dtype)), dense),
        "product": (lambda: grad @ W.T, dense),
        "near_gradient, by latent": (
            lambda: triton.near_gradient(
                grad, W, z, 0.0, sums[0], near[0], pre, row, None, _BANDWIDTH, sums[:1], near[:1]
            ),
            5 * dense,
        ),
        "near_gradient, by group": (
            lambda: triton.near_gradient(grad, W, z, 0.0, sums[0], near[0], pre, table, group, _BANDWIDTH, sums, near),
            5 * dense,
        ),
        "add_near_places, by latent": (
            lambda: triton.add_near_places(slopes, u, indices, layout, row, None, _BANDWIDTH, sums[:1], near[:1]),
            code,
        ),
        "add_near_places, by group": (
            lambda: triton.add_near_places(slopes, u, indices, layout, table, group, _BANDWIDTH, sums, near),
            code,
        ),
    }
    return {name: run for name, (run, _) in found.items()}, {name: moved for name, (_, moved) in found.items()}


def padded(bench: Bench, shape: Shape) -> dict[str, Callable[[], object]]:
    """Products of a code in as many places as it needs, and in four times as many, as codes of thresholds have."""
    x, W = bench.normal(shape.n_tokens, shape.d_model), bench.normal(shape.n_latents, shape.d_model, scale=0.03)
    values, indices = triton.select(x @ W.T, shape.k)
    wide = (0, 3 * shape.k)
    codes = {
        "k places": (values, indices),
        "4 k places": (torch.nn.functional.pad(values, wide), torch.nn.functional.pad(indices, wide, value=-1)),
    }
    found: dict[str, Callable[[], object]] = {}
    for name, code in codes.items():
        layout = triton.transpose_selected(code[1], shape.n_latents)
        sums = [torch.zeros(shape.n_latents, shape.d_model, device=bench.device) for _ in range(2)]
        bias = torch.zeros(shape.n_latents, device=bench.device)
        found |= {
            f"gather, {name}": partial(triton.gather, *code, W),
            f"transpose_selected, {name}": partial(triton.transpose_selected, code[1], shape.n_latents),
            f"backward_latents, {name}": partial(
                triton.backward_latents, *code, layout, x, x, W, None, sums[0], sums[1], bias
            ),
        }
    return found


def steps(bench: Bench, shape: Shape) -> dict[str, Timing]:
    """Steps of the activations, in turn; JumpReLU's thresholds leave about as many latents active as TopK does."""
    problem = make_problem(shape, bench.device, bench.dtype)
    pre = torch.nn.functional.linear(problem.x[:64], problem.W_enc, problem.b_enc)
    activations: tuple[Activation, ...] = ("topk", *OVER_TOPK)
    level = float(level_of(pre, shape.k))
    made = {name: ours(problem, name, level, bench.autocast, bench.backend) for name in activations}
    return bench.times({name: step.run for name, step in made.items()})


def main() -> None:
    bench = Bench(dry_run=False)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for shape in (PAPER, SPARSE):
        timed, moved = runs(bench, shape)
        times = bench.times(timed, queued=True)
        bandwidth = moved["copy"] / times["copy"].median
        print(f"{shape}: {'':29} ms    floor")
        for name, timing in times.items():
            print(f"  {name:32} {timing.median * 1e3:8.3f} {moved[name] / bandwidth * 1e3:8.3f}", flush=True)
        for name, timing in steps(bench, shape).items():
            print(f"  {f'step, {name}':32} {timing.median * 1e3:8.3f}", flush=True)
    for name, timing in bench.times(padded(bench, SPARSE), queued=True).items():
        print(f"  {name:32} {timing.median * 1e3:8.3f}", flush=True)


if __name__ == "__main__":
    main()
