"""The figures that the page of a layer sweep shows: where each stands, and how it is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tide.evaluation.sweep_wording import known

MINUS = "\N{MINUS SIGN}"
#: What autoencoder and baselines are called, and the ink of each.
NAMES = {
    "tide": ("latents", "blue"),
    "pca_k": ("PCA k", "purple"),
    "pca": ("principal components", "purple"),
    "neurons": ("neurons", "green"),
    "random": ("random autoencoder", "orange"),
    "pca_k/4": ("PCA k/4", "muted"),
    "mean": ("mean", "muted"),
    "zero": ("zeroed", "muted"),
}


@dataclass(frozen=True)
class Figure:
    """A figure: its ``title``, and where it stands in those of a block: below ``part``, a variant's name and ``path``.

    It is written with ``decimals``, ``per_cent`` or as it is, and in the cells of a heat map with ``in_cells`` where
    there is less room. More is ``better`` ("high", "low", or "" for neither). ``says``: its unit in words.
    """

    title: str
    part: str
    path: tuple[str, ...]
    decimals: int
    says: str
    better: str = "high"
    per_cent: bool = False
    in_cells: int | None = None

    @property
    def name(self) -> str:
        return self.path[-1]

    def write(self, value: float) -> str:
        return self._written(value, self.decimals)

    def cell(self, value: float) -> str:
        return self._written(value, self.decimals if self.in_cells is None else self.in_cells)

    def _written(self, value: float, decimals: int) -> str:
        return f"{100 * value if self.per_cent else value:.{decimals}f}".replace("-", MINUS)

    def of(self, figures: Any, variant: str, *within: str) -> float | None:
        """The figure of a variant; ``within``, such as a timestep, comes before its name."""
        return known(figures, self.part, variant, *self.path[:-1], *within, self.name)

    def error(self, figures: Any, variant: str) -> float:
        """Its standard error; NaN where there is none."""
        found = known(figures, self.part, variant, *self.path[:-1], "errors", self.name)
        return math.nan if found is None else found

    def average(self, found: Any, variant: str, which: str = "mean") -> float | None:
        """Its mean over all blocks of a sweep, or its "spread"."""
        return known(found["average"], self.part, variant, *self.path, which)


VARIANCE = Figure("Variance explained", "fit", ("explained_variance",), 1, "per cent", per_cent=True)
COSINE = Figure("Cosine", "fit", ("cosine",), 3, "mean over tokens")
ERROR = Figure("Normalised error", "fit", ("mse_normalised",), 3, "MSE over the mean square of activations", "low")
RECOVERED = Figure(
    "Loss recovered", "loss", ("recovered",), 1, "per cent of what zeroing the block adds", per_cent=True
)
OF_MEAN = Figure(
    "Recovered of mean", "loss", ("recovered_mean",), 1, "per cent of what the mean token adds", per_cent=True
)
RATIO = Figure("Loss ratio", "loss", ("ratio",), 2, "diffusion loss over the clean one", "low")
PROBES = {
    size: Figure(f"Concepts, {size}-sparse", "probes", (size, "auroc"), 3, "AUROC of probes", in_cells=2)
    for size in ("1", "5")
}
ACTIVE = Figure("Active latents", "fit", ("l0",), 1, "per token (L0)", "")
DEAD = Figure("Dead latents", "fit", ("dead",), 1, "per cent that never fired on these tokens", "low", per_cent=True)
#: In the page's order.
FIGURES = (VARIANCE, COSINE, ERROR, RECOVERED, OF_MEAN, RATIO, *PROBES.values(), ACTIVE, DEAD)
