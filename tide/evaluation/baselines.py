"""Baselines that trained latents must beat: the mean activation, a PCA, the strongest neurons, random latents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.adapters import Call
from tide.devices import in_double
from tide.errors import TideError
from tide.evaluation.diffusion_loss import Intervention
from tide.evaluation.reconstruction import Reconstruct
from tide.sae.codes import Codes
from tide.sae.model import TIDE
from tide.sae.position import Position


@dataclass(frozen=True)
class PCA:
    """``mean [d_model]`` and orthonormal ``components [d_model, d_model]``, strongest first."""

    mean: Tensor
    components: Tensor

    @classmethod
    def fit(cls, batches: Iterable[ActivationBatch]) -> PCA:
        """From the covariance of all rows, or of their targets, accumulated in float64."""
        return cls.fit_rows(batch.wanted for batch in batches)

    @classmethod
    def fit_rows(cls, parts: Iterable[Tensor]) -> PCA:
        """As :meth:`fit`, of rows ``[N, d_model]``."""
        covariance = Covariance()
        for rows in parts:
            covariance.add(rows)
        return covariance.pca()

    def coordinates(self, x: Tensor) -> Tensor:
        """``x [..., d_model]`` along all components, ``[..., d_model]``."""
        return (x - self.mean.to(x)) @ self.components.T.to(x)

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

    def intervention(self, rank: int) -> Intervention:
        """:meth:`project` as :func:`~tide.evaluation.diffusion_loss` takes it."""

        def project(x: Tensor, call: Call) -> Tensor:
            return self.project(x, rank)

        return project


class Covariance:
    """What :meth:`PCA.fit_rows` needs of rows ``[N, d_model]``, some at a time: their sums, in float64."""

    def __init__(self) -> None:
        self.n, self.total, self.outer = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        x = in_double(rows)
        self.n, self.total, self.outer = self.n + len(x), self.total + x.sum(0), self.outer + x.T @ x

    def pca(self) -> PCA:
        if self.n < 2:
            raise TideError("a PCA needs at least two activations; collect more")
        mean = self.total / self.n
        _, vectors = torch.linalg.eigh(self.outer / self.n - torch.outer(mean, mean))
        return PCA(mean.float(), vectors.flip(1).T.contiguous().float())


@dataclass(frozen=True)
class StrongestNeurons:
    """Activations rebuilt from their mean and, of each token, the ``k`` neurons furthest from it."""

    mean: Tensor
    k: int

    def project(self, x: Tensor) -> Tensor:
        """The reconstruction of ``x [..., d_model]``."""
        mean = self.mean.to(x)
        away = x - mean
        kept = away.abs().topk(min(self.k, away.shape[-1]), dim=-1).indices
        return mean + torch.zeros_like(away).scatter(-1, kept, away.gather(-1, kept))

    def reconstruct(self) -> Reconstruct:
        def project(batch: ActivationBatch) -> tuple[Tensor, Codes | None]:
            return self.project(batch.wanted.float()), None

        return project

    def intervention(self) -> Intervention:
        def project(x: Tensor, call: Call) -> Tensor:
            return self.project(x.float()).to(x.dtype)

        return project


def untrained(model: TIDE, seed: int = 0) -> TIDE:
    """An autoencoder of the model's shape, input units and modulation, with random latents: what a claim about the
    model's latents is compared with."""
    fresh = TIDE(model.config, model.modulation, backend=model.backend, seed=seed)
    units = {name: value for name, value in model.state_dict().items() if name.startswith(("activation_", "target_"))}
    fresh.load_state_dict(units, strict=False)
    return fresh.to(model.W_enc)


@torch.no_grad()
def random_autoencoder(model: TIDE, x: Tensor, position: Position, seed: int = 0) -> TIDE:
    """:func:`untrained`, calibrated on rows ``x [N, d_model]``: its biases start as those of a training, and one factor
    on its decoder is the best for these rows by least squares. Its directions stay random."""
    fresh = untrained(model, seed).eval()
    fresh.calibrate(x, position)
    codes = fresh.encode(x, position)
    constant = fresh.decode(Codes(torch.zeros_like(codes.values), codes.indices), position)
    decoded = fresh.decode(codes, position) - constant
    fresh.W_dec.mul_((decoded * (x - constant)).sum() / decoded.square().sum().clamp(min=1e-12))
    return fresh
