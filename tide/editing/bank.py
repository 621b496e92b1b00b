"""A bank of concepts: what latents find them, and what to put where they are found.

Where and what are chosen apart: any :meth:`Bank.where` goes with any :meth:`Bank.what`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args

from torch import Tensor

from tide.adapters import Adapter
from tide.editing.contrast import Contrast, sparse_again
from tide.editing.edits import Edit, Target
from tide.editing.nearest import SteerNearest, SteerTowardsNearest
from tide.editing.steer import RawEdit, Steer, SteerTowards
from tide.editing.target_file import sae_record
from tide.editing.where import Detector, Where
from tide.errors import TideError
from tide.provenance import check_unchanged
from tide.sae.model import TIDE

#: How a concept is put into a token.
By = Literal["nearest", "mean", "contrast", "latents"]
#: Neighbours of a token, where the bank holds as many.
NEIGHBOURS = 8
#: Names that a refusal lists.
_LISTED = 8


@dataclass(frozen=True, eq=False)
class SparseMeans:
    """Mean latents by timestep, of the strongest latents: ``indices [T, m]`` int32 and ``values [T, m]`` float32."""

    indices: Tensor
    values: Tensor

    @classmethod
    def at(cls, means: Tensor, indices: Tensor) -> SparseMeans:
        """``means [T, n_latents]`` at ``indices [T, m]``."""
        return cls(indices.int(), means.float().gather(1, indices))

    def dense(self, n_latents: int) -> Tensor:
        """``[T, n_latents]`` float32, with 0 for the others."""
        return self.values.new_zeros(len(self.values), n_latents).scatter(1, self.indices.long(), self.values)

    def lists(self, n_latents: int) -> Tensor:
        """bool ``[T, n_latents]``: the latents that it holds."""
        return self.values.new_zeros(len(self.values), n_latents).scatter(1, self.indices.long(), 1.0).bool()


@dataclass(frozen=True, eq=False)
class Concept:
    """What a bank holds of a concept, at each of the bank's timesteps.

    Attributes:
        tokens: activations of tokens that show it, ``[T, n, d_model]`` float16.
        mean: of all its tokens, ``[T, d_model]`` float32.
        present, absent: mean latents of the tokens with it, and of those without; both of the same latents.
        features, weights, thresholds: of its :class:`~tide.editing.Detector`: ``[F]``, ``[T, F]``, ``[T]``.
    """

    tokens: Tensor
    mean: Tensor
    present: SparseMeans
    absent: SparseMeans
    features: Tensor
    weights: Tensor
    thresholds: Tensor

    @property
    def unlisted(self) -> Tensor:
        """What both means of a latent that is not listed are below, ``[T, 1]``: the strongest are listed."""
        return self.present.values.maximum(self.absent.values).amin(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Difference:
    """What one word instead of another does to tokens, at each of the bank's timesteps.

    Attributes:
        keys: activations under the source's word, ``[T, n, d_model]`` float16.
        values: those under the target's word minus these, the same shape.
    """

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Bank:
    """Concepts as an SAE's block holds them (:func:`tide.interpretation.record_bank` makes one).

    Attributes:
        sae: which SAE, block and family it was recorded with (:func:`~tide.editing.target_file.sae_record`).
        timesteps: the scheduler's, ``[T]``; an edit uses the one nearest to the call's.
        concepts: by name.
        contrasts: (source, target) -> what the target's word instead of the source's changes.
    """

    sae: Mapping[str, Any]
    timesteps: Tensor
    concepts: Mapping[str, Concept]
    contrasts: Mapping[tuple[str, str], Difference]

    @property
    def block(self) -> int | str:
        """The block that it holds activations of."""
        return self.sae["block"]

    def where(self, concept: str, model: TIDE, **options: Any) -> Where:
        """The tokens that show ``concept``, found at every step; ``options`` are those of
        :class:`~tide.editing.Where`.

        Raises:
            TideError: the bank does not hold it, or was recorded with another SAE than ``model``.
        """
        return Where((self.detector(concept, model),), **options)

    def detector(self, concept: str, model: TIDE) -> Detector:
        """As :meth:`where`, the detector alone."""
        held = self._concept(concept)
        self.check_model(model)
        return Detector(model, held.features.long(), self.timesteps, held.weights, held.thresholds)

    def what(
        self,
        concept: str,
        *,
        by: By = "nearest",
        source: str | None = None,
        factor: float = 1.0,
        model: TIDE | None = None,
    ) -> RawEdit | Edit:
        """The edit that puts ``concept`` into the tokens that it is given.

        ======== =================================================== =========================================
        by       without a source                                    with a ``source``
        ======== =================================================== =========================================
        nearest  towards the most similar tokens that show it        refused
        mean     towards the mean of its tokens                      adds the difference of the two means
        contrast refused                                             adds what the words changed in similar tokens
        latents  from latents without it to those with it            from the source's latents to its own
        ======== =================================================== =========================================

        All but "latents" change raw activations and need no SAE: ``edit(pipe, None, bank.what("blue"),
        block=bank.block, tokens=bank.where("house", model))``. "latents" is a :class:`~tide.editing.Contrast`; with
        ``model``, tokens of a TopK SAE keep their k largest latents afterwards. A bank of a module's output (such as
        "attention") takes ``model=`` here and the SAE in ``edit``, which says where the activations are.

        Raises:
            TideError: the bank holds no such concept or contrast, or the source is missing or of no use.
        """
        if by != "latents" and model is None and self.sae["tensor"] != "output":
            raise TideError(
                f"the bank is of the block's {self.sae['tensor']}; give model=, and the same SAE to edit(), which then "
                "edits it there"
            )
        if by not in get_args(By):
            raise TideError(f"by = {by!r} is unknown; use {', '.join(get_args(By))}")
        if by == "contrast":
            return self._contrast(source, concept, factor)
        held = self._concept(concept)
        before = None if source is None else self._concept(source)
        if by == "latents":
            return self._latents(held, before, factor, model)
        if by == "mean" and before is None:
            return SteerTowards(self.timesteps, held.mean, factor)
        if by == "mean":
            assert before is not None
            return Steer(self.timesteps, held.mean - before.mean, factor)
        if source is not None:
            raise TideError(f"the tokens nearest to each one replace any source; leave {source!r} off, or use 'mean'")
        k = min(NEIGHBOURS, held.tokens.shape[1])
        return SteerTowardsNearest(self.timesteps, held.tokens, held.tokens, k, factor)

    def _contrast(self, source: str | None, target: str, factor: float) -> RawEdit:
        pairs = ", ".join(f"{a} to {b}" for a, b in list(self.contrasts)[:_LISTED]) or "none"
        if source is None:
            raise TideError(f"a contrast goes from one concept to another; name the source (the bank has {pairs})")
        if (found := self.contrasts.get((source, target))) is None:
            raise TideError(f"the bank has no contrast from {source!r} to {target!r}; it has {pairs}")
        return SteerNearest(self.timesteps, found.keys, found.values, min(NEIGHBOURS, found.keys.shape[1]), factor)

    def _latents(self, held: Concept, source: Concept | None, factor: float, model: TIDE | None) -> Edit:
        n = self.sae["n_latents"]
        after, before = (
            (held.present.dense(n), held.absent.dense(n)) if source is None else _means_of_both(held, source, n)
        )
        change = Contrast(Target(self.timesteps, after), Target(self.timesteps, before), factor)
        return change if model is None else sparse_again(change, model)

    def _concept(self, name: str) -> Concept:
        if name not in self.concepts:
            raise TideError(f"the bank does not hold {name!r}; {_near(name, self.concepts)}")
        return self.concepts[name]

    def check(self, adapter: Adapter) -> None:
        """Raises :class:`~tide.errors.TideError` if its activations are not of this pipeline's transformer."""
        if self.sae["family"] not in (None, adapter.family):
            raise TideError(f"the bank is of {self.sae['family']} and this is {adapter.family}; record one of its own")
        if self.sae["d_model"] != adapter.d_model:
            raise TideError(
                f"the bank has width {self.sae['d_model']} and the transformer {adapter.d_model}; record one of its own"
            )
        adapter.resolve_block(self.block)

    def check_model(self, model: TIDE) -> None:
        """Raises :class:`~tide.errors.TideError` if it was recorded with another SAE: of another family, block or size,
        or with other weights."""
        now = sae_record(model)
        before = {name: self.sae.get(name) for name in now}
        check_unchanged(before, now, "the bank was recorded with another SAE", remedy="record it with this SAE")


def _means_of_both(first: Concept, second: Concept, n_latents: int) -> tuple[Tensor, Tensor]:
    """Mean latents ``[T, n_latents]`` of the tokens that show each of two concepts.

    Of a latent that only one of them lists, the other's mean is known to lie between 0 and :attr:`Concept.unlisted`. It
    is the value in between that is nearest to the listed one, so that the difference is what is sure of it.
    """
    one, two = (each.present.dense(n_latents) for each in (first, second))
    return (
        one.where(first.present.lists(n_latents), two.minimum(first.unlisted)),
        two.where(second.present.lists(n_latents), one.minimum(second.unlisted)),
    )


def _near(name: str, known: Collection[str]) -> str:
    """What to name instead."""
    if not known:
        return "it holds none; record some"
    near = get_close_matches(name, known, 1, cutoff=0.6)
    listed = ", ".join([*near, *(each for each in sorted(known) if each not in near)][:_LISTED])
    more = ", ..." if len(known) > _LISTED else ""
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}it holds {listed}{more}"
