"""ReLU with an L1 penalty."""

from __future__ import annotations

from torch import Tensor

from tide.sae.activation.base import Firing, above
from tide.sae.activation.stored import StoredThreshold


class ReLU(StoredThreshold):
    """``z = ReLU(pre)``, penalty ``(1/d) sum_j z_j |W_dec_j|`` (Cunningham et al., arXiv 2309.08600).

    The decoder's norms (Conerly et al., Circuits Updates April 2024) keep latents that shrink while the decoder grows
    from lowering it. L0 follows from the penalty's weight. With a stored threshold ``z = pre * H(pre - threshold)`` at
    inference, so that L0 can be lowered to k after training.
    """

    def forward(
        self, pre: Tensor, b_enc: Tensor | None, threshold: Tensor | None = None, group: Tensor | None = None
    ) -> Tensor:
        return pre.relu() if self.threshold is None else above(pre, self.threshold)

    def training_latents(
        self,
        pre: Tensor,
        b_enc: Tensor | None,
        k: int,
        threshold: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        return pre.relu()

    def penalty(self, firing: Firing) -> Tensor:
        return firing.decoded(firing.z, firing.W_dec.norm(dim=1))
