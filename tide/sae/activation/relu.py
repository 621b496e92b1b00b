"""ReLU with an L1 penalty."""

from __future__ import annotations

from torch import Tensor

from tide.sae.activation.base import Activation, Firing


class ReLU(Activation):
    """``z = ReLU(pre)``, penalty ``(1/d) sum_j z_j |W_dec_j|`` (Cunningham et al., arXiv 2309.08600).

    The decoder's norms (Conerly et al., Circuits Updates April 2024) keep latents that shrink while the decoder grows
    from lowering it. L0 follows from the penalty's weight.
    """

    def forward(self, pre: Tensor, b_enc: Tensor | None) -> Tensor:
        return pre.relu()

    def penalty(self, firing: Firing) -> Tensor:
        return firing.decoded(firing.z, firing.W_dec.norm(dim=1))
