"""The training loss composed of single ops, for what the fused op does not compute: ``undo``, ReLU and Gated.

It holds the latents of all tokens, ``[N, n_latents]``, forward and backward. It is slower than ``tide_loss``, and meant
for baselines and ablations.

On one machine, with one version of PyTorch and one number of CPU threads, every run gives the same bits. Another number
of threads may change the last bits, because it does so in PyTorch's matrix products of some shapes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.sae.activation import Firing, soft_count_penalty
from tide.sae.autoencoder import Autoencoder
from tide.sae.modulation import ScaleShift
from tide_kernels import LossOptions, LossTerms, decode, encode_topk
from tide_kernels.losses import full_sum


def composed_loss(
    model: Autoencoder,
    x: Tensor,
    modulation: ScaleShift,
    options: LossOptions,
    dead: Tensor | None,
    target: Tensor | None = None,
) -> LossTerms:
    """The terms of ``tide_loss`` on normalised rows ``x [N, d_model]``, by autograd; ``target`` as there.

    ``sparsity`` is the activation's own penalty (eq. 16 for TopK and BatchTopK). ``auxk`` is 0 if it has no weight.
    Gated's auxiliary reconstruction is part of ``total`` with the weight of the MSE.
    """
    k, weights, s_target = options.k, options.weights, options.sparsity_target(model.n_latents)
    y = x if target is None else target
    if model.activation is None:
        codes = model.select(x, modulation, k)
        z = codes.dense(model.n_latents).to(x.dtype)
        nested = [model.reconstruct(codes.prefix(m), modulation) for m in (*options.prefixes, model.n_latents)]
        sparsity = soft_count_penalty(z, s_target, options.delta)
    else:
        pre = model.pre_activations(x, modulation).to(x.dtype)  # products under autocast are narrower
        cut = modulation.threshold, modulation.group
        z = model.activation.training_latents(pre, model.b_enc, k, *cut)
        latent = torch.arange(model.n_latents, device=x.device)
        nested = [model.reconstruct_dense(torch.where(latent < m, z, 0), modulation) for m in options.prefixes]
        nested.append(model.reconstruct_dense(z, modulation))
        sparsity = model.activation.penalty(Firing(pre, z, model.W_dec, k, s_target, options.delta, *cut))
    *shorter, whole = (_misfit(y, x_hat) for x_hat in nested)
    mse, cosine = torch.stack([*shorter, whole]).mean(0)
    temporal = _mean((z[0::2] - z[1::2]).square().sum(1)) if options.paired else x.new_zeros(())
    auxk = x.new_zeros(())
    if weights.auxk and dead is not None and bool(dead.any()):
        auxk = _dead_latents_loss(model, x, (y - nested[-1]).detach(), modulation, dead, options.k_aux)
    total = x.new_zeros(())
    for weight, term in zip(weights, (mse, cosine, temporal, sparsity, auxk), strict=True):
        if weight:
            total = total + weight * term
    if model.activation is not None and (second := model.activation.auxiliary_latents(pre)) is not None:
        total = total + weights.mse * _mean((y - model.reconstruct_dense(second, modulation, frozen=True)).square())
    fired = (z.detach() != 0).sum(0)
    mse, cosine, temporal, sparsity, auxk = (term.detach() for term in (mse, cosine, temporal, sparsity, auxk))
    nothing = x.new_zeros(
        ()
    )  # the activation tracks its own threshold, and dense latents have all the places they need
    return LossTerms(total, mse, cosine, temporal, sparsity, fired, auxk, whole[0].detach(), nothing, nothing.long())


def _misfit(x: Tensor, x_hat: Tensor) -> Tensor:
    """The squared error and the cosine distance (eqs 13, 14), ``[2]``."""
    x_hat = x_hat.to(x.dtype)
    return torch.stack([_mean((x - x_hat).square()), _mean(1 - F.cosine_similarity(x, x_hat))])


def _mean(values: Tensor) -> Tensor:
    """The mean; 0 of nothing."""
    return full_sum(values) / max(1, values.numel())


def _dead_latents_loss(
    model: Autoencoder, x: Tensor, error: Tensor, modulation: ScaleShift, dead: Tensor, k_aux: int
) -> Tensor:
    """AuxK (Gao et al., arXiv 2406.04093): the error as the top ``k_aux`` dead latents alone reconstruct it."""
    values, indices = encode_topk(
        x,
        model.W_enc[dead],
        None if model.b_enc is None else model.b_enc[dead],
        min(k_aux, int(dead.sum())),
        layer_norm=model.layer_norm,
        backend=model.backend,
        **modulation.tables(),
    )
    found = decode(values, indices, model.W_dec[dead], backend=model.backend)
    if model.config.undo:
        found = model.unscaled(found, modulation)
    return _mean((error - found).square())
