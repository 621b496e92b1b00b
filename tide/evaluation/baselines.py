"""Baselines that a useful reconstruction must beat: the mean activation and a PCA."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.devices import in_double
from tide.errors import TideError
from tide.evaluation.reconstruction import Reconstruct
from tide.sae.model import Codes


@dataclass(frozen=True)
class PCA:
    """``mean [d_model]`` and orthonormal ``components [d_model, d_model]``, strongest first."""

    mean: Tensor
    components: Tensor

    @classmethod
    def fit(cls, batches: Iterable[ActivationBatch]) -> PCA:
        """From the covariance of all rows, or of their targets, accumulated in float64."""
        n, total, outer = 0, torch.zeros(()), torch.zeros(())
        for batch in batches:
            x = in_double(batch.wanted)
            n, total, outer = n + len(x), total + x.sum(0), outer + x.T @ x
        if n < 2:
            raise TideError("a PCA needs at least two activations; collect more")
        mean = total / n
        _, vectors = torch.linalg.eigh(outer / n - torch.outer(mean, mean))
        return cls(mean.float(), vectors.flip(1).T.contiguous().float())

    def project(self, x: Tensor, rank: int) -> Tensor:
        """The reconstruction of ``x [..., d_model]`` from its mean and ``rank`` components; rank 0 is the mean, a rank
        of ``d_model`` or more is x."""
        if rank < 0:
            raise TideError(f"rank = {rank} must be at least 0")
        basis = self.components[:rank].to(x)
        mean = self.mean.to(x)
        return mean + (x - mean) @ basis.T @ basis

    def reconstruct(self, rank: int) -> Reconstruct:
        """:meth:`project` as :func:`~tide.evaluation.evaluate_reconstruction` takes it."""

        def project(batch: ActivationBatch) -> tuple[Tensor, Codes | None]:
            return self.project(batch.wanted.float(), rank), None

        return project
