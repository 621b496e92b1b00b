"""The products of a caller's compact code with a weight matrix, in two regimes behind one interface.

With z the ``[n_tokens, n_latents]`` matrix that holds ``values`` at ``indices``, `encode_topk` and `decode`
need these products for a chunk of tokens:

==============  ======================================  ==========================================
``gather``      ``z @ W``                               decode; the gradient of the encoder's input
``sampled``     ``rows @ W.T`` at the code's places     the gradient of ``values``
``scatter``     ``out += z.T @ rows``                   the gradient of W
``column_sum``  ``out += z.sum(0)``                     the gradient of the encoder's bias
==============  ======================================  ==========================================

`SparseProducts` computes them from the compact code by the backend's primitives. `DenseProducts` writes
z out for one chunk at a time and leaves the rest to dense matrix products. Both take and return compact values: a
caller's code has any order, may repeat a latent and may have unused places. The fused step makes its codes itself
and keeps them in the form of its regime (`tide_kernels.codes`).
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from tide_kernels.dispatch import Choice, Primitives
from tide_kernels.reference import Transposed, accumulator


class Products(Protocol):
    """Products with the code of one chunk of tokens. ``operand`` prepares values for the other methods."""

    def operand(self, values: Tensor) -> Tensor: ...

    def gather(self, operand: Tensor, W: Tensor) -> Tensor: ...

    def sampled(self, rows: Tensor, W: Tensor) -> Tensor: ...

    def scatter(self, operand: Tensor, rows: Tensor, out: Tensor) -> None: ...

    def column_sum(self, operand: Tensor, out: Tensor) -> None: ...


def products(choice: Choice, indices: Tensor, n_latents: int, dtype: torch.dtype) -> Products:
    """The products of the chosen regime for codes at ``indices``; ``dtype`` is that of dense operands."""
    if choice.regime == "sparse":
        return SparseProducts(choice.ops, indices, n_latents)
    return DenseProducts(indices, n_latents, dtype)


class SparseProducts:
    def __init__(self, ops: Primitives, indices: Tensor, n_latents: int) -> None:
        self.ops, self.indices, self.n_latents = ops, indices, n_latents

    @cached_property
    def transposed(self) -> Transposed:
        return self.ops.transpose(self.indices, self.n_latents)

    def operand(self, values: Tensor) -> Tensor:
        return values

    def gather(self, operand: Tensor, W: Tensor) -> Tensor:
        return self.ops.gather(operand, self.indices, W)

    def sampled(self, rows: Tensor, W: Tensor) -> Tensor:
        return self.ops.sampled(rows, W, self.indices)

    def scatter(self, operand: Tensor, rows: Tensor, out: Tensor) -> None:
        self.ops.scatter(operand, self.transposed, rows, out)

    def column_sum(self, operand: Tensor, out: Tensor) -> None:
        ones = out.new_ones(len(operand), 1)
        self.ops.scatter(operand, self.transposed, ones, out.view(-1, 1))


class DenseProducts:
    def __init__(self, indices: Tensor, n_latents: int, dtype: torch.dtype) -> None:
        self.unused = indices < 0
        self.columns = indices.clamp(min=0).long()
        self.shape, self.dtype = (len(indices), n_latents), dtype

    def operand(self, values: Tensor) -> Tensor:
        # Adds rather than writes: unused places put their 0 on latent 0, and a caller's code may repeat a latent.
        values = values.to(self.dtype).masked_fill(self.unused, 0)
        return values.new_zeros(self.shape).scatter_add_(1, self.columns, values)

    def gather(self, operand: Tensor, W: Tensor) -> Tensor:
        return (operand @ W).to(accumulator(self.dtype))

    def sampled(self, rows: Tensor, W: Tensor) -> Tensor:
        everywhere = rows.to(self.dtype) @ W.T
        return everywhere.gather(1, self.columns).to(accumulator(self.dtype)).masked_fill_(self.unused, 0)

    def scatter(self, operand: Tensor, rows: Tensor, out: Tensor) -> None:
        if out.dtype == self.dtype:
            out.addmm_(operand.T, rows.to(self.dtype))
        else:
            out += operand.T @ rows.to(self.dtype)

    def column_sum(self, operand: Tensor, out: Tensor) -> None:
        out += operand.sum(0, dtype=out.dtype)
