"""The formula that the autoencoders of all libraries share once their options are folded into weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from tide.sae.config import Activation


@dataclass(frozen=True, kw_only=True)
class Plain:
    """An SAE without a timestep, in units of activations; tensors are float64 on the CPU::

        pre = W_enc (x - offset) + b_enc        y = W_dec^T z + b_dec

    z is TopK(ReLU(pre)), ReLU(pre), or with a threshold ``pre * H(pre - threshold)``; of "gated" it is
    ``H(pre) * ReLU(exp(r_mag) * W_enc (x - offset) + b_mag)``. An autoencoder's y reconstructs x, a transcoder's
    another tensor.

    Attributes:
        W_enc, W_dec: ``[n_latents, d_model]``.
        b_enc: ``[n_latents]``.
        b_dec, offset: ``[d_model]``. The offset is subtracted and not folded into ``b_enc``, so that channels of large
            means cost no digits.
        k: active latents of a token: exactly (TopK), or on average; None if that is not known.
        threshold: at least 0: ``[]`` of "batch_topk", ``[n_latents]`` of "jumprelu"; None of the others.
        r_mag, b_mag: ``[n_latents]`` of "gated".
        prefixes: numbers of first latents that are dictionaries of their own.
    """

    activation: Activation
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    offset: Tensor
    k: int | None = None
    threshold: Tensor | None = None
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    prefixes: tuple[int, ...] = ()

    @property
    def n_latents(self) -> int:
        return len(self.W_enc)

    @property
    def d_model(self) -> int:
        return self.W_enc.shape[1]

    @property
    def centred(self) -> bool:
        """Whether something is subtracted from the input."""
        return bool(self.offset.any())

    def subtracting(self, offset: Tensor) -> Plain:
        """The same function with another ``offset [d_model]``: ``W_enc`` times the difference moves into the biases."""
        moved = self.W_enc @ (offset - self.offset)
        b_mag = None if self.b_mag is None or self.r_mag is None else self.b_mag + self.r_mag.exp() * moved
        return replace(self, offset=offset, b_enc=self.b_enc + moved, b_mag=b_mag)

    def rescaled(self, factor: Tensor) -> Plain:
        """Latents multiplied by a positive ``factor [n_latents]``, decoder rows divided by it: the same outputs."""
        threshold = None if self.threshold is None else self.threshold * factor
        b_mag = None if self.b_mag is None else self.b_mag * factor
        rows = factor.unsqueeze(1)
        return replace(
            self,
            W_enc=self.W_enc * rows,
            b_enc=self.b_enc * factor,
            W_dec=self.W_dec / rows,
            threshold=threshold,
            b_mag=b_mag,
        )
