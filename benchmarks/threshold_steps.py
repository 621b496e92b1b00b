"""Steps of BatchTopK and JumpReLU: this package's, SAELens' and plain PyTorch's, and the truth of their gradients.

Thresholds leave as many active latents as TopK has. The squared error alone is differentiated: JumpReLU's penalty has
no weight, and SAELens computes it nevertheless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.gate import GateError
from benchmarks.shapes import MSE, Problem
from tide_kernels import tide_loss

BANDWIDTH = 0.3
Activation = Literal["topk", "batch_topk", "jumprelu"]
#: Those with a threshold: the active latents of a row differ in number.
THRESHOLD_ACTIVATIONS: tuple[Activation, ...] = ("batch_topk", "jumprelu")


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


def truth(problem: Problem, cut: float) -> Truth:
    """Of the latents above ``cut``, which is JumpReLU's threshold."""
    x, W_enc, b_enc, W_dec, b_dec = (
        t.double() for t in (problem.x, problem.W_enc, problem.b_enc, problem.W_dec, problem.b_dec)
    )
    gradients = {name: torch.zeros_like(t) for name, t in {**problem.weights(), "threshold": b_enc}.items()}
    gradients = {name: g.double() for name, g in gradients.items()}
    edges = (cut - BANDWIDTH / 2, cut, cut + BANDWIDTH / 2)
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
    pre = F.linear(problem.x.float(), problem.W_enc, problem.b_enc).flatten()
    least = pre.topk(wanted + 1, sorted=False).values.topk(2, largest=False).values
    return float(least.double().mean())


def ours(
    problem: Problem,
    activation: Activation,
    cut: float,
    *,
    autocast: torch.dtype | None = None,
    backend: str = "auto",
    buffered: bool = False,
) -> peers.Step:
    """This package's step; ``buffered`` into existing gradients, as in training."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in problem.weights().items()}
    options: dict[str, Any] = {"k": problem.k, "activation": activation, "weights": MSE, "backend": backend}
    if activation == "jumprelu":
        leaves["threshold"] = torch.full_like(problem.b_enc, cut, requires_grad=True)
        options["bandwidth"] = BANDWIDTH
    options |= leaves
    if not buffered:
        return peers.Step(lambda: tide_loss(problem.x, **options).total, leaves, autocast)
    buffers = {name: torch.zeros_like(tensor) for name, tensor in leaves.items()}
    options["gradients"] = buffers
    return peers.BufferedStep(lambda: tide_loss(problem.x, **options).total, leaves, autocast, buffers=buffers)


def dense_jumprelu(
    problem: Problem, cut: float, *, autocast: torch.dtype | None = None, compiler: str | None = None
) -> peers.Step:
    """JumpReLU in plain PyTorch: dense products, a comparison, straight-through gradients of the threshold."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in problem.weights().items()}
    leaves["threshold"] = torch.full_like(problem.b_enc, cut, requires_grad=True)
    x = problem.x

    def loss(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, threshold: Tensor) -> Tensor:
        pre = F.linear(x, W_enc, b_enc)
        # Its value is 0 and its slope that of the straight-through estimate.
        estimate = (threshold - threshold.detach()) * (threshold.detach() / BANDWIDTH)
        near = (pre.detach() - threshold.detach()).abs() < BANDWIDTH / 2
        z = torch.where(pre > threshold.detach(), pre, 0) - torch.where(near, estimate, 0)
        return (z @ W_dec + b_dec - x).square().mean()

    if compiler is not None:
        torch._dynamo.reset()  # each shape is compiled for itself, however many there were before
        loss = torch.compile(loss, backend=compiler, fullgraph=True, dynamic=False)
    return peers.Step(lambda: loss(x, **leaves), leaves, autocast)


def sae_lens(
    problem: Problem, activation: Activation, cut: float, *, autocast: torch.dtype | None = None
) -> peers.Step:
    """SAELens' training step."""
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
    )
    from sae_lens.saes.sae import TrainStepInput

    n_latents, d_model = problem.W_enc.shape
    common: dict[str, Any] = {"d_in": d_model, "d_sae": n_latents, "dtype": "float32"}
    common["device"] = str(problem.x.device)
    common["apply_b_dec_to_input"] = False
    weights = problem.weights() | {"W_enc": problem.W_enc.T.contiguous()}
    sae: Any
    if activation == "jumprelu":
        sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(jumprelu_bandwidth=BANDWIDTH, **common))
        weights["threshold"] = torch.full_like(problem.b_enc, cut)
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
    return peers.Step(lambda: sae.training_forward_pass(batch).loss / d_model, leaves, autocast, frozenset({"W_enc"}))
