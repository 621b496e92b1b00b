"""Edits of sparse latents as small composable objects (section 6 and C.1).

An edit maps the latents ``z [N, n_latents]`` of tokens to new ones. A :class:`Place` tells it which tokens they are and
at what timestep. It never sees activations: :func:`tide.editing.context.edit` turns the change of latents into a change
of activations, ``x + decode(z') - decode(z)``, so an edit that changes nothing returns the activation bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tide.errors import TideError
from tide.sae.position import Position


@dataclass(frozen=True)
class Place(Position):
    """Where rows of latents come from: their position in the diffusion, at a single timestep, and in the images.

    Images are numbered within the batch that the pipeline draws, whatever rows guidance adds.

    Attributes:
        timestep: of the model's own call.
        token: each row's place in the token grid, ``[N]``.
        image: each row's image, ``[N]``.
        n_tokens: of one image, where known.
    """

    timestep: float
    _: KW_ONLY
    token: Tensor
    image: Tensor
    n_tokens: int | None = None

    def take(self, rows: Tensor) -> Place:
        """The place of ``rows``, indices or bool."""
        group = None if self.group is None else self.group[rows]
        return replace(self, group=group, token=self.token[rows], image=self.image[rows])


@dataclass(frozen=True)
class Target:
    """Latents to edit towards, by timestep: ``values [timesteps, n_latents]``, or with a map over the image,
    ``[timesteps, tokens, n_latents]``. The recorded timestep nearest to the call's is used, of two equally near ones
    the first."""

    timesteps: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim not in (2, 3) or self.values.shape[:1] != self.timesteps.shape or not len(self.values):
            raise TideError(
                f"target values {list(self.values.shape)} must be [timesteps, n_latents] or "
                f"[timesteps, tokens, n_latents], with timesteps [timesteps] and not {list(self.timesteps.shape)}"
            )

    @property
    def n_latents(self) -> int:
        """How many latents the target holds."""
        return self.values.shape[-1]

    def at(self, place: Place) -> Tensor:
        """``[1, n_latents]`` or, for a map, ``[N, n_latents]``."""
        nearest = self.values[int((self.timesteps - place.timestep).abs().argmin())]
        if nearest.ndim == 1:
            return nearest[None]
        check_map(len(nearest), place, "the target")
        return nearest[place.token.to(nearest.device)]

    def pooled(self) -> Target:
        """The same at every place: a map averaged over its tokens."""
        return self if self.values.ndim == 2 else Target(self.timesteps, self.values.float().mean(1))

    def only(self, features: Sequence[int]) -> Target:
        """These latents as they are and all others 0, for :class:`Inject`. Raises :class:`~tide.errors.TideError` for
        one that there is not."""
        _check_features(features, self.n_latents)
        chosen, kept = list(features), torch.zeros_like(self.values)
        kept[..., chosen] = self.values[..., chosen]
        return Target(self.timesteps, kept)


def most_different_tokens(first: Target, second: Target, n: int) -> Tensor:
    """bool ``[tokens]``: the ``n`` tokens at which two maps of latents are furthest apart, over all timesteps (of
    equally far ones the first). Edits of more and more of them are edits of growing strength (section 6).

    ``first`` and ``second`` are maps over the image (:func:`prompt_target`).

    Raises :class:`~tide.errors.TideError` unless both are maps of one size at the same timesteps, of ``n`` tokens or
    more.
    """
    apart = _apart(first, second)
    if not 1 <= n <= len(apart):
        raise TideError(f"{n} tokens asked for; the image has 1..{len(apart)}")
    chosen = torch.zeros(len(apart), dtype=torch.bool)
    chosen[apart.argsort(descending=True, stable=True)[:n]] = True
    return chosen


def differing_tokens(first: Target, second: Target, share: float) -> Tensor:
    """bool ``[tokens]``: those at which two maps of latents are at least ``share`` (0 to 1) as far apart as where they
    are furthest, in Euclidean distance over all timesteps. Maps that are alike differ nowhere.

    ``first`` and ``second`` are maps over the image (:func:`prompt_target`).

    Raises :class:`~tide.errors.TideError` unless both are maps of one size at the same timesteps, and for another
    share.
    """
    if not 0 <= share <= 1:
        raise TideError(f"share = {share} must lie between 0 and 1")
    apart = _apart(first, second).sqrt()
    return (apart >= share * apart.max()) & (apart.max() > 0)


def _apart(first: Target, second: Target) -> Tensor:
    """``[tokens]``: squared distances of two maps of latents."""
    if first.values.ndim != 3 or first.values.shape != second.values.shape:
        raise TideError(
            f"targets of {list(first.values.shape)} and {list(second.values.shape)} do not differ token by token; give "
            "two maps [timesteps, tokens, n_latents] of one image"
        )
    apart = torch.zeros(first.values.shape[1])
    for a, b in zip(first.values, second.values, strict=True):  # a step at a time: a map in float32 is large
        apart += (a.float() - b.float()).square().sum(1).cpu()
    return apart


def check_map(n_tokens: int, place: Place, what: str) -> None:
    """Raises unless a map over ``n_tokens`` tokens fits the images at ``place``."""
    found = place.n_tokens
    if (found is not None and found != n_tokens) or (len(place.token) and int(place.token.max()) >= n_tokens):
        raise TideError(
            f"{what} has {n_tokens} tokens and the image {'more' if found is None else found}; "
            "make it at the same resolution"
        )


class Edit(ABC):
    """A change of latents. Edits compose with ``+``: ``Erase([3]) + Scale([7], 2.0)`` applies left to right."""

    @abstractmethod
    def latents(self, z: Tensor, place: Place) -> Tensor:
        """New latents of ``z [N, n_latents]``; ``z`` itself must not be written to."""

    def check(self, n_latents: int) -> None:  # noqa: B027 - an edit that names no latents fits any SAE
        """Raises :class:`~tide.errors.TideError` if the edit does not fit an SAE of ``n_latents``."""

    def __add__(self, other: Edit) -> Edit:
        return Compose((self, other)) if isinstance(other, Edit) else NotImplemented


@dataclass(frozen=True)
class _Several(Edit):
    edits: tuple[Edit, ...]

    def check(self, n_latents: int) -> None:
        for edit in self.edits:
            edit.check(n_latents)


@dataclass(frozen=True)
class Compose(_Several):
    """Edits applied one after the other.

    ``edits`` are applied from left to right.
    """

    def latents(self, z: Tensor, place: Place) -> Tensor:
        for edit in self.edits:
            z = edit.latents(z, place)
        return z


@dataclass(frozen=True)
class PerImage(_Several):
    """Edit i for image i of the batch; a batch with more images than edits is an error."""

    def latents(self, z: Tensor, place: Place) -> Tensor:
        out = z.clone()
        for image in place.image.unique().tolist():
            if image >= len(self.edits):
                raise TideError(f"the batch has more images than the {len(self.edits)} edits given; give one an image")
            rows = (place.image == image).nonzero().flatten()
            out[rows] = self.edits[image].latents(z[rows], place.take(rows))
        return out


def _check_features(features: Sequence[int], n_latents: int) -> None:
    if outside := [f for f in features if not 0 <= f < n_latents]:
        raise TideError(f"feature {outside[0]} does not exist; this SAE has latents 0..{n_latents - 1}")


def check_target(target: Target, n_latents: int) -> None:
    if target.n_latents != n_latents:
        raise TideError(f"the target has {target.n_latents} latents and the SAE {n_latents}; record it with this SAE")


def check_top_k(top_k: int) -> None:
    if top_k < 1:
        raise TideError(f"top_k = {top_k} must be at least 1")


def strongest(z: Tensor, k: int) -> Tensor:
    """bool like ``z [..., n_latents]``: the ``k`` largest of each row, positive ones only."""
    places = z.topk(min(k, z.shape[-1]), dim=-1).indices
    return torch.zeros_like(z, dtype=torch.bool).scatter_(-1, places, True) & (z > 0)


@dataclass(frozen=True)
class Scale(Edit):
    """``z_f <- factor * z_f`` for the given features; an inactive one stays 0."""

    features: Sequence[int]
    factor: float

    def latents(self, z: Tensor, place: Place) -> Tensor:
        out = z.clone()
        out[:, list(self.features)] *= self.factor
        return out

    def check(self, n_latents: int) -> None:
        _check_features(self.features, n_latents)


@dataclass(frozen=True)
class Add(Edit):
    """``z_f <- max(z_f + amount, 0)`` for the given features on every edited token, also where they were inactive and
    no factor would change them. The amount is in the units of the latents."""

    features: Sequence[int]
    amount: float

    def latents(self, z: Tensor, place: Place) -> Tensor:
        out = z.clone()
        chosen = list(self.features)
        out[:, chosen] = (z[:, chosen] + self.amount).clamp(min=0.0)
        return out

    def check(self, n_latents: int) -> None:
        _check_features(self.features, n_latents)


@dataclass(frozen=True)
class _TopOrGiven(Edit):
    features: Sequence[int] | None = None
    top_k: int | None = None

    def __post_init__(self) -> None:
        if (self.features is None) == (self.top_k is None):
            raise TideError(f"{type(self).__name__} takes either features=[...] or top_k=...")
        if self.top_k is not None:
            check_top_k(self.top_k)

    def _where(self, z: Tensor) -> Tensor:
        """bool ``[N, n_latents]``: the given features, or each token's ``top_k`` strongest active ones."""
        if self.features is not None:
            chosen = torch.zeros_like(z, dtype=torch.bool)
            chosen[:, list(self.features)] = True
            return chosen
        assert self.top_k is not None
        return strongest(z, self.top_k)

    def check(self, n_latents: int) -> None:
        if self.features is not None:
            _check_features(self.features, n_latents)


@dataclass(frozen=True)
class Erase(_TopOrGiven):
    """Sets the given features, or each token's ``top_k`` strongest, to zero."""

    def latents(self, z: Tensor, place: Place) -> Tensor:
        return z.masked_fill(self._where(z), 0.0)


@dataclass(frozen=True)
class Invert(_TopOrGiven):
    """Flips the sign of the given features, or of each token's ``top_k`` strongest."""

    def latents(self, z: Tensor, place: Place) -> Tensor:
        return torch.where(self._where(z), -z, z)


@dataclass(frozen=True)
class _Towards(Edit):
    target: Target

    def check(self, n_latents: int) -> None:
        check_target(self.target, n_latents)


@dataclass(frozen=True)
class Inject(_Towards):
    """``z <- z + factor * target``: adds a concept's pooled latents."""

    factor: float = 1.0

    def latents(self, z: Tensor, place: Place) -> Tensor:
        return z + self.factor * self.target.at(place).to(z)


@dataclass(frozen=True)
class Replace(_Towards):
    """``z <- (1 - factor) z + factor * target``: global replacement by the target's latents at ``factor = 1``."""

    factor: float = 1.0

    def latents(self, z: Tensor, place: Place) -> Tensor:
        return torch.lerp(z, self.target.at(place).to(z).expand_as(z), self.factor)


@dataclass(frozen=True)
class ScaleTarget(_Towards):
    """Scales, inside the original, the indices of the target's ``top_k`` latents (C.1, second strategy).

    ``factor`` multiplies them.
    """

    top_k: int
    factor: float

    def __post_init__(self) -> None:
        check_top_k(self.top_k)

    def latents(self, z: Tensor, place: Place) -> Tensor:
        return torch.where(strongest(self.target.at(place), self.top_k).to(z.device), z * self.factor, z)


@dataclass(frozen=True)
class Swap(Edit):
    """Exchanges a source concept's latents for a target's, to the degree that each token holds either::

        g  = clamp(max(<z, s> / <s, s>, <z, t> / <t, t>), 0, 1)
        z' = max(z - factor * g * s, 0) + factor * g * t

    with s and t the (non-negative) latents of source and target at this timestep. A token that holds neither has
    g = 0 and is left alone, so the edit finds its own place in the image; counting the target keeps it there once the
    source is gone.
    """

    source: Target
    target: Target
    factor: float = 1.0

    def latents(self, z: Tensor, place: Place) -> Tensor:
        s, t = self.source.at(place).to(z), self.target.at(place).to(z)
        gate = torch.maximum(_share(z, s), _share(z, t)).clamp(0.0, 1.0)
        swapped = (z - self.factor * gate * s).clamp(min=0.0) + self.factor * gate * t
        return torch.where((gate == 0) | ((s == 0) & (t == 0)), z, swapped)

    def check(self, n_latents: int) -> None:
        check_target(self.source, n_latents)
        check_target(self.target, n_latents)


def _share(z: Tensor, concept: Tensor) -> Tensor:
    """How much of a concept a token holds: <z, c> / <c, c>, ``[N, 1]``; 0 for an empty concept."""
    energy = concept.square().sum(1, keepdim=True)
    return (z * concept).sum(1, keepdim=True) / torch.where(energy == 0, 1.0, energy)


Branch = Literal["conditional", "unconditional", "both"]


def renormalise(edited: Tensor, original: Tensor) -> Tensor:
    """Eqs 9 and 19, per token over the latents: ``edited * |original| / |edited|``, and 0 where all was erased."""
    norm = edited.norm(dim=-1, keepdim=True)
    # For a row that did not change, the factor is a norm over itself: exactly 1, so its bits stay.
    return edited * (original.norm(dim=-1, keepdim=True) / torch.where(norm == 0, 1.0, norm))
