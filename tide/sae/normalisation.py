"""Mean and variance of each channel of activations, and which activations cannot serve as a basis of normalisation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tide.devices import in_double
from tide.errors import TideError
from tide.world import World

#: Rows that are copied to float64 at a time.
ROWS_AT_ONCE = 8192
#: Training squares values in float32, which must neither overflow nor vanish: magnitudes of 1e-19 to 1.8e19.
LARGEST = math.sqrt(torch.finfo(torch.float32).max)
SMALLEST = math.sqrt(torch.finfo(torch.float32).tiny)
#: A channel with more than this share of all channels' energy or variance dominates every figure.
RULING = 0.5


@dataclass(frozen=True)
class Moments:
    """Of ``n`` rows: each channel's mean and variance, float64 ``[d_model]`` on the CPU.

    The variance is ``sum (x - mean)^2 / n``, summed from deviations: a channel of mean 300 loses no digits.
    """

    n: int
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> Moments:
        """The moments of all rows of ``batches``, each ``[N, d_model]``; ``n`` is 0 without rows."""
        found = cls(0, torch.zeros(()).double(), torch.zeros(()).double())
        for batch in batches:
            for part in batch.detach().split(ROWS_AT_ONCE):
                found = found + cls._of_rows(in_double(part))
        return found

    @classmethod
    def _of_rows(cls, x: Tensor) -> Moments:
        n = max(1, len(x))
        mean = x.sum(0) / n
        return cls(len(x), mean.cpu(), ((x - mean).square().sum(0) / n).cpu())

    def __add__(self, other: Moments) -> Moments:
        """The moments of the rows of both (Chan, Golub and LeVeque, 1979)."""
        if 0 in (self.n, other.n):
            return self if other.n == 0 else other
        n = self.n + other.n
        share, apart = other.n / n, other.mean - self.mean
        within = (1 - share) * self.variance + share * other.variance
        return Moments(n, self.mean + share * apart, within + (1 - share) * share * apart.square())

    def of_all(self, world: World) -> Moments:
        """Of the rows of all ranks, each of which has moments of its own."""
        mean, variance = (world.gathered(each.unsqueeze(0)) for each in (self.mean, self.variance))
        parts = (Moments(*each) for each in zip(world.said(self.n), mean, variance, strict=True))
        return sum(parts, Moments.of([]))

    @property
    def energy(self) -> Tensor:
        """Each channel's mean square ``[d_model]``."""
        return self.variance + self.mean.square()

    def warning(self, *, centre: bool = False) -> str | None:
        """One line if a single channel holds more than half of all channels' variance, or, without ``centre``, if a
        single channel or all channels' means hold more than half of the energy; else None. Fewer than three channels
        get no warning: one of them always holds half."""
        if len(self.mean) < 3:
            return None
        channel, share = _largest(self.variance)
        if share > RULING:
            return (
                f"channel {channel} holds {share:.0%} of the variance of the activations, so every figure describes "
                "mostly this channel; look at the other channels on their own, or take another block"
            )
        holder = None if centre else self._holder_of_energy()
        return holder and (
            f"{holder} of the energy (mean square) of the activations, so a cosine, or an MSE over the energy, "
            "describes mostly that; compare explained variances (training with centre=true subtracts the means)"
        )

    def _holder_of_energy(self) -> str | None:
        channel, share = _largest(self.energy)
        if share > RULING:
            return f"channel {channel} holds {share:.0%}"
        means = float(self.mean.square().sum() / self.energy.sum().clamp(min=torch.finfo(torch.float64).tiny))
        return f"the channels' means hold {means:.0%}" if means > RULING else None


def _largest(values: Tensor) -> tuple[int, float]:
    """The channel of the largest value and its share of all; 0 of nothing."""
    total = float(values.sum())
    channel = int(values.argmax())
    return channel, float(values[channel]) / total if total > 0 else 0.0


def measured(batches: Iterable[Tensor], *, centre: bool) -> tuple[Moments, float]:
    """The first activations' moments, and the scale to divide them by: the root of the mean over channels of their
    energy, or with ``centre`` of their variance.

    Raises :class:`~tide.errors.TideError` without rows, for values that are not finite or whose squares float32 cannot
    hold, for nothing but zeros, and with ``centre`` for rows that are all equal.
    """
    batches = list(batches)
    peak = max((_peak(batch) for batch in batches), default=math.nan)
    if not math.isfinite(peak):
        raise TideError(
            "the first activations hold NaN or inf, or there are none; "
            "collect them in bf16 or fp32, or from another block"
        )
    moments = Moments.of(batches)
    scale = float((moments.variance if centre else moments.energy).mean().sqrt())
    if peak == 0:
        raise TideError("the first activations are all 0, so there is nothing to learn; take another block")
    if scale == 0:
        raise TideError(
            f"the first activations ({moments.n} rows) are all equal, so centring leaves nothing; "
            "collect from more images or timesteps, or train with centre=false"
        )
    if peak > LARGEST or scale < SMALLEST:
        raise TideError(
            f"the first activations reach {peak:.3g} and their scale is {scale:.3g}, and float32 holds the squares of "
            f"{SMALLEST:.0e} to {LARGEST:.0e}; train on another block, or rescale them"
        )
    return moments, scale


class Units(NamedTuple):
    """The scale ``[]`` and, with centring, the mean ``[d_model]`` of activations: buffers of a model."""

    scale: Tensor
    mean: Tensor | None

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor], *, centre: bool) -> Moments:
        """Sets both from rows, whose moments it returns; raises as :func:`measured`."""
        moments, scale = measured(batches, centre=centre)
        self.scale.fill_(scale)
        if self.mean is not None:
            self.mean.copy_(moments.mean)
        return moments

    def normalised(self, rows: Tensor) -> Tensor:
        """Rows ``[N, d_model]`` from activation to normalised units."""
        if self.mean is None:
            return rows / self.scale.to(rows.dtype)
        # In float32 at least: a mean of hundreds rounded to 16 bits would be off by more than what it leaves.
        return ((rows - self.mean) / self.scale).to(rows.dtype)

    def restored(self, x_hat: Tensor) -> Tensor:
        """The inverse of :meth:`normalised`."""
        if self.mean is None:
            return x_hat * self.scale.to(x_hat.dtype)
        wide = torch.promote_types(x_hat.dtype, self.mean.dtype)
        return (x_hat.to(wide) * self.scale + self.mean).to(x_hat.dtype)


def _peak(x: Tensor) -> float:
    """The largest magnitude; inf if a value is not finite, NaN without values."""
    if x.numel() == 0:
        return math.nan
    # A maximum does not always pass NaN on to Python's max.
    return float(x.detach().abs().amax()) if bool(torch.isfinite(x).all()) else math.inf
