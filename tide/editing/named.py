"""What an edit says of itself in words: the latents that it names, and why it may leave latents as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from tide.editing.beside import Beside
from tide.editing.contrast import Contrast, Keep
from tide.editing.edits import (
    Add,
    Compose,
    Erase,
    Inject,
    Invert,
    PerImage,
    Replace,
    Scale,
    ScaleTarget,
    Swap,
    Target,
    strongest,
)
from tide.editing.nearest import SteerNearest
from tide.editing.steer import Steer, SteerTowards
from tide.editing.strength import Strength

#: Latents that a sentence lists.
LISTED = 5


@singledispatch
def named(change: Any) -> frozenset[int]:
    """The latents that ``change`` names by number and cannot change where they are inactive; none for an edit that acts
    on whatever is active."""
    return frozenset()


@named.register
def _(change: Scale | Erase | Invert) -> frozenset[int]:
    return frozenset(change.features or ())


@named.register
def _(change: Add) -> frozenset[int]:
    return frozenset(change.features if change.amount <= 0 else ())


@named.register
def _(change: Compose) -> frozenset[int]:
    found: frozenset[int] = frozenset()
    on: frozenset[int] = frozenset()
    for each in change.edits:
        found |= named(each) - on
        on |= turned_on(each)
    return found


@named.register
def _(change: PerImage) -> frozenset[int]:
    return frozenset().union(*map(named, change.edits))


@named.register
def _(change: Strength) -> frozenset[int]:
    return named(change.edit)


@singledispatch
def turned_on(change: Any) -> frozenset[int]:
    """The latents that ``change`` makes active where they are inactive, by number."""
    return frozenset()


@turned_on.register
def _(change: Add) -> frozenset[int]:
    return frozenset(change.features if change.amount > 0 else ())


@turned_on.register
def _(change: Compose) -> frozenset[int]:
    return frozenset().union(*map(turned_on, change.edits))


@singledispatch
def aimed_at(change: Any) -> frozenset[int]:
    """The latents that the targets of ``change`` point at, where it acts on those that the image has of them."""
    return frozenset()


@aimed_at.register
def _(change: ScaleTarget) -> frozenset[int]:
    return _held(change.target, lambda values: strongest(values, change.top_k))


@aimed_at.register
def _(change: Swap) -> frozenset[int]:
    return _held(change.source, torch.Tensor.bool) | _held(change.target, torch.Tensor.bool)


@aimed_at.register
def _(change: Compose | PerImage) -> frozenset[int]:
    return frozenset().union(*map(aimed_at, change.edits))


@aimed_at.register
def _(change: Strength) -> frozenset[int]:
    return aimed_at(change.edit)


def _held(target: Target, chosen: Callable[[Tensor], Tensor]) -> frozenset[int]:
    """The latents that are ``chosen`` at any timestep and place; a timestep at a time, since a map is large."""
    held = [chosen(values.view(-1, target.n_latents)).any(0) for values in target.values]
    return frozenset(torch.stack(held).any(0).nonzero().flatten().tolist())


@singledispatch
def why_idle(change: Any, fired: Tensor) -> str | None:
    """Why ``change`` left all latents as they were, or None where nothing tells.

    ``fired [n_latents]``: on how many of the edited tokens each latent was active.
    """
    return None


def _by_factor(factor: float, idle: float, otherwise: str | None) -> str | None:
    return f"a factor of {idle:g} changes nothing" if factor == idle else otherwise


def _inactive(features: Iterable[int], fired: Tensor) -> str | None:
    features = sorted(features)
    if not features:
        return "it names no latent"
    return None if fired[features].any() else f"{in_words(features)} inactive on all edited tokens"


@why_idle.register
def _(change: Scale, fired: Tensor) -> str | None:
    return _by_factor(change.factor, 1, _inactive(named(change), fired))


@why_idle.register
def _(change: Add, fired: Tensor) -> str | None:
    if change.amount == 0:
        return "an amount of 0 changes nothing"
    return _inactive(change.features, fired) if change.amount < 0 or not change.features else None


@why_idle.register
def _(change: Erase | Invert, fired: Tensor) -> str | None:
    if change.features is not None:
        return _inactive(change.features, fired)
    return None if fired.any() else "no latent was active on the edited tokens"


@why_idle.register
def _(change: Inject, fired: Tensor) -> str | None:
    return _by_factor(change.factor, 0, None if change.target.values.any() else "the target has no active latent")


@why_idle.register
def _(change: Replace, fired: Tensor) -> str | None:
    return _by_factor(change.factor, 0, "the target's latents are the image's own")


@why_idle.register
def _(change: ScaleTarget, fired: Tensor) -> str | None:
    some = fired[sorted(aimed_at(change))].any()
    return _by_factor(change.factor, 1, None if some else "the target's strongest latents were inactive")


@why_idle.register
def _(change: Swap, fired: Tensor) -> str | None:
    return _by_factor(change.factor, 0, "no token holds the source's latents or the target's")


@why_idle.register
def _(change: Contrast, fired: Tensor) -> str | None:
    if torch.equal(change.present.values, change.absent.values):
        return "the two targets are the same"
    return _by_factor(change.factor, 0, "all latents have the target's level already")


@why_idle.register
def _(change: Keep, fired: Tensor) -> str | None:
    return f"no token has more than {change.top_k} active latents"


@why_idle.register
def _(change: Steer, fired: Tensor) -> str | None:
    return _by_factor(change.factor, 0, None if change.direction.any() else "the direction is zero")


@why_idle.register
def _(change: SteerTowards, fired: Tensor) -> str | None:
    return _by_factor(change.factor, 0, "the recorded activations are the image's own")


@why_idle.register
def _(change: SteerNearest, fired: Tensor) -> str | None:
    return _by_factor(change.factor, 0, None if change.values.any() else "the recorded differences are zero")


@why_idle.register
def _(change: Beside, fired: Tensor) -> str | None:
    return _by_factor(change.factor, 0, "the target's activations are the image's own")


@why_idle.register
def _(change: Compose | PerImage, fired: Tensor) -> str | None:
    reasons = [why_idle(each, fired) for each in change.edits]
    return None if None in reasons else "; ".join(dict.fromkeys(reason for reason in reasons if reason))


@why_idle.register
def _(change: Strength, fired: Tensor) -> str | None:
    return "strength 0 is no edit" if change.strength == 0 else why_idle(change.edit, fired)


def in_words(features: Iterable[int]) -> str:
    """``latent 3 was``, ``latents 3, 5 and 9 more were``."""
    features = sorted(features)
    listed = ", ".join(map(str, features[:LISTED]))
    more = f" and {len(features) - LISTED} more" if len(features) > LISTED else ""
    return f"latent {listed} was" if len(features) == 1 else f"latents {listed}{more} were"
