"""How well activations are reconstructed: MSE, cosine, explained variance, L0, dead latents, each per timestep bin."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.devices import in_double
from tide.errors import TideError
from tide.sae.model import TIDE, Codes
from tide.sae.normalisation import Moments

#: From a batch to its reconstruction ``[N, d_model]`` and, if there are any, its latents.
Reconstruct = Callable[[ActivationBatch], tuple[Tensor, Codes | None]]

N_BINS = 10
TRAIN_TIMESTEPS = 1000
#: What float32 rounds to, relatively.
ROUNDING = 2**-23


def with_sae(model: TIDE) -> Reconstruct:
    """The model's reconstruction and its latents."""

    def reconstruct(batch: ActivationBatch) -> tuple[Tensor, Codes | None]:
        codes = model.encode(batch.x.float(), batch.position)
        return model.decode(codes, batch.position), codes

    return reconstruct


@dataclass
class _Sums:
    """Running sums in float64; explained variance is a ratio of sums over all tokens of a bin. ``directed`` counts the
    tokens that are not zero: the others have no direction, and no cosine."""

    error: float = 0.0
    cosine: float = 0.0
    directed: int = 0
    active: float = 0.0
    moments: Moments = field(default_factory=lambda: Moments.of([]))

    @property
    def tokens(self) -> int:
        return self.moments.n

    @property
    def varies(self) -> bool:
        """Whether a channel's variance is above what float32 alone gives to values that are all the same."""
        return bool((self.moments.variance > ROUNDING**2 * self.moments.mean.square()).any())

    def add(self, x: Tensor, x_hat: Tensor, active: Tensor | None) -> None:
        self.error += float(in_double(x - x_hat).square().sum())
        directed = x.any(1)
        self.cosine += float(in_double(F.cosine_similarity(x, x_hat, dim=1)[directed]).sum())
        self.directed += int(directed.sum())
        self.moments = self.moments + Moments.of([x])
        if active is not None:
            self.active += float(in_double(active).sum())

    def figures(self, scale: float, with_l0: bool) -> dict[str, float]:
        variance = self.tokens * float(self.moments.variance.sum())
        mse = self.error / self.tokens / len(self.moments.mean)
        out = {
            "mse": mse,
            "mse_normalised": mse / scale**2,
            "cosine": self.cosine / self.directed if self.directed else math.nan,
            "explained_variance": 1 - self.error / variance if self.varies else math.nan,
            "tokens": float(self.tokens),
        }
        return out | {"l0": self.active / self.tokens} if with_l0 else out


class Reconstructed:
    """What :func:`evaluate_reconstruction` measures, a batch at a time."""

    def __init__(self, reconstruct: Reconstruct, *, n_latents: int | None = None, scale: float = 1.0) -> None:
        self.reconstruct, self.n_latents, self.scale = reconstruct, n_latents, scale
        self._whole, self._bins = _Sums(), [_Sums() for _ in range(N_BINS)]
        self._fired: Tensor | None = None
        self._has_codes = False

    @torch.no_grad()
    def add(self, batch: ActivationBatch) -> None:
        x = batch.wanted.float()
        x_hat, codes = self.reconstruct(batch)
        active = None if codes is None else (codes.values != 0).sum(1)
        if codes is not None:
            self._count(codes)
        self._whole.add(x, x_hat, active)
        row_bin = (batch.timestep[batch.group.long()] * N_BINS / TRAIN_TIMESTEPS).long().clamp(0, N_BINS - 1)
        for i in row_bin.unique().tolist():
            rows = row_bin == i
            self._bins[i].add(x[rows], x_hat[rows], None if active is None else active[rows])

    def _count(self, codes: Codes) -> None:
        self._has_codes = True
        if self.n_latents is not None:
            used = codes.indices[codes.values != 0].long()
            counts = torch.bincount(used, minlength=self.n_latents)
            self._fired = counts if self._fired is None else self._fired + counts

    def figures(self) -> dict[str, Any]:
        """Of all batches. Raises :class:`~tide.errors.TideError` if there were none; warns if one channel dominates."""
        if self._whole.tokens == 0:
            raise TideError("there are no activations to evaluate; collect some first")
        if warning := self._whole.moments.warning():
            warnings.warn(warning, stacklevel=3)
        out: dict[str, Any] = self._whole.figures(self.scale, self._has_codes)
        if self._fired is not None:
            out["dead"] = float((self._fired == 0).float().mean())
        width = TRAIN_TIMESTEPS // N_BINS
        out["timestep"] = {
            f"{i * width}-{(i + 1) * width}": sums.figures(self.scale, self._has_codes)
            for i, sums in enumerate(self._bins)
            if sums.tokens
        }
        return out


def evaluate_reconstruction(
    reconstruct: Reconstruct, batches: Iterable[ActivationBatch], *, n_latents: int | None = None, scale: float = 1.0
) -> dict[str, Any]:
    """Figures over all tokens of ``batches``, and under ``"timestep"`` per bin of 100 training timesteps. Where batches
    have targets, which a transcoder reconstructs, the figures are of these.

    ``mse`` is the mean over elements in activation units, ``mse_normalised`` the same over ``scale**2`` (the SAE's
    activation scale); ``cosine`` is the mean over tokens that are not zero (NaN if all are); ``explained_variance`` =
    ``1 - sum |x - x_hat|^2 / sum |x - mean x|^2``, the mean taken over the same tokens (NaN if they do not vary), is
    the figure to compare models with different activation scales by, such as with and without ``centre``; ``l0`` counts
    latents after selection; ``dead``, which needs ``n_latents``, is the share of latents that never fired. Warns if one
    channel dominates the figures.

    ``reconstruct`` maps a batch to reconstructions ``[N, d_model]`` and codes, such as :func:`with_sae`'s.
    """
    found = Reconstructed(reconstruct, n_latents=n_latents, scale=scale)
    for batch in batches:
        found.add(batch)
    return found.figures()
