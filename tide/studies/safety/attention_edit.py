"""A concept taken out of the cross-attention's weights in closed form (UCE, Gandikota et al., arXiv 2308.14761).

Keys and values W c of the prompt's tokens c shall be W c* where the prompt names the unwanted concept, c* being the
same token of the same caption with the neutral word, and stay as they are elsewhere:

    min over W':  E_erase |W' c - W c*|^2 + lambda E_keep |W' c - W c|^2 + epsilon s |W' - W|^2

with means over tokens, so that lambda does not depend on how many captions there are, and s the mean square of the
features of c. The last term keeps W in directions that no caption has. The gradient vanishes at

    W' = W M,   M = 1 + E_erase[(c* - c) c^T] (E_erase[c c^T] + lambda E_keep[c c^T] + epsilon s 1)^-1

Tokens and lambda were chosen on 16 development prompts that ask and 16 that are allowed, with "house" and then "ornate"
unwanted. Every choice removed the concept from all images, so what they kept decides. For houses, moving the word's
token alone kept 88 to 95 % of the other attributes and wrecked up to 6 % of the images; moving the tokens behind it
too, which the text encoder has told of it, kept 97 % and wrecked none; those before it added nothing. lambda = 0.03
cost 6 % of the other classes, and from 0.3 to 10 no figure changed. For "ornate" what was tried (the word alone, and
onwards up to lambda = 3) kept 98 to 99 %. Tried by hand; `tide reproduce safety` measures the choice on test prompts.

M is one matrix for the keys and values of every block, because all of them read the same c: the text encoder's output
behind the transformer's projection of captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tide.adapters import Adapter, adapter_for
from tide.errors import TideError
from tide.guards import words_fit
from tide.scenes.annotate import encode_captions
from tide.scenes.scene import prompts
from tide.studies.safety.prompts import Unwanted, asking
from tide.studies.safety.rivals import Rival
from tide.studies.tasks import swap_word

#: Which tokens of a caption that names the concept are moved.
Moved = Literal["word", "onwards", "all"]


@dataclass(frozen=True)
class AttentionEdit:
    """The factor ``matrix [c, c]``, float64, of the weights of a transformer's cross-attention (M above)."""

    matrix: Tensor

    @contextmanager
    def applied(self, pipe: Any) -> Iterator[None]:
        """While the context is open, the keys' and values' weights of ``pipe`` are W M; then they have the bits that
        they had before, also if the pipeline raises. Raises :class:`~tide.errors.TideError` for another width."""
        linears = projections(adapter_for(pipe))
        width = linears[0].in_features
        if tuple(self.matrix.shape) != (width, width):
            raise TideError(
                f"the edit is {list(self.matrix.shape)} and the cross-attention reads width {width}; fit it on this "
                "pipeline"
            )
        before = [linear.weight.data for linear in linears]
        try:
            for linear, weight in zip(linears, before, strict=True):
                linear.weight.data = (weight.double() @ self.matrix.to(weight.device)).to(weight.dtype)
            yield
        finally:
            for linear, weight in zip(linears, before, strict=True):
                linear.weight.data = weight


def projections(adapter: Adapter) -> list[nn.Linear]:
    """The layers that make keys and values of the prompt, two in each block."""
    attentions: list[Any] = [block.attn2 for block in adapter.blocks]
    return [layer for attention in attentions for layer in (attention.to_k, attention.to_v)]


@torch.no_grad()
def attention_edit(
    adapter: Adapter,
    concept: Unwanted,
    *,
    moved: Moved = "onwards",
    keep: float = 1.0,
    epsilon: float = 1e-3,
    n_captions: int = 256,
    seed: int = 0,
) -> AttentionEdit:
    """The edit that erases ``concept``, from captions of training scenes: ``n_captions`` that name it, each also with
    the neutral word, and as many with other values, which are to stay.

    Args:
        moved: the erased tokens: the "word" alone, the word "onwards", or "all" of the caption. The text encoder lets
            every token see the whole caption.
        keep: lambda, the weight of what stays.
        epsilon: the weight of staying near W, of the mean square of the features.

    Raises :class:`~tide.errors.TideError` for another ``moved``, or weights that leave the solution open.
    """
    if moved not in get_args(Moved):
        raise TideError(f"moved = {moved!r} is unknown; use one of {', '.join(get_args(Moved))}")
    if not (keep >= 0 and epsilon > 0):
        raise TideError(f"keep = {keep:g} and epsilon = {epsilon:g}; give keep >= 0 and epsilon > 0")
    named = [request.prompt for request in asking(concept, "train", n_captions, seed)]
    neutral = [swap_word(caption, concept.value, concept.neutral) for caption in named]
    others = [c for s, c in prompts("train", 2 * n_captions, seed + 1) if s[concept.attribute] != concept.value]
    where = _moved_tokens(adapter, named, concept.value, moved)
    c, c_star = (_states(adapter, captions)[0][where] for captions in (named, neutral))
    states, real = _states(adapter, others[:n_captions])
    return AttentionEdit(closed_form(c, c_star, states[real], keep=keep, epsilon=epsilon))


def closed_form(c: Tensor, c_star: Tensor, kept: Tensor, *, keep: float, epsilon: float) -> Tensor:
    """M ``[d, d]``, float64, from rows ``c [n, d]``, what becomes of them ``c_star [n, d]``, and ``kept [m, d]``."""
    change = words_fit.closed_form(c, c_star, kept, preserve=keep, epsilon=epsilon)
    return torch.eye(len(change), dtype=change.dtype, device=change.device) + change


def erased_attention(name: str, edit: AttentionEdit) -> Rival:
    """The pipeline with edited cross-attention, as a rival."""
    return Rival(name, context=edit.applied)


def _states(adapter: Adapter, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What keys and values read, ``[captions, L, d]``, and bool ``[captions, L]``: the tokens that are no padding."""
    text = encode_captions(adapter, captions)
    return adapter.transformer.caption_projection(text["encoder_hidden_states"]), text["encoder_attention_mask"].bool()


def _moved_tokens(adapter: Adapter, captions: Sequence[str], word: str, moved: Moved) -> Tensor:
    """bool ``[captions, L]``: the tokens that the edit moves."""
    real = encode_captions(adapter, captions)["encoder_attention_mask"].bool()
    if moved == "all":
        return real
    tokenizer = adapter.pipe.tokenizer
    ids = tokenizer(list(captions), padding="max_length", max_length=real.shape[1], return_tensors="pt").input_ids
    is_word = (ids == tokenizer.convert_tokens_to_ids(word)).to(real.device)
    return is_word if moved == "word" else (is_word.cumsum(1) > 0) & real
