"""The scaling law of a sparse autoencoder's loss in its number of latents n and its sparsity k (Fig. 4ab)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from tide.errors import TideError

#: Candidates of the irreducible loss, as shares of the smallest one seen.
_FLOORS = np.concatenate([[0.0], 1 - np.geomspace(1, 1e-3, 400)[1:]])


@dataclass(frozen=True)
class ScalingLaw:
    """``loss(n, k) = floor + exp(alpha + beta_n ln n + beta_k ln k + gamma ln n ln k)``.

    The form is that of Gao et al. (arXiv 2406.04093, section 3.1), with a constant for their irreducible term.
    ``r2`` is the share of the variance of ln(loss) over the points that the law explains.
    """

    floor: float
    alpha: float
    beta_n: float
    beta_k: float
    gamma: float
    r2: float

    def __call__(self, n: float, k: float) -> float:
        return self.floor + float(np.exp(_features(np.array([n]), np.array([k])) @ self._coefficients)[0])

    @property
    def _coefficients(self) -> np.ndarray:
        return np.array([self.alpha, self.beta_n, self.beta_k, self.gamma])

    def exponent_n(self, k: float) -> float:
        """d ln(loss - floor) / d ln n at ``k``."""
        return self.beta_n + self.gamma * float(np.log(k))

    def exponent_k(self, n: float) -> float:
        return self.beta_k + self.gamma * float(np.log(n))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.floor:.3g} + exp({self.alpha:.3g} {self.beta_n:+.3g} ln n {self.beta_k:+.3g} ln k "
            f"{self.gamma:+.3g} ln n ln k), R2 {self.r2:.4f}"
        )


def _features(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    log_n, log_k = np.log(n), np.log(k)
    return np.stack([np.ones_like(log_n), log_n, log_k, log_n * log_k], axis=1)


def fit_scaling_law(n: Sequence[float], k: Sequence[float], loss: Sequence[float]) -> ScalingLaw:
    """Least squares in ln(loss). The fit is linear in all but the floor, for which a grid is searched.

    Raises :class:`~tide.errors.TideError` unless there are at least five points, two different n and two different k,
    and every loss is positive.
    """
    n_, k_, loss_ = (np.asarray(each, dtype=float) for each in (n, k, loss))
    if len(loss_) < 5 or len(set(n_)) < 2 or len(set(k_)) < 2:
        raise TideError(
            f"{len(loss_)} points of {len(set(n_))} n and {len(set(k_))} k do not fix a scaling law; "
            "give five or more, of two n and two k at least"
        )
    if not (np.isfinite(loss_).all() and (loss_ > 0).all() and (n_ > 0).all() and (k_ > 0).all()):
        raise TideError("a scaling law is fitted to positive finite losses, n and k; leave the others out")
    features, log_loss = _features(n_, k_), np.log(loss_)
    best: tuple[float, float, np.ndarray] | None = None
    for floor in _FLOORS * loss_.min():
        coefficients = np.linalg.lstsq(features, np.log(loss_ - floor), rcond=None)[0]
        # Floors are compared in ln(loss): in ln(loss - floor) the smallest points would outweigh the others.
        error = float(np.square(np.log(floor + np.exp(features @ coefficients)) - log_loss).sum())
        if best is None or error < best[0]:
            best = error, float(floor), coefficients
    assert best is not None
    error, floor, coefficients = best
    variance = float(np.square(log_loss - log_loss.mean()).sum())
    alpha, beta_n, beta_k, gamma = map(float, coefficients)
    return ScalingLaw(floor, alpha, beta_n, beta_k, gamma, 1 - error / variance if variance > 0 else float("nan"))
