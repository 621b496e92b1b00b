"""The correctness gate before each figure: gradients against float64 autograd.

The truth is computed from the equations in float64, with operands rounded to the compute dtype: tokens, weights and
pre-activations are rounded to it, and gradients pass through the rounding. Contenders can then differ only in the
rounding of sums and, if they break ties differently, in the tied latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers import Contender, Step
from benchmarks.shapes import ALL_TERMS, MSE, Problem, Shape, make_problem
from tide_kernels import LossWeights

SOFT_EPS, DELTA = 0.1, 0.01  # the defaults of tide_loss
CHUNK_ELEMENTS = 2**25  # of a float64 [tokens, n_latents] tensor


class GateError(AssertionError):
    """A contender's gradients are wrong, so it gets no figure."""


@dataclass(frozen=True)
class Truth:
    gradients: dict[str, Tensor]

    def errors(self, step: Step) -> dict[str, float]:
        """Runs the step. Returns the error of each gradient, relative to its norm."""
        step.run()
        errors = {}
        for name, gradient in step.gradients().items():
            exact = self.gradients.get(name)
            if exact is not None:
                difference = gradient.double().sub_(exact).norm()
                errors[name] = float(difference / exact.norm())
        return errors


def tolerance(contender: Contender, dtype: torch.dtype) -> float:
    """Allowed errors. The peers' 0.3 in bfloat16 allows for ties at the k-th value, about 2 % of a code at n = 18432,
    which `torch.topk` breaks in any way; float32 problems have no near-ties."""
    if dtype == torch.float32:
        return 1e-5 if contender.name.startswith("tide") else 1e-4
    return 2 * torch.finfo(dtype).eps if contender.name.startswith("tide") else 0.3


def check(contender: Contender, step: Step, truth: Truth, dtype: torch.dtype) -> float:
    """The worst error of a contender's gradients.

    Raises:
        GateError: the error is above the tolerance or NaN.
    """
    allowed = tolerance(contender, dtype)
    errors = truth.errors(step)
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
    if not errors[worst] <= allowed:
        raise GateError(
            f"{contender.name}: the gradient of {worst} is off by {errors[worst]:.2e}, allowed {allowed:.1e}"
        )
    return errors[worst]


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds float64 to the precision of ``dtype``; the gradient passes through unchanged."""
    wide = tensor.double()
    return wide + (wide.to(dtype).double() - wide).detach()


def _topk(pre: Tensor, k: int) -> Tensor:
    """The k largest positive entries, ties to the lowest index, in a dense matrix."""
    order = pre.detach().sort(dim=1, descending=True, stable=True).indices[:, :k]
    keep = torch.zeros_like(pre, dtype=torch.bool).scatter_(1, order, True)
    return pre * (keep & (pre > 0))


class _Forward:
    """The forward pass of a chunk of tokens, in float64."""

    def __init__(self, problem: Problem, leaves: dict[str, Tensor], dtype: torch.dtype) -> None:
        self.problem, self.leaves, self.dtype = problem, leaves, dtype
        # Float32 problems are not rounded, so that the errors are those of float32 arithmetic.
        self.narrow = dtype in (torch.bfloat16, torch.float16)

    def round(self, tensor: Tensor) -> Tensor:
        return _rounded(tensor, self.dtype) if self.narrow else tensor.double()

    def pre_activations(self, rows: slice) -> Tensor:
        x = self.problem.x[rows].double()
        if "scale" in self.leaves:
            group = self.problem.group[rows]
            x = self.round(x * (1 + self.leaves["scale"][group]) + self.leaves["shift"][group])
        return self.round(x @ self.round(self.leaves["W_enc"]).T + self.round(self.leaves["b_enc"]))

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.round(self.leaves["W_dec"])


def _blocks(problem: Problem) -> Iterator[slice]:
    n_tokens = len(problem.x)
    chunk = max(2, CHUNK_ELEMENTS // len(problem.W_enc) // 2 * 2)
    return (slice(start, start + chunk) for start in range(0, n_tokens, chunk))


def _soft_count(z: Tensor) -> Tensor:
    squares = z.square()
    return (squares / (squares + SOFT_EPS**2)).sum() / z.shape[1]


def truth(problem: Problem, dtype: torch.dtype, *, all_terms: bool) -> Truth:
    """Gradients of the squared error, or of all terms with modulation, by autograd in float64."""
    tensors = problem.weights() | (problem.modulation() if all_terms else {})
    leaves = {name: tensor.double().requires_grad_() for name, tensor in tensors.items()}
    forward = _Forward(problem, leaves, dtype)
    slope = _sparsity_slope(problem, forward) if all_terms else 0.0
    for rows in _blocks(problem):
        _chunk_loss(problem, forward, rows, ALL_TERMS if all_terms else MSE, slope).backward()
    return Truth({name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None})


def _sparsity_slope(problem: Problem, forward: _Forward) -> float:
    """Huber's derivative at the batch's mean soft count."""
    with torch.no_grad():
        count = sum(float(_soft_count(_topk(forward.pre_activations(rows), problem.k))) for rows in _blocks(problem))
    excess = count / len(problem.x) - 0.8 * problem.k / len(problem.W_enc)
    return max(-DELTA, min(DELTA, excess))


def _chunk_loss(problem: Problem, forward: _Forward, rows: slice, weights: LossWeights, slope: float) -> Tensor:
    """The chunk's part of the loss; the sparsity term by its slope."""
    x = problem.x[rows].double()
    n_tokens, elements = len(problem.x), problem.x.numel()
    pre = forward.pre_activations(rows)
    z = _topk(pre, problem.k)
    x_hat = forward.decode(z) + forward.leaves["b_dec"]
    error = x_hat - x
    loss = weights.mse * error.square().sum() / elements
    if weights.cosine:
        loss = loss + weights.cosine * (1 - torch.cosine_similarity(x, x_hat, dim=1, eps=0)).sum() / n_tokens
    if weights.temporal:
        loss = loss + weights.temporal * 2 * (z[0::2] - z[1::2]).square().sum() / n_tokens
    if weights.sparsity:
        loss = loss + weights.sparsity * slope * _soft_count(z) / n_tokens
    if weights.auxk:
        revived = forward.decode(_topk(pre * problem.dead, problem.k_aux))
        loss = loss + weights.auxk * (error.detach() + revived).square().sum() / elements
    return loss


def clear_problem(shape: Shape, device: torch.device, dtype: torch.dtype, *, all_terms: bool) -> Problem:
    """A problem without near-ties at the k-th value of float32 selections, so that float64 selects the same latents.

    A quarter more pairs are drawn than needed, and those with the widest gaps are kept. Narrower dtypes do not need
    this: their pre-activations are rounded, and ties are broken by index.
    """
    if dtype != torch.float32:
        return make_problem(shape, device, dtype)
    surplus = (shape.n_tokens * 5 // 4 + 3) // 2 * 2
    problem = make_problem(shape.with_tokens(surplus), device, dtype)
    leaves = problem.weights() | (problem.modulation() if all_terms else {})
    forward = _Forward(problem, {name: leaf.double() for name, leaf in leaves.items()}, torch.float64)
    gaps = []
    for rows in _blocks(problem):
        pre = forward.pre_activations(rows)
        gap = _gap(pre, problem.k)
        gaps.append(torch.minimum(gap, _gap(pre * problem.dead, problem.k_aux)) if all_terms else gap)
    pairs = torch.cat(gaps).unflatten(0, (-1, 2)).amin(1)
    kept = pairs.topk((shape.n_tokens + 1) // 2).indices.sort().values
    return problem.take(torch.stack((2 * kept, 2 * kept + 1), dim=1).flatten()[: shape.n_tokens])


def _gap(pre: Tensor, k: int) -> Tensor:
    """How far the k-th largest positive entry is from the next, or from 0, [tokens]."""
    latents = pre.relu()
    top = latents.topk(min(k + 1, latents.shape[1]), dim=1).values
    if top.shape[1] == k:
        return torch.full_like(top[:, 0], torch.inf)
    # Fewer than k + 1 positives: the distance to 0 counts.
    least = pre.abs().amin(1)
    return torch.where(top[:, k] > 0, top[:, k - 1] - top[:, k], least)
