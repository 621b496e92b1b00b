"""What an activation function of a sparse autoencoder decides: which latents fire, and what sparsity costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tide.world import World
from tide_kernels.losses import full_sum, huber, soft_count

#: The activation that counts one half in S of eq. 16, as in ``tide_kernels.tide_loss``.
SOFT_EPS = 0.1


@dataclass(frozen=True)
class Firing:
    """One training batch as the sparsity penalty sees it.

    ``pre`` and ``z [N, n_latents]`` are pre-activations and latents, ``k`` the scheduled number of active latents,
    ``s_target`` and ``delta`` the options of eq. 16. ``threshold`` and ``group`` are those of
    :meth:`Activation.forward`.

    Attributes:
        W_dec: ``[n_latents, d_model]``.
    """

    pre: Tensor
    z: Tensor
    W_dec: Tensor
    k: int
    s_target: float
    delta: float
    threshold: Tensor | None = None
    group: Tensor | None = None

    def decoded(self, latents: Tensor, norms: Tensor) -> Tensor:
        """``(1 / d) sum_j latents_j norms_j``, the mean over tokens: an L1 norm, over d as the MSE is."""
        return full_sum(latents * norms) / max(1, len(latents)) / self.W_dec.shape[1]


class Activation(nn.Module):
    """From pre-activations ``pre = W_enc x_mod + b_enc`` ``[N, n_latents]`` to latents ``z >= 0`` of their shape.

    Calling it is inference. A subclass overrides what differs in training. Everything here is dense;
    :func:`tide_kernels.tide_loss` computes BatchTopK and JumpReLU without ``[N, n_latents]``.

    Where a method takes a ``threshold``, it is what :meth:`thresholds` returns, and ``group [N]`` the row of it that
    each token has (int32, None where all have the only one). A threshold of None is the one without a timestep.
    """

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.n_latents = n_latents

    def forward(
        self, pre: Tensor, b_enc: Tensor | None, threshold: Tensor | None = None, group: Tensor | None = None
    ) -> Tensor:
        """The latents of ``pre``; ``b_enc`` is the bias that is part of it."""
        raise NotImplementedError

    def training_latents(
        self,
        pre: Tensor,
        b_enc: Tensor | None,
        k: int,
        threshold: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """The latents in training, where ``k`` is the scheduled number of active ones."""
        return self(pre, b_enc, threshold, group)

    def thresholds(self, embedding: Tensor | None = None) -> Tensor | None:
        """What pre-activations have to exceed: ``[]``, ``[n_latents]`` or, if the thresholds know the timestep,
        ``[groups, n_latents]`` of ``embedding [groups, d_embedding]`` (:meth:`~tide.sae.Modulation.embedding`). None if
        there is no threshold."""
        return None

    def penalty(self, firing: Firing) -> Tensor:
        """The sparsity term of the loss, before its weight."""
        raise NotImplementedError

    def auxiliary_latents(self, pre: Tensor) -> Tensor | None:
        """Latents whose reconstruction by the decoder, held fixed, is part of the loss as well, or None."""
        return None

    @torch.no_grad()
    def calibrate(self, pre: Tensor, k: int, among: World) -> None:
        """Starts the own parameters from the first batch's pre-activations, of which each rank of ``among`` has those
        of its own latents."""

    def latent_parameters(self) -> list[nn.Parameter]:
        """The own parameters that have one row for each latent."""
        return list(self.parameters())

    @torch.no_grad()
    def restart(self, latents: Tensor) -> None:
        """Sets the own parameters of revived latents to those of a fresh one."""

    # -- the number of active latents ----------------------------------------------------------------------

    @property
    def matched(self) -> bool:
        """Whether the threshold is set, after training, so that k latents a token are active (:meth:`set_cut`)."""
        return False

    @torch.no_grad()
    def heights(
        self, pre: Tensor, b_enc: Tensor | None, threshold: Tensor | None = None, group: Tensor | None = None
    ) -> Tensor:
        """``[N, n_latents]``: after ``set_cut(c)`` the latents are active whose height is above c. At most 0 where none
        that is positive would do. Only of activations that are :attr:`matched`."""
        raise NotImplementedError

    @torch.no_grad()
    def set_cut(self, cut: float) -> None:
        """Moves the threshold to the positive height ``cut``, by one number for all latents and timesteps."""
        raise NotImplementedError


def by_row(threshold: Tensor, group: Tensor | None) -> Tensor:
    """A threshold as it is compared with pre-activations ``[N, n_latents]``: ``[groups, n_latents]`` by its group."""
    if threshold.dim() < 2 or group is None:
        return threshold
    return threshold.index_select(0, group)


def above(pre: Tensor, threshold: Tensor) -> Tensor:
    """``pre`` where it exceeds the threshold or is NaN, so that NaN shows, and else 0."""
    return torch.where(pre <= threshold, 0, pre)


def soft_count_penalty(z: Tensor, s_target: float, delta: float) -> Tensor:
    """``Huber(S - s_target; delta)`` (eq. 16), S the mean over tokens of (1/n) sum_j z_j^2 / (z_j^2 + 0.1^2).

    Args:
        z: latents ``[N, n_latents]``, at least 0.
        s_target: the share of active latents aimed at, in [0, 1].
        delta: where Huber's function turns linear.
    """
    return huber(soft_count(z, z.shape[1], SOFT_EPS) / max(1, len(z)) - s_target, delta)
