"""The map of words of a guard, in closed form from captions.

After UCE (Gandikota et al., arXiv 2308.14761), on the text encoder's states themselves instead of on the weights of
every layer that reads them: with rows X of captions with the unwanted word, Y the same rows with the word replaced, and
Z rows of other captions,

    min over M:  mean |x + M x - y|^2 + preserve mean |M z|^2 + epsilon s |M|^2,

s the mean square of an entry of X. The gradient vanishes at

    M = mean[(y - x) x^T] (mean[x x^T] + preserve mean[z z^T] + epsilon s 1)^-1,

and :class:`~tide.guards.Words` is its best approximation of low rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.adapters.sizes import caption_length
from tide.errors import TideError
from tide.guards.words import STATES, Words, mask_name

#: The weight of what is to stay as it is.
PRESERVE = 0.1
EPSILON = 1e-3
#: On the bundled pipeline and unseen captions of house -> tree, rank 8 leaves 0.12 of |y - x|^2, 16 0.067, 32 0.046 and
#: all 128 0.038.
RANK = 32
#: Captions that are encoded at once.
BATCH = 64


@dataclass(frozen=True)
class FittedWords:
    """A map of words, and the shares ``residual`` of |y - x|^2 and ``moved`` of |z|^2 that a map of every other caption
    leaves on the rest of them; None with fewer than two of each."""

    words: Words
    residual: float | None
    moved: float | None


@torch.no_grad()
def fit_words(
    adapter: Adapter,
    captions: Sequence[str],
    replaced: Sequence[str],
    others: Sequence[str],
    *,
    preserve: float = PRESERVE,
    rank: int = RANK,
) -> FittedWords:
    """Fits the map from ``captions``, which hold the unwanted word, to ``replaced``, the same with another word in its
    place, that leaves ``others`` as they are.

    Tokens before and after the word map one to one; where the two words have not equally many, each of the unwanted
    one's maps to the mean of the other's (:func:`aligned`).

    Raises:
        TideError: there are no pairs or no other captions, or the transformer reads no text states.
    """
    if not captions or len(captions) != len(replaced) or not others:
        raise TideError(
            f"{len(captions)} captions with the word, {len(replaced)} with it replaced and {len(others)} others; give "
            "as many of the first two, and some of each"
        )
    pairs = _pairs(adapter, captions, replaced)
    rest = [states[mask] for states, mask in _encoded(adapter, others)]
    words = low_rank(closed_form(*_rows(pairs), torch.cat(rest), preserve=preserve), rank)
    if min(len(pairs), len(rest)) < 2:
        return FittedWords(words, None, None)
    half = low_rank(closed_form(*_rows(pairs[::2]), torch.cat(rest[::2]), preserve=preserve), rank)
    (x, y), z = _rows(pairs[1::2]), torch.cat(rest[1::2])
    left = (half(x) - y).square().sum() / (y - x).square().sum().clamp(min=1e-12)
    return FittedWords(words, float(left), float((half(z) - z).square().sum() / z.square().sum()))


def closed_form(x: Tensor, y: Tensor, z: Tensor, *, preserve: float = PRESERVE, epsilon: float = EPSILON) -> Tensor:
    """M ``[d, d]`` float64 of rows ``x``, ``y [n, d]`` and ``z [m, d]``."""
    x, y, z = x.double(), y.double(), z.double()
    eye = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    gram = x.T @ x / len(x) + preserve * z.T @ z / len(z) + epsilon * x.square().mean() * eye
    return torch.linalg.solve(gram, x.T @ (y - x) / len(x)).T  # gram is symmetric


def low_rank(matrix: Tensor, rank: int) -> Words:
    """``c -> c + matrix c`` at rank ``rank`` or less: the largest singular values."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    return Words((v[:kept].T * root).float().contiguous(), (u[:, :kept] * root).T.float().contiguous())


def _rows(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Those of all pairs, with the word and without."""
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def _encoded(adapter: Adapter, captions: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """For each caption its states ``[L, d]`` float32, and bool ``[L]``: the tokens that are no padding."""
    found = []
    for start in range(0, len(captions), BATCH):
        text = adapter.encode_prompts(list(captions[start : start + BATCH]), caption_length(adapter))
        states = text.get(STATES)
        if states is None:
            raise TideError(f"this transformer is not given {STATES}; a guard of it has no words")
        named = mask_name(text)
        mask = None if named is None else text[named]
        real = torch.ones(states.shape[:2], dtype=torch.bool) if mask is None else mask.bool().cpu()
        found += list(zip(states.float().cpu(), real, strict=True))
    return found


def _pairs(adapter: Adapter, captions: Sequence[str], replaced: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """Rows with the word and without, of each pair of captions."""
    first, second = _encoded(adapter, captions), _encoded(adapter, replaced)
    return [aligned(a[mask_a], b[mask_b]) for (a, mask_a), (b, mask_b) in zip(first, second, strict=True)]


def aligned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of two texts of states ``[n, d]`` and ``[m, d]`` that differ in one word, ``n`` of each: one to one where
    the texts are equally long; else the words stand where one token is left out of the shorter text and more than one
    of the longer, and all of them in ``a`` map to the mean of those in ``b``.

    States all depend on the word, so equal ones do not tell where it stands: of all places it is the one around which
    the two texts agree best.
    """
    if len(a) == len(b):
        return a, b
    shared = min(len(a), len(b)) - 1
    agree = [
        float(_difference(a[:i], b[:i]) + _difference(_last(a, shared - i), _last(b, shared - i)))
        for i in range(shared + 1)
    ]
    head = min(range(shared + 1), key=lambda i: agree[i])
    tail = shared - head
    mean = b[head : len(b) - tail].mean(0, keepdim=True)
    return a, torch.cat([b[:head], mean.expand(len(a) - shared, -1), _last(b, tail)])


def _difference(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum()


def _last(rows: Tensor, n: int) -> Tensor:
    return rows[len(rows) - n :]
