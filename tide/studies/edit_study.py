"""The study of edits: methods on prompts of every attribute, judged, each at its best step range and strength.

Each seed has prompts of its own, and a model of its own where the models are trained for it. On development prompts the
step range and the strength of every method are chosen; on held-out prompts every strength is measured at that step
range: images changed to the target, all other attributes kept, still a scene, and the distance of the pixels outside
the region that the edit should change. Replacing the prompt is the ceiling. Erasing and inverting know no target: they
are measured on removing the ornate style, as the paper does, and style transfer on taking a style from one image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tide.errors import TideError
from tide.fingerprint import fingerprint
from tide.interpretation.profiles import ConceptProfiles
from tide.scenes.judge import Judge, load_judge
from tide.scenes.scene import ATTRIBUTES, Split
from tide.studies.bench import Bench
from tide.studies.class_knowledge import ClassBanks, class_banks, scene_profiles
from tide.studies.compare import best, equal_preservation, paired
from tide.studies.editor import BANK, MEANS, Steps
from tide.studies.grid import Cell, Result, Say, run_cells
from tide.studies.methods import METHODS, RIVALS
from tide.studies.models import Checkpoint, Models
from tide.studies.parallel import Workers
from tide.studies.references import LayoutProbe
from tide.studies.regions import outside_distance
from tide.studies.tasks import DRAW_BATCH, EVERYTHING, KINDS, EditOutcome, EditTask, style_tasks, summarise, tasks_of
from tide.studies.trial import ASKED, PROMPT, Setting, Trial

#: Added to a seed, it gives the seed of the development tasks.
DEVELOPMENT = 5000


@dataclass(frozen=True)
class Sizes:
    """How many tasks each seed has: ``dev`` and ``test`` are spread over the attributes, ``special`` are the held-out
    ones of methods that serve edits of style alone (half as many for development)."""

    dev: int
    test: int
    special: int
    step_ranges: tuple[Steps, ...]
    #: How many of a method's strengths are tried, the first ones.
    strengths: int
    probe_images: int
    profile_images: int
    seeds: int

    def factors(self, name: str) -> tuple[float, ...]:
        return METHODS[name].strengths[: self.strengths]


class Batch(NamedTuple):
    """Which tasks: at most :data:`~tide.studies.tasks.DRAW_BATCH` of a seed, a split and a kind."""

    seed: int
    split: Split
    kind: str
    part: int

    def cell(self, setting: Setting) -> str:
        return f"seed {self.seed} {self.split} {setting}" + (f" part {self.part}" if self.part else "")


#: What is measured: a setting on a batch.
Wanted = list[tuple[Setting, Batch]]


class InProcesses(NamedTuple):
    """How several processes share the cells: ``make`` makes them again in each, and is pickled."""

    workers: int
    make: Callable[[Wanted], list[Cell]]


@dataclass
class EditStudy:
    """Draws and judges edits, a cell for each setting and batch; ``methods`` are those of the study, and ``folder`` is
    where those that know a bank keep it."""

    bench: Bench
    models: Models | Checkpoint
    sizes: Sizes
    methods: Sequence[str] = tuple(METHODS)
    judge: Judge = field(default_factory=load_judge)
    folder: Path | None = None
    _tasks: dict[tuple[str, Split, int], list[EditTask]] = field(default_factory=dict)
    _trial: tuple[Batch, Trial] | None = None
    _profiles: dict[int, ConceptProfiles] = field(default_factory=dict)
    _banks: dict[int, ClassBanks] = field(default_factory=dict)

    @cached_property
    def judged_by(self) -> str:
        return fingerprint([self.judge])

    @cached_property
    def probe(self) -> LayoutProbe:
        bench = self.bench
        return LayoutProbe.fit(bench.adapter, bench.block, n_images=self.sizes.probe_images, seed=bench.seed)

    def tasks(self, kind: str, split: Split, seed: int) -> list[EditTask]:
        """Development tasks have prompts and noise that no test task has."""
        key = (kind, split, seed)
        if key not in self._tasks:
            sizes, test = self.sizes, split == "test"
            if not test:
                seed += DEVELOPMENT
            if kind == EVERYTHING:
                self._tasks[key] = tasks_of(split, sizes.test if test else sizes.dev, seed)
            else:
                self._tasks[key] = style_tasks(kind, split, max(1, sizes.special // (1 if test else 2)), seed)
        return self._tasks[key]

    def batches(self, kind: str, split: Split, seed: int) -> list[Batch]:
        n = len(self.tasks(kind, split, seed))
        return [Batch(seed, split, kind, part) for part in range(math.ceil(n / DRAW_BATCH))]

    def tasks_in(self, batch: Batch) -> list[EditTask]:
        first = batch.part * DRAW_BATCH
        return self.tasks(batch.kind, batch.split, batch.seed)[first : first + DRAW_BATCH]

    def profiles(self, seed: int) -> ConceptProfiles:
        if seed not in self._profiles:
            self._profiles.clear()
            model, n_images = self.models.of(seed), self.sizes.profile_images
            self._profiles[seed] = scene_profiles(self.bench.adapter, model, n_images=n_images, seed=seed)
        return self._profiles[seed]

    def banks(self, seed: int) -> ClassBanks:
        if seed not in self._banks:
            assert self.folder is not None, "methods that know a bank need a folder"
            self._banks.clear()
            adapter, model, n_images = self.bench.adapter, self.models.of(seed), self.sizes.profile_images
            tasks = [*self.tasks(EVERYTHING, "dev", seed), *self.tasks(EVERYTHING, "test", seed)]
            self._banks[seed] = class_banks(adapter, model, tasks, self.folder / "banks", n_images=n_images, seed=seed)
        return self._banks[seed]

    def trial(self, batch: Batch) -> Trial:
        """Kept until another batch is asked for: recordings are large."""
        if self._trial is None or self._trial[0] != batch:
            self._trial = None
            self._trial = batch, self._made(batch)
        return self._trial[1]

    def _made(self, batch: Batch) -> Trial:
        known = {METHODS[name].knows for name in self.methods} if batch.kind == EVERYTHING else set()
        profiles = self.profiles(batch.seed) if MEANS in known else None
        banks = self.banks(batch.seed) if BANK in known else None
        adapter, model, tasks = self.bench.adapter, self.models.of(batch.seed), self.tasks_in(batch)
        return Trial.of(adapter, model, tasks, self.judge, self.probe, seed=batch.seed, profiles=profiles, banks=banks)

    def measure(self, setting: Setting, batch: Batch) -> Result:
        """Outcomes of the batch's tasks: changed, kept, valid, and the distance of the pixels outside. Tasks whose
        unedited image does not show the source have none."""
        trial = self.trial(batch)
        after = trial.draw(setting)
        regions, place = self.judge.regions(after), {task: i for i, task in enumerate(trial.tasks)}
        rows = []
        for outcome in trial.outcomes(after):
            i = place[outcome.task]
            away = outside_distance(outcome.task, (trial.images[i], after[i]), (trial.regions[i], regions[i]))
            rows.append(
                {
                    "task": i,
                    "changed": outcome.changed,
                    "kept": outcome.kept,
                    "valid": outcome.valid,
                    "outside": None if math.isnan(away) else round(away, 3),
                }
            )
        return {"outcomes": rows, "tasks": len(trial.tasks)}

    # -- cells --------------------------------------------------------------------------------------------

    def config(self, seed: int) -> dict[str, Any]:
        study = {**vars(self.sizes), "judge": self.judged_by}
        return {"data": self.bench.config(), **self.models.described(seed), "study": study}

    def cell(self, setting: Setting, batch: Batch) -> Cell:
        config: dict[str, Any] = {
            **self.config(batch.seed),
            "strategy": setting.method,
            "factor": setting.factor,
            "steps": list(setting.steps),
            "split": batch.split,
        }
        if batch.part:
            config["part"] = batch.part
        run = partial(self.measure, setting, batch)
        return Cell(batch.cell(setting), config, run, lambda: 0.6 * len(self.tasks_in(batch)))

    def run(self, seeds: Sequence[int], out: Path, say: Say, in_processes: InProcesses | None = None) -> Edits:
        """Chooses on development prompts and measures on held-out ones; finished cells in ``out`` are kept."""
        edits = Edits(self, seeds, out, say, in_processes)
        edits.swept = {
            (n, seed): [Setting(n, METHODS[n].middle, steps) for steps in self.sizes.step_ranges]
            for n in self.methods
            for seed in seeds
        }
        edits.compute(edits.swept, "dev", "Step ranges on development prompts")
        edits.curves = {
            key: [Setting(key[0], factor, edits.best(settings, key[1]).steps) for factor in self.sizes.factors(key[0])]
            for key, settings in edits.swept.items()
        }
        edits.compute(edits.curves, "dev", "Strengths on development prompts")
        edits.chosen = {key: edits.best(curve, key[1]) for key, curve in edits.curves.items()}
        asked = {(PROMPT, seed): [ASKED] for seed in seeds}
        edits.compute({**edits.curves, **asked}, "test", "All strengths on held-out prompts")
        return edits


# -- results --------------------------------------------------------------------------------------------------


def counts(results: Iterable[Result]) -> dict[str, int]:
    """What a setting did, as numbers of images; the settings that are compared have the same images."""
    rows = [row for result in results for row in result["outcomes"]]
    return {
        "both": sum(r["changed"] and r["kept"] for r in rows),
        "success": sum(r["changed"] for r in rows),
        "preserved": sum(r["kept"] for r in rows),
    }


def point(
    results: list[Result], tasks: list[list[EditTask]], factor: float
) -> tuple[dict[str, Any], list[EditOutcome]]:
    """Results on their ``tasks`` pooled: shares with Wilson intervals, and the outcomes that they summarise."""
    outcomes = [
        EditOutcome(own[row["task"]], row["changed"], row["kept"], row["valid"])
        for result, own in zip(results, tasks, strict=True)
        for row in result["outcomes"]
    ]
    away = [row["outside"] for result in results for row in result["outcomes"] if row["outside"] is not None]
    return {"factor": factor, **summarise(outcomes), "outside": float(np.mean(away)) if away else None}, outcomes


@dataclass
class Edits:
    """What the study found. For each method and seed, ``swept`` has a setting for each step range, ``curves`` one for
    each strength at the best step range, and ``chosen`` is the best of those, by development prompts."""

    study: EditStudy
    seeds: Sequence[int]
    out: Path
    say: Say
    in_processes: InProcesses | None = None
    found: dict[str, Result] = field(default_factory=dict)
    swept: dict[tuple[str, int], list[Setting]] = field(default_factory=dict)
    curves: dict[tuple[str, int], list[Setting]] = field(default_factory=dict)
    chosen: dict[tuple[str, int], Setting] = field(default_factory=dict)

    def compute(self, settings: dict[tuple[str, int], list[Setting]], split: Split, what: str) -> None:
        self.say(f"\n{what}:")
        wanted = [
            (setting, batch)
            for (_, seed), each in settings.items()
            for setting in each
            for batch in self.study.batches(setting.tasks, split, seed)
        ]
        # All settings of one batch follow one another: they share its recordings.
        wanted.sort(key=lambda each: (self.seeds.index(each[1].seed), KINDS.index(each[1].kind), each[1].part))
        if self.in_processes is None:
            self.found |= run_cells([self.study.cell(*each) for each in wanted], self.out, self.say)
            return
        workers, make = self.in_processes
        outcome = Workers(workers, say=self.say).run(partial(make, wanted), self.out)
        if outcome.missing:
            raise TideError(
                f"{len(outcome.missing)} cells could not be computed, the first {outcome.missing[0]!r}; "
                f"{self.out / 'failed'} says why"
            )
        self.found |= outcome.results

    def results(self, setting: Setting, split: Split, seed: int) -> list[Result]:
        batches = self.study.batches(setting.tasks, split, seed)
        return [self.found[batch.cell(setting)] for batch in batches]

    def best(self, settings: Sequence[Setting], seed: int) -> Setting:
        return best(settings, lambda setting: counts(self.results(setting, "dev", seed)))

    def point(
        self, settings: Mapping[int, Setting], factor: float, split: Split = "test"
    ) -> tuple[dict[str, Any], list[EditOutcome]]:
        """:func:`point` of a setting for each seed."""
        results: list[Result] = []
        tasks: list[list[EditTask]] = []
        for seed, setting in settings.items():
            results += self.results(setting, split, seed)
            tasks += [self.study.tasks_in(batch) for batch in self.study.batches(setting.tasks, split, seed)]
        return point(results, tasks, factor)

    def curve(self, name: str, split: Split) -> list[dict[str, Any]]:
        """A point for each strength."""
        return [
            self.point({seed: self.curves[name, seed][i] for seed in self.seeds}, factor, split)[0]
            for i, factor in enumerate(self.study.sizes.factors(name))
        ]

    def tried(self) -> list[dict[str, Any]]:
        """The figures of every setting that was tried on the first seed's development prompts."""
        seed = self.seeds[0]
        keys = [(name, seed) for name in self.study.methods]
        settings = dict.fromkeys(setting for key in keys for setting in (*self.swept[key], *self.curves[key]))
        return [
            {"method": s.method, "steps": list(s.steps), **self.point({seed: s}, s.factor, "dev")[0]} for s in settings
        ]

    def summary(self) -> dict[str, Any]:
        """The figures of all methods, as JSON has them."""
        methods = self.study.methods
        curves = {name: self.curve(name, "test") for name in methods}
        everything = [name for name in methods if METHODS[name].tasks == EVERYTHING]
        development = {name: self.curve(name, "dev") for name in everything}
        chosen: dict[str, dict[str, Any]] = {}
        outcomes: dict[str, list[EditOutcome]] = {}
        for name in methods:
            settings = {seed: self.chosen[name, seed] for seed in self.seeds}
            chosen[name], outcomes[name] = self.point(settings, math.nan)
            chosen[name]["factor"] = [setting.factor for setting in settings.values()]
        chosen[PROMPT], outcomes[PROMPT] = self.point(dict.fromkeys(self.seeds, ASKED), ASKED.factor)
        rivals = {ours: [name for name in RIVALS[ours] if name in methods] for ours in RIVALS if ours in methods}
        return {
            "step_ranges": {f"{name} seed {seed}": list(s.steps) for (name, seed), s in self.chosen.items()},
            "chosen": chosen,
            "by_attribute": {name: _by_attribute(each) for name, each in outcomes.items()},
            "curves": curves,
            "equal_preservation": equal_preservation({name: curves[name] for name in everything}, development),
            "paired": {a: {b: paired(outcomes[a], outcomes[b]) for b in others} for a, others in rivals.items()},
        }


def _by_attribute(outcomes: list[EditOutcome]) -> dict[str, Any]:
    found = {a: [o for o in outcomes if o.task.attribute == a] for a in ATTRIBUTES}
    return {a: summarise(each) for a, each in found.items() if each}


def say_chosen(chosen: dict[str, dict[str, Any]], say: Say) -> None:
    """Says one line for each method: its figures at the strength chosen."""
    for name, row in chosen.items():
        label = "the prompt replaced" if name == PROMPT else METHODS[name].label
        away = "" if row["outside"] is None else f", outside {row['outside']:.1f}"
        say(
            f"  {label:26} changed {row['success']:4.0%}, kept {row['preserved']:4.0%}, both {row['both']:4.0%}, "
            f"a scene {row['valid']:4.0%}{away} ({row['images']} images)"
        )
