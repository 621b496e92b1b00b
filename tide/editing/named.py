"""What an edit says of itself in words: the latents that it names, and why it may leave latents as they are."""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tide.editing.contrast import Contrast, Keep
from tide.editing.edits import Compose, Erase, Inject, Invert, PerImage, Replace, Scale, ScaleTarget, Swap, strongest
from tide.editing.steer import Steer, SteerTowards
from tide.editing.strength import Strength

#: Latents that a sentence lists.
LISTED = 5


class Named(NamedTuple):
    """Latents that an edit names: ``given`` by number, and ``of_target``, those that a target points at."""

    given: frozenset[int] = frozenset()
    of_target: frozenset[int] = frozenset()


@singledispatch
def named(change: Any) -> Named:
    """The latents that ``change`` names; none for an edit that acts on whatever is active."""
    return Named()


@named.register
def _(change: Scale | Erase | Invert) -> Named:
    return Named(frozenset(change.features or ()))


@named.register
def _(change: ScaleTarget) -> Named:
    chosen = strongest(change.target.values.flatten(0, -2), change.top_k).any(0)
    return Named(of_target=frozenset(chosen.nonzero().flatten().tolist()))


@named.register
def _(change: Swap) -> Named:
    held = [(each.values != 0).flatten(0, -2).any(0) for each in (change.source, change.target)]
    return Named(of_target=frozenset((held[0] | held[1]).nonzero().flatten().tolist()))


@named.register
def _(change: Compose | PerImage) -> Named:
    parts = [named(each) for each in change.edits]
    return Named(*(frozenset().union(*each) for each in zip(*parts, strict=True))) if parts else Named()


@named.register
def _(change: Strength) -> Named:
    return named(change.edit)


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
    return _by_factor(change.factor, 1, _inactive(named(change).given, fired))


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
    some = fired[sorted(named(change).of_target)].any()
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
