"""The public operations. Arguments are checked here, not in the layers below.

Common to all of them:

* Tensors are float16, bfloat16, float32 or float64 and need not be contiguous. Matrix products run in the
  dtype of the weights, or in autocast's inside ``torch.autocast`` (float64 weights stay float64); tokens are
  cast to it. Gradients have the dtype of the tensor they belong to and are summed in float32 (float64 for
  float64).
* Zero tokens are allowed: outputs are then empty and losses 0.
* ``backend`` is "auto", "reference", "triton" or "native"; ``regime`` is "auto", "sparse" (gathers) or
  "dense" (matrix products over a masked chunk). Both change only speed and rounding. "auto" decides by shape
  and device. A backend that is asked for by name and cannot serve raises `BackendError`.
* Indices in a GPU's memory are not checked, since that would wait for the device: groups out of range are
  clamped, and code places out of range count as unused. On a CPU both raise ``ValueError``.
* On one machine, with one version of PyTorch and one number of CPU threads, results are the same bits from run to
  run. With another number of threads PyTorch's matrix products, which compute pre-activations and the dense regime,
  may differ in the last bits; everything else is the same.
* Misshaped or misplaced tensors and numbers out of range raise ``ValueError``, wrong types ``TypeError``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tide_kernels import autograd, checks
from tide_kernels.dispatch import PATHS
from tide_kernels.losses import LossTerms, LossWeights
from tide_kernels.options import LossArguments, LossOptions, Parameters, default_capacity, default_chunk
from tide_kernels.ranks import ALONE, Ranks
from tide_kernels.reference import accumulator

DEFAULT_WEIGHTS = LossWeights()


def _compute_dtype(weight: Tensor) -> torch.dtype:
    kind = weight.device.type
    if weight.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def modulate(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    group: Tensor | None = None,
    *,
    layer_norm: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Timestep modulation of tokens (eq. 8): ``x_mod_i = u_i * (1 + scale[group_i]) + shift[group_i]``.

    u is x or, with ``layer_norm``, LayerNorm(x) without affine parameters and with eps 1e-6, as inside a DiT block.

    Args:
        x: ``[n_tokens, d_model]``.
        scale, shift: ``[groups, d_model]``; None counts as zeros.
        group: ``[n_tokens]`` int32 or int64, each token's row of scale and shift; None for a single group.
            Ignored where there is neither scale nor shift.
        layer_norm: normalise each token first.
        backend: see the module's docstring.

    Returns:
        ``[n_tokens, d_model]`` in the dtype of x. Differentiable in x, scale and shift.
    """
    checks.floating("x", x, ("n_tokens", "d_model"))
    group = checks.modulation(x, scale, shift, group)
    if scale is None and shift is None and not layer_norm:
        return x.clone()
    return autograd.modulate(x, scale, shift, group, layer_norm, backend)


def encode_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    k: int,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    group: Tensor | None = None,
    layer_norm: bool = False,
    backend: str = "auto",
    regime: str = "auto",
    path: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The sparse code of tokens (eqs 1, 2, 8): ``TopK(ReLU(W_enc x_mod + b_enc))``, x_mod as in `modulate`.

    Selects at most k strictly positive pre-activations per token, the largest; ties at the k-th value go to the
    lowest index; NaN counts as largest, so that it shows. Pre-activations are rounded to the compute dtype before
    the selection.

    Args:
        x: ``[n_tokens, d_model]``.
        W_enc: ``[n_latents, d_model]``; b_enc: ``[n_latents]`` or None.
        k: places of a code, from 1 to n_latents.
        scale, shift, group, layer_norm: as in `modulate`.
        backend, regime: see the module's docstring; the regime is that of the backward pass.
        path: "single" for modulation, product and selection in one kernel launch, which never writes a full row of
            pre-activations to the device's memory; "split" for one after the other, by chunks of tokens; "auto"
            for "single" only where it was measured to be faster. A backend without a single-launch encoder raises
            `BackendError` for "single".

    Returns:
        ``values [n_tokens, k]`` in the compute dtype and ``indices [n_tokens, k]`` int32, ascending by index;
        unused places come last, with value 0 and index -1. Values are differentiable in x, W_enc, b_enc,
        scale and shift.
    """
    checks.encoder(x, W_enc, b_enc, k)
    group = checks.modulation(x, scale, shift, group)
    if path not in PATHS:
        raise ValueError(f"path {path!r} is unknown: use one of {', '.join(PATHS)}")
    chunk = default_chunk(len(x), len(W_enc), x.device)
    dtype = _compute_dtype(W_enc)
    return autograd.encode_topk(
        x, scale, shift, W_enc, b_enc, group, layer_norm, k, dtype, chunk, backend, regime, path
    )


def encode_threshold(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    threshold: Tensor | float,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    group: Tensor | None = None,
    layer_norm: bool = False,
    k: int | None = None,
    capacity: int | None = None,
    backend: str = "auto",
    regime: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """The sparse code of tokens by thresholds: ``pre H(pre - threshold)`` with ``pre = W_enc x_mod + b_enc``, x_mod as
    in `modulate`.

    Selects the pre-activations above their threshold (strictly); NaN passes every threshold, so that it shows.
    Pre-activations are rounded to the compute dtype before they are compared, in float32 (float64 for float64).

    Args:
        x: ``[n_tokens, d_model]``.
        W_enc: ``[n_latents, d_model]``; b_enc: ``[n_latents]`` or None.
        threshold: a number, or a tensor ``[]``, ``[n_latents]`` or ``[groups, n_latents]``, of which token i uses the
            row ``group[i]``. At least 0; negative numbers and NaN raise ``ValueError`` on a CPU and are not looked for
            on a GPU. It gets no gradient.
        scale, shift, group, layer_norm: as in `modulate`.
        k: how many latents are active on average, which sets the default capacity and the regime "auto"; n_latents by
            default.
        capacity: places of a code, at most n_latents; by default 4 k. A token with more active latents keeps its
            largest; ties go to the lowest index, and NaN counts as largest.
        backend, regime: see the module's docstring; the regime is that of the backward pass.

    Returns:
        ``values [n_tokens, capacity]`` in the compute dtype and ``indices [n_tokens, capacity]`` int32, ascending by
        index; unused places come last, with value 0 and index -1. ``count [n_tokens]`` int32 is how many latents are
        active, kept or not. Values are differentiable in x, W_enc, b_enc, scale and shift.
    """
    checks.encoder(x, W_enc, b_enc, 1 if k is None else k)
    n_latents = len(W_enc)
    dtype = _compute_dtype(W_enc)
    if not isinstance(threshold, Tensor):
        checks.number("threshold", threshold)
        threshold = torch.full((), threshold, dtype=accumulator(dtype), device=x.device)
    checks.threshold(threshold, n_latents, x.device)
    group = checks.modulation(x, scale, shift, group, threshold)
    k = n_latents if k is None else k
    if capacity is None:
        capacity = min(n_latents, default_capacity(k))
    checks.count("capacity", capacity, 1, n_latents)
    chunk = default_chunk(len(x), n_latents, x.device)
    return autograd.encode_threshold(
        x, scale, shift, W_enc, b_enc, threshold, group, layer_norm, k, capacity, dtype, chunk, backend, regime
    )


def decode(
    values: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor | None = None,
    *,
    backend: str = "auto",
    regime: str = "auto",
) -> Tensor:
    """Reconstruction from a sparse code (eq. 2): ``x_hat_i = sum_j values_ij W_dec[indices_ij] + b_dec``.

    Args:
        values: ``[n_tokens, k]``, of any sign.
        indices: ``[n_tokens, k]`` int32 or int64 in [-1, n_latents), in any order; a latent that occurs
            twice in a row is added twice; a place with index -1 is unused, whatever its value.
        W_dec: ``[n_latents, d_model]``; b_dec: ``[d_model]`` or None.
        backend, regime: see the module's docstring.

    Returns:
        ``x_hat [n_tokens, d_model]`` in the compute dtype. Differentiable in values (0 at unused places),
        W_dec and b_dec.
    """
    checks.floating("W_dec", W_dec, ("n_latents", "d_model"))
    checks.code(values, indices, W_dec.device)
    if b_dec is not None:
        checks.floating("b_dec", b_dec, (W_dec.shape[1],), W_dec.device)
    chunk = default_chunk(len(values), len(W_dec), W_dec.device)
    return autograd.decode(values, W_dec, b_dec, indices, _compute_dtype(W_dec), chunk, backend, regime)


def tide_loss(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    W_dec: Tensor,
    b_dec: Tensor | None,
    k: int,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    group: Tensor | None = None,
    target: Tensor | None = None,
    layer_norm: bool = False,
    paired: bool = False,
    weights: LossWeights = DEFAULT_WEIGHTS,
    s_target: float | None = None,
    delta: float = 0.01,
    soft_eps: float = 0.1,
    dead: Tensor | None = None,
    k_aux: int = 0,
    dead_bucket: int | None = None,
    activation: str = "topk",
    threshold: Tensor | None = None,
    bandwidth: float = 0.3,
    capacity: int | None = None,
    prefixes: tuple[int, ...] = (),
    gradients: dict[str, Tensor] | None = None,
    start: float | None = None,
    squares: Tensor | None = None,
    ranks: Ranks | None = None,
    chunk: int | None = None,
    backend: str = "auto",
    regime: str = "auto",
) -> LossTerms:
    """The fused training loss of a sparse autoencoder with timestep modulation (eqs 1, 2, 7, 8, 13-16).

    With ``values, indices = encode_topk(x, ...)``, or the code of another ``activation``, and
    ``x_hat = decode(values, indices, W_dec, b_dec)``:

    * ``mse``: the mean over all elements of (x - x_hat)^2 (eq. 13, as a mean);
    * ``cosine``: the mean over tokens of 1 - cos(x, x_hat) (eq. 14). A token where x or x_hat is zero
      contributes 1 and no gradient;
    * ``temporal``: the mean over pairs of ``|F_2i - F_2i+1|^2``, where F are the sparse latents (eq. 15);
      0 unless paired;
    * ``sparsity``: Huber(S - s_target; delta) (eq. 16), where S is the mean over tokens of
      ``(1 / n_latents) sum_j v_j^2 / (v_j^2 + soft_eps^2)``; for "jumprelu" ``(L0 / k - 1)^2``, where L0 is the number
      of active latents in the mean over tokens. It moves the thresholds alone;
    * ``auxk``: the mean over all elements of (e - e_hat)^2 with e = x - x_hat taken as a constant and e_hat
      its reconstruction from only the top ``k_aux`` dead latents, without b_dec; 0 if no latent is dead;
    * ``total``: the sum of the terms times ``weights`` (eq. 7). Weight decay (eq. 17) is left to the
      optimiser.

    With a ``target`` y the model is a transcoder: its code is that of x, and x_hat is compared with y in place of x, in
    ``mse``, ``cosine`` and the residual e.

    With ``prefixes`` the dictionary is nested (Matryoshka; Bussmann et al., arXiv 2503.17547): ``mse`` and ``cosine``
    are means over the reconstructions by the first m latents, for each m of ``prefixes`` and for all n_latents::

        x_hat_m = sum over j < m of z_j W_dec_j + b_dec

    The code z, and with it every other term, is that of the whole dictionary. Each entry of it is still decoded once.

    The activations, with ``pre = W_enc x_mod + b_enc``; for all of them NaN is active, so that it shows:

    * "topk": the k largest positive pre-activations of each token;
    * "batch_topk": the ``n_tokens k`` largest positive pre-activations of the whole batch, exactly, whatever the chunks
      (Bussmann et al., arXiv 2412.06410). Ties go to the lowest (token, latent);
    * "batch_topk" with ``threshold``: of the batch the ``n_tokens k`` largest heights ``pre / threshold`` above 0. With
      c the cut of the heights ``z = pre H(pre - c threshold)``. c lies a few rounding errors below the smallest height
      that stays: entries of that height all stay, and so do a handful that rounding does not tell from it. The
      thresholds' gradient is that of the straight-through estimators below at ``c threshold``, where c moves with them
      so that as many stay: ``dc = -c (sum K dthreshold) / (sum K threshold)``, sums over the batch. Where fewer than
      ``n_tokens k`` are positive, ``z = ReLU(pre)`` and the thresholds get no gradient;
    * "jumprelu": ``z = pre H(pre - threshold)`` (Rajamanoharan et al., arXiv 2407.14435). The thresholds' gradient is
      that of straight-through estimators with a rectangular kernel K of width ``bandwidth``:
      ``dz/dthreshold = -(threshold / bandwidth) K((pre - threshold) / bandwidth)`` and
      ``dH/dthreshold = -(1 / bandwidth) K((pre - threshold) / bandwidth)``.

    Forward and backward run together over chunks of tokens: no ``[n_tokens, n_latents]`` tensor exists, and
    peak memory is set by ``chunk``. The exceptions are "batch_topk" and a nonzero sparsity weight with "topk", whose
    gradient needs the batch's mean S first: every token's compact code and modulated token are then kept for the length
    of the call. "batch_topk" with many chunks in the dense regime or on a GPU keeps nothing: it computes
    pre-activations once more for each pass.

    Args:
        x: ``[n_tokens, d_model]``. It gets no gradient: for one, compose `encode_topk` and `decode`.
        W_enc, W_dec: ``[n_latents, d_model]``, of one dtype.
        b_enc: ``[n_latents]`` or None; b_dec: ``[d_model]`` or None.
        k: from 1 to n_latents: active latents of a token for "topk", their mean over tokens for "batch_topk", the mean
            aimed at for "jumprelu".
        scale, shift, group, layer_norm: as in `modulate`.
        target: ``[n_tokens, d_model]``, or None for x itself. It gets no gradient.
        paired: rows 2i and 2i + 1 are the same token at neighbouring timesteps; n_tokens has to be even.
        weights: the terms' factors. A term of weight 0 is still reported.
        s_target: target of S; 0.8 k / n_latents by default (S never exceeds k / n_latents).
        delta: where Huber's function turns linear.
        soft_eps: the activation that counts as one half in S, from 1e-9 to 1e9: float32 holds its fourth power.
        dead: ``[n_latents]`` bool, the latents that the auxiliary term revives.
        k_aux: how many dead latents a token may use.
        dead_bucket: how many dead latents the auxiliary term considers; where more are dead, those of the lowest
            indices. Its products then cost ``dead_bucket / n_latents`` of a step's. `tide_kernels.dead.bucket_for`
            has few sizes that fit ``dead.sum()``: those of all tensors depend on it, so it should change rarely. With
            None a CPU counts the dead latents, and a GPU, from which a count would have to be read back, computes with
            all latents.
        activation: "topk", "batch_topk" or "jumprelu".
        threshold: for "jumprelu", and for "batch_topk" if heights are to be cut: ``[]``, ``[n_latents]`` or ``[groups,
            n_latents]``, of which token i uses the row ``group[i]``. At least 0; for "batch_topk", which divides by it,
            finite and above 0. Other numbers and NaN raise ``ValueError`` on a CPU and are not looked for on a GPU.
        bandwidth: the width of the kernel K of the thresholds' gradient.
        capacity: for thresholds in the sparse regime on a GPU, places of a token's code, by default 4 k: its active
            latents, and where ``threshold`` gets a gradient those within half a bandwidth below it (below c times it).
            A token with more keeps its largest and counts in ``overflow``. On a CPU, and in the dense regime, none
            overflows.
        prefixes: numbers of latents, ascending and below n_latents.
        gradients: buffers to which the gradients of ``total`` are added during the call, by the names of the
            parameters (W_enc, b_enc, W_dec, b_dec, scale, shift, threshold); for example their ``.grad``. They are
            contiguous, in the terms' dtype, and share no memory with another argument. The result then carries no
            gradient, and no other memory as large as the weights is needed. Without buffers, call
            ``total.backward()``.
        start: where ``gradients`` start, whatever the buffers hold: those of W_enc and W_dec from ``start`` times the
            weight, which is the gradient of ``start / 2 |W|^2``, all others from 0. None adds to what they hold.
        squares: a float64 scalar in the CPU's memory, which receives the sum of the squares of the ``gradients`` of
            W_enc, b_enc and W_dec, for their norm. It is left as it is unless one pass finishes them: that of the
            backend "native" in the sparse regime, in a single chunk, with the gradient of W_enc, b_enc, scale or shift
            among ``gradients``, without ``prefixes``, ``dead`` and ``k_aux``, and without other ``ranks``.
        ranks: the processes that share the step, whose terms and ``gradients`` are those of one process that has
            everything; only with ``gradients``. Of ranks that share the tokens each passes its rows of ``x``,
            ``target`` and ``group``, possibly none and never half a pair; all get the same bits. Scale, shift and
            threshold have the rows of all ranks' groups. Of ranks that share the latents each passes its own of W_enc,
            b_enc, W_dec, threshold and ``dead``, and gets their gradients and ``fired``; ``overflow`` counts a token on
            each rank; there are no ``prefixes``. All else is the same on all ranks. What buffers held, or their start,
            counts once: that of rank 0.
        chunk: tokens per chunk, rounded up to a whole pair if paired; by n_latents and device if None.
        backend, regime: see the module's docstring.

    Returns:
        `LossTerms`, scalars in float32 (float64 for float64 weights). Only ``total`` is differentiable, in
        the weights, biases, scale, shift and threshold. ``fired [n_latents]`` int64 is the number of tokens on which
        each latent is active (its use by the auxiliary term does not count). ``whole`` is the mse of the reconstruction
        by all latents, equal to ``mse`` without prefixes. ``least`` is the smallest value that
        "batch_topk" kept, with ``threshold`` the smallest height, 0 if fewer than ``n_tokens k`` are positive and for
        other activations; ``overflow`` int64 the number of tokens whose code had too few places.
    """
    checks.of_buffers(gradients, start, squares, ranks)
    ranks = ALONE if ranks is None else ranks
    checks.encoder(x, W_enc, b_enc, k, ranks)
    checks.activation(activation, threshold)
    checks.floating("W_dec", W_dec, tuple(W_enc.shape), x.device)
    n_tokens, (n_latents, d_model) = len(x), W_enc.shape
    if W_enc.dtype != W_dec.dtype:
        raise TypeError(f"W_enc is {W_enc.dtype} and W_dec {W_dec.dtype}: keep both weights in one dtype")
    if b_dec is not None:
        checks.floating("b_dec", b_dec, (d_model,), x.device)
    if threshold is not None:
        checks.threshold(threshold, n_latents, x.device)
    group = checks.modulation(x, scale, shift, group, threshold)
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("x requires grad, tide_loss gives none for it: compose encode_topk and decode instead")
    if target is not None:
        checks.floating("target", target, tuple(x.shape), x.device)
        if target.requires_grad and torch.is_grad_enabled():
            raise ValueError("target requires grad and tide_loss gives none for it: pass target.detach()")
    if paired and n_tokens % 2:
        raise ValueError(f"paired=True and x has an odd number of rows, {n_tokens}: pass both rows of each pair")
    checks.loss_weights(weights)
    if weights.temporal and not paired:
        raise ValueError("weights.temporal is not 0 and paired is False: pass pairs of rows and paired=True")
    checks.positive("delta", delta)
    checks.positive("bandwidth", bandwidth)
    if capacity is not None:
        checks.count("capacity", capacity, 1, ranks.n_latents(n_latents))
    checks.within("soft_eps", soft_eps, 1e-9, 1e9)
    if s_target is not None:
        checks.finite("s_target", s_target)
    checks.dead_latents(dead, k_aux, weights.auxk, n_latents, x.device, ranks)
    checks.prefixes(prefixes, n_latents, ranks)
    if dead_bucket is not None:
        checks.count("dead_bucket", dead_bucket, 1)
    if chunk is not None:
        checks.count("chunk", chunk, 1)

    parameters = Parameters(W_enc, b_enc, W_dec, b_dec, scale, shift, threshold)
    options = LossOptions(
        k=k,
        k_aux=k_aux,
        layer_norm=layer_norm,
        paired=paired,
        weights=weights,
        s_target=s_target,
        delta=delta,
        soft_eps=soft_eps,
        chunk=chunk,
        backend=backend,
        regime=regime,
        dead_bucket=dead_bucket,
        activation=activation,
        bandwidth=bandwidth,
        capacity=capacity,
        prefixes=prefixes,
    )
    arguments = LossArguments(x, parameters, group, dead, _compute_dtype(W_enc), options, target)
    if gradients is not None:
        others = {"x": x, "group": group, "dead": dead, "target": target}
        checks.gradients(gradients, parameters._asdict(), others, accumulator(arguments.dtype))
        return autograd.accumulate_gradients(arguments, gradients, start, squares, ranks)
    wanted = [p is not None and p.requires_grad and torch.is_grad_enabled() for p in parameters]
    results = autograd.tide_loss(*arguments.flat(), wanted)
    total, *others = results[: len(LossTerms._fields)]
    return LossTerms(total, *(term.detach() for term in others))
