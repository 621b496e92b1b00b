"""Nested dictionaries in the fused step: prefixes of the latents divide the dictionary into parts.

With parts p = 1 ... M of the code z, the reconstruction by the first p parts and the loss's gradient in what part p
decodes to are running sums, from the first part and from the last::

    x_hat_p = x_hat_{p-1} + z_p W_dec_p        dL/d(z_p W_dec_p) = sum over q >= p of dL/dx_hat_q

So every entry of a code is decoded once and passes its gradient on once, whatever the number of prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from tide_kernels.codes import WALKED, Slopes


class Part(NamedTuple):
    """The latents from ``low`` up to ``high`` of ``n_latents``: a smaller dictionary."""

    low: int
    high: int
    n_latents: int

    def rows(self, table: Tensor) -> Tensor:
        """The part's rows of a table with a row for each latent, in the table's memory."""
        return table[self.low : self.high]

    def gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The part's rows of the gradients that have a row for each latent, beside all others."""
        return {name: self.rows(each) if name in WALKED else each for name, each in gradients.items()}

    def slopes(self, slopes: Slopes) -> Slopes:
        """The slopes of the part's own code, whose soft count is a mean over fewer latents."""
        if slopes.soft is None:
            return slopes
        return slopes._replace(soft=slopes.soft * ((self.high - self.low) / self.n_latents))


def parts_of(prefixes: Sequence[int], n_latents: int) -> list[Part]:
    """The parts that ascending ``prefixes`` divide the latents into; a single one without prefixes."""
    return [Part(low, high, n_latents) for low, high in pairwise((0, *prefixes, n_latents))]
