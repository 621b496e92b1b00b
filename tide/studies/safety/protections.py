"""The protections that the study compares: guards made of latents, kept in folders, and their rivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tide.guards import Guard, guard, load_guard, save_guard
from tide.guards.making import Examples
from tide.scenes.judge import load_judge
from tide.studies.models import Models
from tide.studies.safety.attention_edit import attention_edit, erased_attention
from tide.studies.safety.detection import detection
from tide.studies.safety.drawing import draw_requests
from tide.studies.safety.measures import Pairs, measure
from tide.studies.safety.names import EDITED, FILTER, GUARD, NEGATIVE, STEERED
from tide.studies.safety.prompts import Unwanted, allowed, asking
from tide.studies.safety.rivals import UNGUARDED, Rival, filtered, negative
from tide.studies.safety.steering import away_from, steered
from tide.studies.scene_guard import scene_examples, scene_guard

#: Strengths of raw steering, one of which is chosen on development prompts.
STRENGTHS = (1.0, 2.0, 4.0)


@dataclass
class Protections:
    """Makes each protection once; guards are kept in ``folder``.

    ``n_scenes`` are those that a guard's detector is fitted on; the direction of raw steering comes from ``n_steered``,
    and its strength from ``n_dev`` development prompts of each kind.
    """

    models: Models
    folder: Path
    n_scenes: int
    n_steered: int
    n_dev: int
    _guards: dict[tuple[int, str], Guard] = field(default_factory=dict)
    _examples: dict[int, Examples] = field(default_factory=dict)
    _others: dict[tuple[str, str], Rival] = field(default_factory=dict)

    def rival(self, name: str, seed: int, concept: Unwanted) -> Rival:
        """The protection ``name`` of ``concept``; ``seed`` is that of a guard's model."""
        if name == GUARD:
            own = self.guard(seed, concept)
            return Rival(GUARD, context=lambda pipe: guard(pipe, own))
        key = (name, concept.value)
        if key not in self._others:
            self._others[key] = self._made(name, concept)
        return self._others[key]

    def always(self, name: str, seed: int, concept: Unwanted) -> Rival:
        """What an attack by gradient sees: of a guard its map of words as if every image were flagged, of others
        themselves."""
        if name != GUARD:
            return self.rival(name, seed, concept)
        words = self.guard(seed, concept).words
        assert words is not None
        return Rival(GUARD, context=words.always)

    def guard(self, seed: int, concept: Unwanted) -> Guard:
        key = (seed, concept.value)
        if key not in self._guards:
            self._guards[key] = load_guard(self._path(seed, concept))
        return self._guards[key]

    def detection(self, seed: int, concepts: Sequence[str]) -> dict[str, Any]:
        """How well latents of the model of ``seed`` tell each concept, and what needs no trained dictionary."""
        model, examples = self.models.of(seed), self._examples_of(seed)
        return detection(model, examples.fit, examples.held_out, concepts)

    def make_guard(self, seed: int, concept: Unwanted) -> dict[str, Any]:
        """Makes and saves the guard of ``concept`` with the model of ``seed``; how it was validated."""
        model, adapter = self.models.of(seed), self.models.bench.adapter
        made = scene_guard(adapter, model, concept.value, concept.neutral, examples=self._examples_of(seed))
        save_guard(self._path(seed, concept), made)
        return dict(made.validated)

    def _examples_of(self, seed: int) -> Examples:
        """Of the last seed that was asked for: they are large."""
        if seed not in self._examples:
            self._examples.clear()
            adapter, model = self.models.bench.adapter, self.models.of(seed)
            self._examples[seed] = scene_examples(adapter, model, n_images=self.n_scenes, seed=seed)
        return self._examples[seed]

    def _path(self, seed: int, concept: Unwanted) -> Path:
        return self.folder / f"seed-{seed}" / concept.value

    def _made(self, name: str, concept: Unwanted) -> Rival:
        if name == FILTER:
            return filtered(concept)
        if name == NEGATIVE:
            return negative(concept)
        if name == EDITED:
            return erased_attention(EDITED, attention_edit(self.models.bench.adapter, concept))
        if name == STEERED:
            return self._steered(concept)
        return UNGUARDED

    def _steered(self, concept: Unwanted) -> Rival:
        """At the strength with the highest sum of UA, IRA and CRA on development prompts."""
        adapter, block = self.models.bench.adapter, self.models.bench.block
        judge, direction = load_judge(), away_from(adapter, concept, block, n_images=self.n_steered)
        kinds = [kind(concept, "dev", self.n_dev, 1) for kind in (asking, allowed)]
        before = [judge.read(draw_requests(adapter, requests)) for requests in kinds]

        def merit(factor: float) -> float:
            rival = steered(direction, factor, block)
            after = [judge.read(draw_requests(adapter, requests, rival)) for requests in kinds]
            found = measure(concept, *(Pairs(old, new) for old, new in zip(before, after, strict=True)))
            return sum(share.value for share in (found.ua, found.ira, found.cra) if share.n)

        return steered(direction, max(STRENGTHS, key=merit), block)
