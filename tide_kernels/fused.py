"""The fused training step: encode, decode, all loss terms and gradients, one chunk of tokens at a time.

No ``[n_tokens, n_latents]`` tensor exists for more than a chunk of tokens. Gradients are computed along with
the loss, as if the loss were the end of the graph, and the backward pass scales them by the incoming gradient.
Until then they carry a common factor, the gain, which matters in float16.

All terms but one are sums over tokens (or over pairs, which no chunk splits). The exception is the sparsity
term: its gradient has the factor Huber'(S - s_target), which needs the mean S of the whole batch. S depends
only on the codes. With a sparsity weight and several chunks, all chunks are therefore encoded first, and their
compact codes and modulated tokens are kept: ``O(n_tokens (k + d_model))`` memory, and nothing is computed twice.
BatchTopK, which selects from the whole batch, encodes all chunks first as well (`tide_kernels.batch_topk`); with
thresholds it encodes them once to find the cut and again in the step (`tide_kernels.heights`).

Where `Ranks` share the step, normalisers, S and the cut are those of all ranks, and sums and gradients are summed over
the ranks: the large gradients from when the last chunk has added to them, unless ranks share the latents as well, the
others at the end. What a buffer holds before counts once: of the ranks whose gradients are summed only the first starts
from it. Ranks that share the latents sum each chunk's reconstruction, so that the loss's gradient is the same on all of
them; what follows from it for their own latents is theirs alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tide_kernels.batch import Batch
from tide_kernels.batch_topk import Selection, batch_topk
from tide_kernels.codes import ENCODER, MODULATION, WALKED, Code, Compact, Slopes, Tokens, Walk, encode
from tide_kernels.dead import DeadLatents, dead_latents
from tide_kernels.dispatch import Choice
from tide_kernels.heights import batch_topk_of_heights
from tide_kernels.jumprelu import Thresholds
from tide_kernels.losses import LossTerms, huber, misfit, soft_count
from tide_kernels.modulation import add_modulation_gradients
from tide_kernels.nested import parts_of
from tide_kernels.options import LossArguments, Parameters
from tide_kernels.ranks import ALONE, LARGE, Exchange, Ranks
from tide_kernels.reference import Reconstruction, accumulator
from tide_kernels.shards import largest_of_all

SUMS = ("mse", "cosine", "temporal", "sparsity", "auxk", "whole")


class Chunk(NamedTuple):
    """An encoded chunk of the batch."""

    tokens: Tokens
    code: Code
    dead_code: Code | None  # the top k_aux of the dead latents


class FusedStep:
    """One training step. It adds the gradients to the buffers ``gradients``, which have the dtype of the sums, and of
    which ``start`` first replaces what they hold; it, ``squares`` and ``ranks`` as in `tide_kernels.tide_loss`."""

    def __init__(
        self,
        arguments: LossArguments,
        choice: Choice,
        gradients: dict[str, Tensor],
        start: float | None = None,
        squares: Tensor | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.x, parameters, _, self.dead, self.dtype, self.options, _ = arguments
        self.choice, self.gradients, self.ranks = choice, gradients, ranks
        self.sum_dtype = accumulator(self.dtype)
        self.batch = Batch(arguments, choice, ranks)
        self.W_enc, self.b_enc, self.W_dec = self.batch.W_enc, self.batch.b_enc, parameters.W_dec.to(self.dtype)
        self.b_dec, self.threshold = parameters.b_dec, parameters.threshold
        self.n_tokens, self.d_model = self.batch.all_tokens, self.x.shape[1]  # of all ranks
        self.n_latents = len(self.W_enc)
        self.parts = parts_of(self.options.prefixes, self.n_latents)
        self.share = self.n_latents / self.batch.all_latents  # codes divide soft counts by their own latents
        self.s_target = self.options.sparsity_target(self.batch.all_latents)
        self.n_elements = self.n_tokens * self.d_model
        self.gain = self.gain_of(self.n_tokens, self.d_model, self.dtype)
        start = start if ranks.tokens.number == 0 else 0.0
        self.walk = self.first_walk(start, squares)
        if start is not None:
            self.start_gradients(start, parameters)
        for gradient in self.of_all_latents() if ranks.latents.number else ():
            gradient.zero_()
        self.revived: DeadLatents | None = None
        if self.dead is not None and self.options.k_aux:
            weights = (self.W_enc, self.b_enc, self.W_dec)
            self.revived = dead_latents(self.dead, self.options, choice, *weights, gradients, ranks.latents)
        self.thresholds: Thresholds | None = None  # JumpReLU's; those of BatchTopK follow from the whole batch
        if self.options.activation == "jumprelu":
            assert self.threshold is not None
            self.thresholds = Thresholds(self.threshold, self.batch, self.options.bandwidth, "threshold" in gradients)
        self.selection: Selection | None = None
        self.exchange = Exchange(ranks.tokens, gradients)
        # NCCL allows no other group's operation while one is under way, and ranks that share latents go on with theirs.
        self.early = not ranks.latents.several
        self.chunks_left = len(self.batch.starts)
        self.fired = torch.zeros(self.n_latents, dtype=torch.int64, device=self.x.device)
        self.all_sums = torch.zeros(len(SUMS), dtype=self.sum_dtype, device=self.x.device)
        self.sums = dict(zip(SUMS, self.all_sums.unbind(), strict=True))
        self.none = self.count_of(0)
        self.overflow = self.none

    def first_walk(self, start: float | None, squares: Tensor | None) -> Walk | None:
        """What the walk over the first chunk's code does besides adding to gradients, where the backend offers it."""
        sparse = self.choice.regime == "sparse" and not self.gradients.keys().isdisjoint(ENCODER)
        if not (self.choice.ops.walks and sparse and self.batch.n_tokens):
            return None
        one = self.batch.n_tokens <= self.batch.chunk and len(self.parts) == 1
        finishes = one and (self.dead is None or not self.options.k_aux)
        # A walk in another dtype reads rounded weights.
        return Walk(
            start if not start or self.dtype == torch.float32 else None,
            squares if finishes and not self.ranks.several else None,
        )

    def start_gradients(self, start: float, parameters: Parameters) -> None:
        """Of all gradients but those that a walk starts."""
        walked = WALKED if self.walk is not None and self.walk.start is not None else ()
        for name, gradient in self.gradients.items():
            if name in walked:
                continue
            if start and name in ("W_enc", "W_dec"):
                torch.mul(getattr(parameters, name), start, out=gradient)
            else:
                gradient.zero_()

    def of_all_latents(self) -> list[Tensor]:
        """The gradients that are sums over all latents."""
        return [gradient for name, gradient in self.gradients.items() if name in MODULATION or gradient.dim() == 0]

    def gradient_dtype(self, choice: Choice) -> torch.dtype:
        """The dtype of a reconstruction's gradient: dense products round it anyway, gathers keep the loss's."""
        return self.dtype if choice.regime == "dense" else self.sum_dtype

    @staticmethod
    def gain_of(n_tokens: int, d_model: int, dtype: torch.dtype) -> float:
        """The common factor of the gradients until the backward pass.

        In float16 the gradient of a mean over millions of elements would vanish before the matrix products see
        it. The gain brings the gradients of all terms near 1; it is a power of two, which costs no rounding.
        """
        return 2.0 ** round(math.log2(max(n_tokens, 1) * d_model**0.5)) if dtype == torch.float16 else 1.0

    def run(self) -> LossTerms:
        """The loss terms; afterwards ``gradients`` holds ``gain`` times the gradients of ``total``."""
        if self.options.activation == "batch_topk":
            self.run_batch_topk()
        elif self.needs_slope() and self.thresholds is None:
            self.run_kept()
        else:
            for start in self.batch.starts:
                self.accumulate(self.encode(start), None)
        if self.revived is not None:
            self.revived.finish()
        if (found := self.selection or self.thresholds) is not None:
            self.overflow = found.overflow
        self.sum_over_ranks()
        return self.terms()

    def sum_over_ranks(self) -> None:
        """Sums, counts and gradients, with few waits; completes the gradient of the thresholds before."""
        if self.early:
            self.exchange.start(LARGE[-1])  # also where a rank has no chunk: all start in one order
        sizes = (self.batch.n_tokens, self.n_latents) if self.ranks.several else ()
        held = [self.count_of(each) for each in sizes]
        # Reconstructions are those of all latents already.
        self.ranks.latents.sum_([self.sums["temporal"], self.sums["sparsity"], self.overflow, *held[1:]])
        others = [self.all_sums, self.overflow, self.fired, *held[:1]]
        gradient = self.gradients.get("threshold")
        if gradient is not None and self.thresholds is not None:
            self.ranks.tokens.sum_(others)
            others = []
            self.thresholds.finish(gradient, self.penalty_slope())
        elif gradient is not None and self.selection is not None:
            self.selection.finish(gradient)
        self.ranks.latents.sum_(self.of_all_latents())
        self.exchange.finish(others)
        if held and self.x.device.type == "cpu":
            self.ranks.check(*map(int, held))

    def needs_slope(self) -> bool:
        """Whether the sparsity term's gradient needs more than one chunk's codes."""
        several = self.ranks.several or len(self.batch.starts) > 1
        return bool(self.options.weights.sparsity and self.gradients) and several

    def run_kept(self) -> None:
        """Encodes all chunks before the first is used."""
        kept = [self.keep(start) for start in self.batch.starts]
        counts = (soft_count(c.values.to(self.sum_dtype), self.n_latents, self.options.soft_eps) for _, c, _ in kept)
        slope = self.slope_of_all(sum(counts, self.sums["sparsity"]))
        for tokens, code, dead in kept:
            dead_code = None if dead is None else self.unpack_dead(dead)
            self.accumulate(Chunk(tokens, code.unpack(self.choice, self.n_latents), dead_code), slope)

    def run_batch_topk(self) -> None:
        if self.threshold is None:
            self.selection = batch_topk(self.batch)
        else:
            self.selection = batch_topk_of_heights(self.batch, self.threshold, "threshold" in self.gradients)
        slope = None
        if self.needs_slope():
            slope = self.slope_of_all(self.selection.soft_count(self.options.soft_eps))
        for tokens, code, dead_code in self.selection.chunks(self.dead_code):
            self.accumulate(Chunk(tokens, code, dead_code), slope)

    def unpack_dead(self, kept: Compact) -> Code | None:
        revived = self.revived
        return None if revived is None else kept.unpack(revived.choice, len(revived.W_enc))

    def slope_of_all(self, count: Tensor) -> Tensor:
        """`sparsity_slope`, from the sum of this rank's soft counts."""
        return self.sparsity_slope(self.ranks.summed(count * self.share) if self.ranks.several else count)

    def sparsity_slope(self, count: Tensor) -> Tensor:
        """The factor of the soft count's gradient, from the sum of the batch's soft counts."""
        options, n = self.options, max(self.n_tokens, 1)
        excess = count / n - self.s_target
        return excess.clamp(-options.delta, options.delta) * (options.weights.sparsity * self.gain / n * self.share)

    def penalty_slope(self) -> Tensor | None:
        """The derivative of JumpReLU's penalty, times its weight, in the number of active places; None without one."""
        weight, wanted = self.options.weights.sparsity, max(self.n_tokens, 1) * self.options.k
        if not weight:
            return None
        return (self.sums["sparsity"] / wanted - 1) * (2 * weight * self.gain / wanted)

    def select(self, tokens: Tokens, pre: Tensor | None) -> Compact:
        ops, k = self.choice.ops, min(self.options.k, self.n_latents)
        code = Compact(*(ops.code(tokens.x_mod, self.W_enc, self.b_enc, k) if pre is None else ops.select(pre, k)))
        return largest_of_all(ops, code, self.options.k, self.ranks.latents)

    def dead_code(self, tokens: Tokens, pre: Tensor | None) -> Code | None:
        """The code of the chunk's dead latents, if there are any."""
        if (revived := self.revived) is None:
            return None
        if self.ranks.latents.several:
            return self.unpack_dead(self.select_dead(revived, tokens, pre))
        return encode(revived.choice, revived.pre_activations(tokens.x_mod, pre), revived.k)

    def select_dead(self, revived: DeadLatents, tokens: Tokens, pre: Tensor | None) -> Compact:
        ops = self.choice.ops
        code = Compact(*ops.select(revived.pre_activations(tokens.x_mod, pre), revived.k))
        return largest_of_all(ops, code, self.options.k_aux, self.ranks.latents)

    def tokens_and_pre_activations(self, start: int) -> tuple[Tokens, Tensor | None]:
        """The second is None where the backend selects without it."""
        tokens = self.batch.tokens(start)
        return tokens, None if self.batch.compact else self.batch.pre_activations(tokens)

    def encode(self, start: int) -> Chunk:
        tokens, pre = self.tokens_and_pre_activations(start)
        dead_code = self.dead_code(tokens, pre)
        if self.thresholds is not None:
            return Chunk(tokens, self.thresholds.code(self.batch, tokens, pre), dead_code)
        if pre is None or self.ranks.latents.several:
            return Chunk(tokens, self.select(tokens, pre).unpack(self.choice, self.n_latents), dead_code)
        code = encode(self.choice, pre, self.options.k, (self.options.paired, self.options.soft_eps))
        return Chunk(tokens, code, dead_code)

    def keep(self, start: int) -> tuple[Tokens, Compact, Compact | None]:
        """As `encode`, but in a form that is small in both regimes."""
        tokens, pre = self.tokens_and_pre_activations(start)
        kept = self.select(tokens, pre)
        if (revived := self.revived) is None:
            return tokens, kept, None
        return tokens, kept, self.select_dead(revived, tokens, pre)

    def accumulate(self, chunk: Chunk, sparsity_slope: Tensor | None) -> None:
        """Adds a chunk's part of every sum and every gradient. ``sparsity_slope`` may be None if the chunk is the whole
        batch or the sparsity term has no weight."""
        options, weights, tokens = self.options, self.options.weights, chunk.tokens
        temporal, count = chunk.code.sums(options.paired, options.soft_eps)
        if self.ranks.latents.several and self.thresholds is None:
            count = count * self.share
        self.sums["temporal"] += temporal
        self.sums["sparsity"] += count
        if weights.sparsity and sparsity_slope is None and self.thresholds is None:
            sparsity_slope = self.sparsity_slope(count)
        codes = [chunk.code]
        if len(self.parts) > 1:
            codes = [chunk.code.part(part.low, part.high) for part in self.parts]
        losses = self.reconstruct(tokens, codes, chunk.dead_code is not None)
        pair = weights.temporal * self.gain * 4 / self.n_tokens if options.paired else 0.0
        grad_x_mod = None
        if self.gradients:
            grad_x_mod = self.backward(tokens, codes, losses, Slopes(pair, sparsity_slope, options.soft_eps))
        else:
            chunk.code.count(self.fired)
        if self.revived is not None and chunk.dead_code is not None and (error := losses[-1].error) is not None:
            grad_x_mod = self.accumulate_auxk(self.revived, chunk.dead_code, error, tokens, grad_x_mod)
        if grad_x_mod is not None:
            tables = (self.gradients.get(name) for name in MODULATION)
            add_modulation_gradients(self.choice.ops, grad_x_mod, tokens.x, tokens.group, tokens.layer_norm, *tables)

    def reconstruct(self, tokens: Tokens, codes: list[Code], want_error: bool) -> list[Reconstruction]:
        """The reconstructions of a chunk by the first part of the latents, by the first two, and so on; of the last
        one, that of all latents, also the error if it is wanted. Adds to the sums."""
        weights, share = self.options.weights, 1 / len(self.parts)
        losses: list[Reconstruction] = []
        x_hat: Tensor | None = None
        for part, code in zip(self.parts, codes, strict=True):
            own = code.decode(part.rows(self.W_dec))
            self.ranks.latents.sum_([own])
            x_hat = own if x_hat is None else own.add_(x_hat)
            loss = self.choice.ops.reconstruction_loss(
                tokens.target,
                x_hat,
                self.b_dec,
                weights.mse * share * self.gain * 2 / self.n_elements,
                weights.cosine * share * self.gain / self.n_tokens,
                self.gradient_dtype(self.choice) if self.gradients else None,
                want_error and part is self.parts[-1],
            )
            self.sums["mse"].add_(loss.squared, alpha=share)
            self.sums["cosine"].add_(loss.distance, alpha=share)
            losses.append(loss)
        self.sums["whole"] += losses[-1].squared
        return losses

    def backward(
        self, tokens: Tokens, codes: list[Code], losses: list[Reconstruction], slopes: Slopes
    ) -> Tensor | None:
        """Adds the gradients that come from the reconstructions, and what the codes' own slopes add to them; returns
        that of x_mod."""
        grad = grad_x_mod = None
        self.chunks_left -= 1
        # Dead latents add to the same gradients later.
        done = self.early and not self.chunks_left and self.revived is None
        complete = self.exchange.start if done else None
        for part, code, loss in reversed(list(zip(self.parts, codes, losses, strict=True))):
            assert loss.gradient is not None
            if "b_dec" in self.gradients:
                self.gradients["b_dec"] += loss.gradient.sum(0, dtype=self.sum_dtype)
            # A part is in its own reconstruction and in those of all longer prefixes.
            grad = loss.gradient if grad is None else grad + loss.gradient
            weights = (part.rows(self.W_enc), part.rows(self.W_dec))
            sums = (part.gradients(self.gradients), part.rows(self.fired))
            last = complete if part is self.parts[0] else None
            grad_x_mod = code.backward(grad, tokens, *weights, part.slopes(slopes), *sums, self.walk, grad_x_mod, last)
        self.walk = None  # further chunks add to the gradients
        return grad_x_mod

    def accumulate_auxk(
        self, revived: DeadLatents, code: Code, error: Tensor, tokens: Tokens, grad_x_mod: Tensor | None
    ) -> Tensor | None:
        """The dead latents reconstruct what is missing, target - x_hat, which is a constant to this term. Adds to the
        gradient of x_mod and returns it."""
        factor = self.options.weights.auxk * self.gain * 2 / self.n_elements
        dtype = self.gradient_dtype(revived.choice) if self.gradients and factor else None
        rebuilt = code.decode(revived.W_dec)
        self.ranks.latents.sum_([rebuilt])
        squared, grad = (self.choice.ops.misfit or misfit)(rebuilt, error, factor, dtype)
        self.sums["auxk"] += squared
        if grad is None:
            return grad_x_mod
        weights = (revived.W_enc, revived.W_dec)
        return code.backward(grad, tokens, *weights, Slopes(), revived.gradients, None, grad_x_mod=grad_x_mod)

    def terms(self) -> LossTerms:
        options, sums, n = self.options, self.sums, max(self.n_tokens, 1)
        elements = max(self.n_elements, 1)
        mse, cosine = sums["mse"] / elements, sums["cosine"] / n
        temporal = sums["temporal"] * (2 / n)
        sparsity = self.sparsity(sums["sparsity"] / n) * (self.n_tokens > 0)
        auxk, whole = sums["auxk"] / elements, sums["whole"] / elements
        if self.dead is not None:
            auxk = torch.where(self.any_dead(self.dead), auxk, 0)  # without dead latents there is nothing to revive
        total = torch.zeros_like(mse)
        for weight, term in zip(options.weights, (mse, cosine, temporal, sparsity, auxk), strict=True):
            if weight:  # NaN in a term without weight must not reach the total
                total = total + weight * term
        least = (self.none if self.selection is None else self.selection.cut.least).to(self.sum_dtype)
        return LossTerms(total, mse, cosine, temporal, sparsity, self.fired, auxk, whole, least, self.overflow)

    def any_dead(self, dead: Tensor) -> Tensor:
        if not self.ranks.latents.several:
            return dead.any()
        return self.ranks.latents.summed(dead.any().to(torch.int32)) > 0

    def sparsity(self, mean: Tensor) -> Tensor:
        """The sparsity term, from the mean soft count or, for JumpReLU, the mean number of active latents."""
        if self.thresholds is not None:
            return (mean / self.options.k - 1).square()
        return huber(mean - self.s_target, self.options.delta)

    def count_of(self, number: int) -> Tensor:
        return torch.full((), number, dtype=torch.int64, device=self.x.device)
