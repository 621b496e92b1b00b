"""The bars of threshold activations for a CPU, a part of ``python -m benchmarks.cpu_bars``.

A step of BatchTopK and one of JumpReLU beside this package's step of TopK and beside those of SAELens. The thresholds
leave as many active latents as TopK has. The squared error alone is differentiated: JumpReLU's penalty has no weight,
and SAELens computes it nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.floors import linears
from benchmarks.gate import GateError
from benchmarks.measure import interleaved
from benchmarks.shapes import MSE, Problem, Shape, make_problem
from benchmarks.table import Bar
from tide_kernels import encode_threshold, tide_loss

CPU = torch.device("cpu")
BANDWIDTH = 0.3
Activation = Literal["topk", "batch_topk", "jumprelu"]
#: At most this many times the TopK step.
OVER_TOPK: dict[Activation, float] = {"batch_topk": 1.0, "jumprelu": 1.15}
OVER_SAE_LENS, OVER_PRODUCT = 6.0, 1.15


@dataclass(frozen=True)
class Truth:
    """Gradients in float64, and the part of a gradient's norm that entries may make which float32 cannot tell from
    their threshold."""

    gradients: dict[str, Tensor]
    unclear: float

    def check(self, name: str, step: peers.Step, allowed: float) -> float:
        """The worst relative error of a step's gradients.

        Raises:
            GateError: it is above what is allowed or NaN.
        """
        step.run()
        errors = {
            n: g.double().sub(self.gradients[n]).norm() / self.gradients[n].norm() for n, g in step.gradients().items()
        }
        worst = max(errors, key=lambda n: float(errors[n].nan_to_num(torch.inf)))
        if not errors[worst] <= allowed + self.unclear:
            raise GateError(
                f"{name}: the gradient of {worst} is off by {errors[worst]:.2e}, allowed {allowed + self.unclear:.1e}"
            )
        return float(errors[worst])


def truth(problem: Problem, cut: float, edges: tuple[float, ...]) -> Truth:
    """Of the latents above ``cut``; thresholds have a gradient from those between the outer of three ``edges``."""
    x, W_enc, b_enc, W_dec, b_dec = (
        t.double() for t in (problem.x, problem.W_enc, problem.b_enc, problem.W_dec, problem.b_dec)
    )
    gradients = {name: torch.zeros_like(t) for name, t in {**problem.weights(), "threshold": b_enc}.items()}
    gradients = {name: g.double() for name, g in gradients.items()}
    close = 2e-6 * cut  # the rounding of sums of some thousand products
    unclear = 0
    for rows in torch.arange(len(x)).split(512):
        pre = x[rows] @ W_enc.T + b_enc
        unclear += sum(int(((pre - edge).abs() < close).sum()) for edge in edges)
        active = pre > cut
        z = torch.where(active, pre, 0)
        grad = (z @ W_dec + b_dec - x[rows]) * (2 / x.numel())
        grad_z = grad @ W_dec.T
        grad_pre = grad_z * active
        gradients["W_dec"] += z.T @ grad
        gradients["b_dec"] += grad.sum(0)
        gradients["W_enc"] += grad_pre.T @ x[rows]
        gradients["b_enc"] += grad_pre.sum(0)
        gradients["threshold"] -= (grad_z * ((pre - cut).abs() < BANDWIDTH / 2)).sum(0) * (cut / BANDWIDTH)
    return Truth(gradients, 3 * (unclear / (len(x) * problem.k)) ** 0.5)


def batch_cut(problem: Problem) -> float:
    """Between the ``n_tokens k``-th largest pre-activation and the next."""
    wanted = len(problem.x) * problem.k
    pre = (problem.x @ problem.W_enc.T + problem.b_enc).flatten()
    least = pre.topk(wanted + 1, sorted=False).values.topk(2, largest=False).values
    return float(least.double().mean())


def ours(
    problem: Problem, activation: Activation, cut: float, autocast: torch.dtype | None = None, backend: str = "auto"
) -> peers.Step:
    """This package's step."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in problem.weights().items()}
    options: dict[str, Any] = {"k": problem.k, "activation": activation, "weights": MSE, "backend": backend}
    if activation == "jumprelu":
        leaves["threshold"] = torch.full_like(problem.b_enc, cut, requires_grad=True)
        options["bandwidth"] = BANDWIDTH
    options |= leaves
    return peers.Step(lambda: tide_loss(problem.x, **options).total, leaves, autocast)


def sae_lens(problem: Problem, activation: Activation, cut: float) -> peers.Step:
    """SAELens' training step."""
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
    )
    from sae_lens.saes.sae import TrainStepInput

    n_latents, d_model = problem.W_enc.shape
    common: dict[str, Any] = {"d_in": d_model, "d_sae": n_latents, "device": "cpu", "dtype": "float32"}
    common["apply_b_dec_to_input"] = False
    weights = problem.weights() | {"W_enc": problem.W_enc.T.contiguous()}
    sae: Any
    if activation == "jumprelu":
        sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(jumprelu_bandwidth=BANDWIDTH, **common))
        weights["threshold"] = torch.full((n_latents,), cut)
    else:
        options = {"k": problem.k, "rescale_acts_by_decoder_norm": False}
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**options, **common))
    parameters = dict(sae.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)
    batch = TrainStepInput(
        sae_in=problem.x, coefficients={"l0": 0.0}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
    )
    leaves: dict[str, Tensor] = {name: parameters[name] for name in weights}
    return peers.Step(lambda: sae.training_forward_pass(batch).loss / d_model, leaves, None, frozenset({"W_enc"}))


def step_bars(shape: Shape, repetitions: int) -> tuple[dict[str, Any], list[Bar]]:
    """BatchTopK's and JumpReLU's steps against TopK's and SAELens'."""
    problem = make_problem(shape, CPU, torch.float32)
    cut = batch_cut(problem)
    edges = (cut - BANDWIDTH / 2, cut, cut + BANDWIDTH / 2)
    exact = truth(problem, cut, edges)
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
