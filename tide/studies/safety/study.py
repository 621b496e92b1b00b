"""``tide reproduce safety``: every class and every style of the scenes as the unwanted concept.

For each concept the value that stands in for it is chosen on development prompts, by what the replaced prompt removes
and keeps; a guard and its rivals are fitted on training scenes. On test prompts each is measured against the unguarded
image of the same prompt and noise, on requests that ask for the concept and on allowed ones, then under attack.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from tide.errors import TideError
from tide.fingerprint import fingerprint
from tide.scenes.judge import Judge, Verdict, load_judge
from tide.scenes.scene import ATTRIBUTES
from tide.studies.grid import Cell, Result, run_cells
from tide.studies.models import Models
from tide.studies.options import Options
from tide.studies.parallel import Outcome, Workers
from tide.studies.safety.attacks import ATTACKS
from tide.studies.safety.drawing import draw_requests
from tide.studies.safety.gallery import draw_gallery
from tide.studies.safety.gradient_attack import GradientAttack, attacked_text
from tide.studies.safety.measures import Pairs, kept_across, removed_share
from tide.studies.safety.names import ATTACKED, GRADIENT, PROTECTIONS, cell_name, rows_of
from tide.studies.safety.prompts import KINDS, OTHER_NOISE, Request, Unwanted, allowed, asking
from tide.studies.safety.protections import Protections
from tide.studies.safety.report import write_report
from tide.studies.safety.rivals import UNGUARDED, filtered

#: Seconds of an image on one core, for estimates.
IMAGE_SECONDS = 0.25


@dataclass(frozen=True)
class Sizes:
    """Prompts of each kind for every concept: to choose the neutral value, to measure, under each attack in words, and
    under the attack by gradient, which takes ``iterations``."""

    dev: int = 24
    test: int = 48
    attacked: int = 16
    gradient: int = 16
    iterations: int = 40
    #: Scenes that a guard's detector is fitted on; half as many more are held out.
    scenes: int = 512
    #: Scenes that raw steering comes from.
    steered: int = 96
    seeds: int = 1


DEFAULT = Sizes()
FAST = Sizes(dev=2, test=2, attacked=1, gradient=1, iterations=1, scenes=96, steered=4)


def reproduce(options: Options) -> str:
    """Runs the study into ``options.out`` and returns what was found."""
    deadline = float("inf") if options.minutes is None else time.time() + 60 * options.minutes
    study = Study(options)
    chosen = run_cells(study.choices(), options.out, options.say)
    concepts = study.concepts(chosen)
    made: dict[str, Result] = {}
    for seed in study.seeds:
        study.models.of(seed)
        made |= run_cells(study.guards(seed, concepts), options.out, options.say)
    workers = Workers(options.workers, deadline, options.say)
    outcome = workers.run(partial(cells_of, options.for_workers(), concepts), options.out)
    if not outcome.results:
        raise TideError(f"no cell was finished; give more --minutes, and see {options.out / 'failed'} for what failed")
    return study.report(concepts, chosen | made, outcome)


def cells_of(options: Options, concepts: Sequence[Unwanted]) -> list[Cell]:
    """The cells of all measurements; a worker process makes them again."""
    return Study(options).cells(concepts)


def everything() -> list[Unwanted]:
    """Every class and every style."""
    return [Unwanted(kind, value) for kind in KINDS for value in ATTRIBUTES[kind]]


@dataclass
class Study:
    """The cells, and what the cells of one process share."""

    options: Options

    @cached_property
    def sizes(self) -> Sizes:
        return FAST if self.options.fast else DEFAULT

    @cached_property
    def seeds(self) -> list[int]:
        return self.options.each_seed(self.sizes.seeds)

    @cached_property
    def models(self) -> Models:
        return Models.of_study(self.options)

    @cached_property
    def judge(self) -> Judge:
        return load_judge()

    @cached_property
    def config(self) -> dict[str, Any]:
        return {"sizes": asdict(self.sizes), "data": self.models.bench.config(), "judge": fingerprint([self.judge])}

    @cached_property
    def protections(self) -> Protections:
        sizes = self.sizes
        return Protections(
            self.models, self.options.out / "guards", sizes.scenes, sizes.steered, max(1, sizes.dev // 2)
        )

    # -- choices ------------------------------------------------------------------------------------------

    def choices(self) -> list[Cell]:
        n = 5 * self.sizes.dev
        return [
            Cell(f"{c.value} neutral", self.config, partial(self._replaced, c), lambda: n * IMAGE_SECONDS)
            for c in everything()
        ]

    def _replaced(self, concept: Unwanted) -> Result:
        """For every other value: what the prompt with it in the concept's place removes and keeps."""
        requests = asking(concept, "dev", self.sizes.dev, self.options.seed)
        before = self._read(requests)
        rows: Result = {}
        for put in concept.others:
            own = replace(concept, put=put)
            pairs = Pairs(before, self.judge.read(draw_requests(self.adapter, requests, filtered(own))))
            rows[put] = {"ua": removed_share(own, pairs).value, "cra": kept_across(own, pairs).value}
        return rows

    def concepts(self, chosen: dict[str, Result]) -> list[Unwanted]:
        """With the value that stands in: that of the highest sum of both figures, of equal ones the first."""
        found = []
        for concept in everything():
            rows = chosen[f"{concept.value} neutral"]
            # Where no unguarded image shows the concept there is no UA: what is kept decides.
            sums = {put: sum(v for v in row.values() if math.isfinite(v)) for put, row in rows.items()}
            found.append(replace(concept, put=max(sums, key=lambda put: sums[put])))
        return found

    def guards(self, seed: int, concepts: Sequence[Unwanted]) -> list[Cell]:
        """A guard of every concept, kept in ``out/guards``, with how it was validated; before them, how well latents
        tell the concepts beside what needs no trained dictionary."""
        told = Cell(
            f"seed {seed} detection",
            {**self.config, **self.models.described(seed)},
            partial(self.protections.detection, seed, [c.value for c in concepts]),
            lambda: 120.0,
        )
        return [
            told,
            *self._guards(seed, concepts),
        ]

    def _guards(self, seed: int, concepts: Sequence[Unwanted]) -> list[Cell]:
        return [
            Cell(
                f"seed {seed} guard {c.value}",
                {**self.config, **self.models.described(seed), "put": c.neutral},
                partial(self.protections.make_guard, seed, c),
                lambda: 60.0,
            )
            for c in concepts
        ]

    # -- measurements -------------------------------------------------------------------------------------

    @property
    def adapter(self) -> Any:
        return self.models.bench.adapter

    def cells(self, concepts: Sequence[Unwanted]) -> list[Cell]:
        """Of the guard for every seed, of all others once; the plain measurements first."""
        cells = []
        for name in PROTECTIONS:
            cells += [self._cell(name, c, "plain", self._drawn) for c in concepts]
        for name in ATTACKED:
            for kind in GRADIENT if name != UNGUARDED.name else GRADIENT[:1]:
                cells += [self._cell(name, c, kind, self._by_gradient) for c in concepts]
        for name in ATTACKED:
            for attack in ATTACKS:
                cells += [self._cell(name, c, attack, self._attacked) for c in concepts]
        return [cell for each in cells for cell in each]

    def _cell(self, name: str, concept: Unwanted, what: str, run: Any) -> list[Cell]:
        seeds = self.seeds if name == "guard" else self.seeds[:1]
        return [
            Cell(
                cell_name(seed, concept, name, what),
                {**self.config, **(self.models.described(seed) if name == "guard" else {}), "put": concept.neutral},
                partial(run, seed, concept, name, what),
                lambda: 2 * self.sizes.test * IMAGE_SECONDS,
            )
            for seed in seeds
        ]

    def _drawn(self, seed: int, concept: Unwanted, name: str, what: str) -> Result:
        """Verdicts on both kinds of requests, and the judge's embeddings of the allowed ones."""
        n = self.sizes.test
        rival = self.protections.rival(name, seed, concept)
        ask, allow = (kind(concept, "test", n, self.options.seed) for kind in (asking, allowed))
        found: Result = {"asking": rows_of(self._read(ask, rival))}
        images = draw_requests(self.adapter, allow, rival)
        found |= {"allowed": rows_of(self.judge.read(images)), "embedded": _rounded(self.judge.embed_images(images))}
        if name == UNGUARDED.name:
            again = draw_requests(self.adapter, [replace(each, seed=each.seed + OTHER_NOISE) for each in allow])
            found["embedded_again"] = _rounded(self.judge.embed_images(again))
        return found

    def _attacked(self, seed: int, concept: Unwanted, name: str, what: str) -> Result:
        requests = ATTACKS[what].requests(concept, "test", self.sizes.attacked, self.options.seed)
        return {"asking": rows_of(self._read(requests, self.protections.rival(name, seed, concept)))}

    def _by_gradient(self, seed: int, concept: Unwanted, name: str, what: str) -> Result:
        """Embeddings found on the unguarded pipeline, or through the protection itself as if it always acted."""
        requests = asking(concept, "test", self.sizes.gradient, self.options.seed)
        through = UNGUARDED
        if what == "gradient adaptive":
            through = self.protections.always(name, seed, concept)
        attack = GradientAttack(n_iterations=self.sizes.iterations, seed=self.options.seed)
        with torch.enable_grad():
            text = attacked_text(self.adapter, requests, through, attack)
        drawn = draw_requests(self.adapter, requests, self.protections.rival(name, seed, concept), text=text)
        return {"asking": rows_of(self.judge.read(drawn))}

    def _read(self, requests: Sequence[Request], rival: Any = UNGUARDED) -> list[Verdict]:
        return self.judge.read(draw_requests(self.adapter, requests, rival))

    def report(self, concepts: Sequence[Unwanted], chosen: dict[str, Result], outcome: Outcome) -> str:
        described = {
            "data": self.models.bench.config(),
            "training": self.models.config.to_dict(),
            "seeds": self.seeds,
            "sizes": asdict(self.sizes),
            "missing": outcome.missing,
        }
        draw_gallery(self.options, self.protections, concepts, self.seeds[0])
        return write_report(self.options, self.seeds, concepts, chosen, outcome.results, described)


def _rounded(embedded: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in embedded.tolist()]
