"""The training step, forward and backward with mean squared error: this package beside plain dense torch.

A time is taken only after the gradients have been compared with the dense computation in float64.
Run with ``pytest benchmarks --benchmark-only``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tide_kernels import LossWeights, backend_status, tide_loss


@dataclass(frozen=True)
class Shape:
    n_tokens: int
    d_model: int
    n_latents: int
    k: int

    def __str__(self) -> str:
        return f"N{self.n_tokens}-d{self.d_model}-n{self.n_latents}-k{self.k}"


SHAPES = [
    Shape(1024, 192, 3072, 154),  # the demo's step: the bundled pipeline at 5 %
    Shape(256, 1152, 4608, 32),  # PixArt's width, few active latents
    Shape(256, 1152, 4608, 230),  # PixArt's width at 5 %
]

Parameters = tuple[Tensor, Tensor, Tensor, Tensor]
Step = Callable[[Tensor, Parameters, int], Tensor]


def dense_torch(x: Tensor, parameters: Parameters, k: int) -> Tensor:
    """The step as one would write it: dense products, ``torch.topk``, scatter."""
    w_enc, b_enc, w_dec, b_dec = parameters
    pre = torch.relu(x @ w_enc.T + b_enc)
    top = pre.topk(k, dim=1)
    z = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    return (x - (z @ w_dec + b_dec)).square().mean()


def fused(backend: str) -> Step:
    def step(x: Tensor, parameters: Parameters, k: int) -> Tensor:
        weights = LossWeights(mse=1, cosine=0, temporal=0, sparsity=0)
        return tide_loss(x, *parameters, k, weights=weights, backend=backend).total

    return step


def problem(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Parameters]:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(device, dtype)

    w = torch.nn.functional.normalize(normal(shape.n_latents, shape.d_model), dim=1)
    parameters = (w.clone(), 0.1 * normal(shape.n_latents), w.clone(), 0.1 * normal(shape.d_model))
    return normal(shape.n_tokens, shape.d_model), parameters


def gradients(step: Step, x: Tensor, parameters: Parameters, k: int) -> list[Tensor]:
    leaves = tuple(p.detach().requires_grad_() for p in parameters)
    step(x, leaves, k).backward()  # type: ignore[arg-type]
    return [leaf.grad for leaf in leaves]  # type: ignore[misc]


STEPS: dict[str, Step] = {"dense-torch": dense_torch} | {
    backend: fused(backend) for backend, refused in backend_status().items() if refused is None and backend != "auto"
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_step(benchmark, name: str, shape: Shape, device: torch.device) -> None:
    benchmark.group = f"step {shape}"
    step = STEPS[name]
    exact = gradients(dense_torch, *problem(shape, device, torch.float64), shape.k)
    x, parameters = problem(shape, device, torch.float32)
    for ours, truth in zip(gradients(step, x, parameters, shape.k), exact, strict=True):
        # Near-ties select another latent in float32 now and then, so the gate is on the relative error of the whole
        # gradient rather than on its elements.
        error = (ours.double() - truth).norm() / truth.norm()
        assert error < 5e-3, f"gate: relative gradient error {error:.2e}"

    def run() -> None:
        gradients(step, x, parameters, shape.k)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark(run)
