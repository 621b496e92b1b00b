"""Fig. 6 and section 6: every strategy of editing, its trade-off between change and preservation, and raw activations.

Each seed has a TIDE and prompts of its own. On development prompts the step range and the strength of every strategy
are chosen; on held-out prompts all strengths are measured at that step range: images changed to the target, all other
attributes kept, still a scene, and the distance of the pixels outside the region that the edit is of. Strategies of one
group know the same of the target (:mod:`tide.studies.methods`); replacing the prompt is the ceiling. Erasing and
inverting know no target: they are measured on removing the ornate style, as the paper does, and style transfer on
taking a style from one image whose places are averaged out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from tide import charts
from tide.fingerprint import fingerprint
from tide.interpretation.profiles import ConceptProfiles
from tide.scenes.judge import Judge, Verdict, load_judge
from tide.scenes.scene import ATTRIBUTES, Split, prompts
from tide.studies.bench import Bench
from tide.studies.edit_study import tasks_of
from tide.studies.fig6_pictures import draw_curves, draw_gallery
from tide.studies.grid import Cell, Result, run_cells
from tide.studies.levels import LEVELS, best, equal_preservation, paired
from tide.studies.methods import Contrasts, Methods, scene_profiles, target_prompt
from tide.studies.models import DATA, FAST_DATA, Models
from tide.studies.options import Options, write_results
from tide.studies.references import LayoutProbe, reference_scenes
from tide.studies.regions import outside_distance
from tide.studies.strategies import EVERYTHING, RIVALS, STRATEGIES, STYLES, UNGILDING
from tide.studies.tasks import EditOutcome, EditTask, Method, draw, judge_edits, summarise
from tide.tables import write_csv

Steps = tuple[float, float]
#: Added to a seed, the seed of its development tasks.
DEVELOPMENT = 5000
PROMPT = "prompt"


@dataclass(frozen=True)
class Sizes:
    """Tasks of each seed: of ``dev`` and ``test`` there are as many of every attribute; ``special`` are those of the
    strategies that serve one edit alone."""

    dev: int
    test: int
    special: int
    step_ranges: tuple[Steps, ...]
    #: How many of a strategy's strengths are tried, the first ones.
    strengths: int
    probe_images: int
    profile_images: int
    seeds: int

    def factors(self, name: str) -> tuple[float, ...]:
        return STRATEGIES[name].factors[: self.strengths]


DEFAULT = Sizes(16, 24, 16, ((0.0, 1.0), (0.0, 0.8)), 4, 384, 192, 3)
FAST = Sizes(2, 4, 1, ((0.0, 1.0),), 2, 48, 16, 1)


def special_tasks(kind: str, split: Split, n: int, seed: int) -> list[EditTask]:
    """``n`` edits of one kind on prompts of ``split``."""
    pairs = prompts(split, 40 * n + 40, seed + 50)
    if kind == UNGILDING:
        fitting = [(scene, caption, "plain") for scene, caption in pairs if scene.style == "ornate"]
    else:
        styles = ATTRIBUTES["style"]
        fitting = [
            (scene, caption, styles[(styles.index(scene.style) + 1 + i % 2) % len(styles)])
            for i, (scene, caption) in enumerate(pairs)
        ]
    return [
        EditTask(scene, caption, seed * 100_003 + 50_000 + i, "style", target)
        for i, (scene, caption, target) in enumerate(fitting[:n])
    ]


@dataclass
class Trial:
    """Tasks of one seed, split and kind, their unedited images read, their references chosen, and the methods."""

    tasks: list[EditTask]
    images: torch.Tensor
    verdicts: list[Verdict]
    regions: torch.Tensor
    methods: Methods


@dataclass
class Study:
    """Makes and keeps the trials; cells take turns on one at a time."""

    bench: Bench
    models: Models
    sizes: Sizes
    judge: Judge = field(default_factory=load_judge)
    _kept: dict[tuple[int, str, str], Trial] = field(default_factory=dict)
    _profiles: dict[int, ConceptProfiles] = field(default_factory=dict)

    @cached_property
    def judged_by(self) -> str:
        return fingerprint([self.judge])

    @cached_property
    def probe(self) -> LayoutProbe:
        bench = self.bench
        return LayoutProbe.fit(bench.adapter, bench.block, n_images=self.sizes.probe_images, seed=bench.seed)

    def tasks(self, kind: str, split: Split, seed: int) -> list[EditTask]:
        """Development tasks have prompts and noise that no test task has."""
        if split != "test":
            seed += DEVELOPMENT
        if kind != EVERYTHING:
            return special_tasks(kind, split, max(1, self.sizes.special // (1 if split == "test" else 2)), seed)
        return tasks_of(split, self.sizes.test if split == "test" else self.sizes.dev, seed)

    def profiles(self, seed: int) -> ConceptProfiles:
        if seed not in self._profiles:
            self._profiles.clear()
            model, n_images = self.models.of(seed), self.sizes.profile_images
            self._profiles[seed] = scene_profiles(self.bench.adapter, model, n_images=n_images, seed=seed)
        return self._profiles[seed]

    def trial(self, kind: str, split: Split, seed: int) -> Trial:
        key = (seed, split, kind)
        if key not in self._kept:
            self._kept.clear()  # recordings are large
            adapter, model, tasks = self.bench.adapter, self.models.of(seed), self.tasks(kind, split, seed)
            images, layouts = self.probe.draw(adapter, tasks)
            references = {task: reference_scenes(task, at, 1) for task, at in zip(tasks, layouts, strict=True)}
            profiles = self.profiles(seed) if kind == EVERYTHING else None  # of swap and steer alone
            contrasts = Contrasts(adapter, (self.bench.block,), references, seed)
            methods = Methods(adapter, model, profiles, contrasts)
            found = Trial(tasks, images, self.judge.read(images), self.judge.regions(images), methods)
            self._kept[key] = found
        return self._kept[key]

    def measure(self, name: str, factor: float, steps: Steps, split: Split, seed: int) -> Result:
        """Outcomes of one strategy at one setting on all its tasks: changed, kept, valid, and the distance of the
        pixels outside; tasks whose unedited image does not show the source have none."""
        trial = self.trial(EVERYTHING if name == PROMPT else STRATEGIES[name].tasks, split, seed)
        method, swapped = None, None
        if name == PROMPT:
            swapped = [target_prompt(task) for task in trial.tasks]
        else:
            make: Callable[[float, Steps], Method] = getattr(trial.methods, name.replace(" ", "_"))
            method = make(factor, steps)
        after = draw(self.bench.adapter, trial.tasks, method, prompts=swapped, batch_size=len(trial.tasks))
        outcomes = judge_edits(trial.tasks, trial.verdicts, self.judge.read(after))
        regions, place = self.judge.regions(after), {task: i for i, task in enumerate(trial.tasks)}
        rows = []
        for outcome in outcomes:
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

    def config(self, seed: int) -> dict[str, Any]:
        return {
            "data": self.bench.config(),
            "training": self.models.config_of(seed).to_dict(),
            "study": {**vars(self.sizes), "judge": self.judged_by},
        }

    def cell(self, name: str, factor: float, steps: Steps, split: Split, seed: int) -> Cell:
        return Cell(
            cell_name(name, factor, steps, split, seed),
            {**self.config(seed), "strategy": name, "factor": factor, "steps": list(steps), "split": split},
            partial(self.measure, name, factor, steps, split, seed),
            partial(self.seconds, name, split),
        )

    def model_cell(self, seed: int) -> Cell:
        """The training that the other cells of a seed need, as a cell of its own."""

        def run() -> Result:
            self.models.of(seed)
            return {"steps": self.models.config.steps}

        return Cell(f"seed {seed} model", self.config(seed), run, partial(self.models.seconds, seed))

    def seconds(self, name: str, split: Split) -> float:
        kind = EVERYTHING if name == PROMPT else STRATEGIES[name].tasks
        return 0.6 * len(self.tasks(kind, split, 0))


def cell_name(name: str, factor: float, steps: Steps, split: Split, seed: int) -> str:
    return f"seed {seed} {split} {name} x{factor:g} steps {steps[0]:g}-{steps[1]:g}"


def reproduce(options: Options) -> str:
    """Runs the study into ``options.out`` and returns what was found."""
    charts.check_matplotlib()
    sizes = FAST if options.fast else DEFAULT
    seeds = options.each_seed(sizes.seeds)
    bench = Bench(FAST_DATA if options.fast else DATA, options.seed, options.say, progress=options.progress)
    study = Study(bench, Models.of_study(bench, options), sizes)
    run_cells([study.model_cell(seed) for seed in seeds], options.out, options.say)
    kinds = (EVERYTHING, UNGILDING, STYLES)
    by_kind = [name for kind in kinds for name, strategy in STRATEGIES.items() if strategy.tasks == kind]
    swept = [(n, STRATEGIES[n].middle, s, "dev", seed) for seed in seeds for n in by_kind for s in sizes.step_ranges]
    found = _run(study, swept, options, "step ranges on development prompts")
    ranges = {
        (n, seed): best([(STRATEGIES[n].middle, s) for s in sizes.step_ranges], partial(_counts, found, n, seed))[1]
        for n in by_kind
        for seed in seeds
    }
    curves = [(n, f, ranges[n, seed], "dev", seed) for seed in seeds for n in by_kind for f in sizes.factors(n)]
    found |= _run(study, curves, options, "strengths on development prompts")
    chosen = {
        (n, seed): best([(f, ranges[n, seed]) for f in sizes.factors(n)], partial(_counts, found, n, seed))
        for n in by_kind
        for seed in seeds
    }
    measured = [
        (n, f, s, "test", seed)
        for seed in seeds
        for n, f, s in [
            *((n, f, ranges[n, seed]) for n in by_kind for f in sizes.factors(n)),
            (PROMPT, 1.0, (0.0, 1.0)),
        ]
    ]
    found |= _run(study, measured, options, "all strengths on held-out prompts")
    return _report(options, study, found, ranges, chosen, seeds)


def _run(
    study: Study, cells: list[tuple[str, float, Steps, Any, int]], options: Options, what: str
) -> dict[str, Result]:
    options.say(f"\n{what[0].upper()}{what[1:]}:")
    unique = list(dict.fromkeys(cells))
    return run_cells([study.cell(*each) for each in unique], options.out, options.say)


def _of(found: dict[str, Result], name: str, split: Split, seed: int, setting: tuple[float, Steps]) -> Result:
    return found[cell_name(name, setting[0], setting[1], split, seed)]


def _counts(found: dict[str, Result], name: str, seed: int, setting: tuple[float, Steps]) -> dict[str, Any]:
    """What a strategy did on a seed's development prompts: images, since all settings have the same ones."""
    rows = _of(found, name, "dev", seed, setting)["outcomes"]
    return {
        "both": sum(r["changed"] and r["kept"] for r in rows),
        "success": sum(r["changed"] for r in rows),
        "preserved": sum(r["kept"] for r in rows),
    }


# -- results ----------------------------------------------------------------------------------------------


def point(
    results: list[Result], tasks: list[list[EditTask]], factor: float
) -> tuple[dict[str, Any], list[EditOutcome]]:
    """One strategy at one strength over all seeds: shares with Wilson intervals, and the outcomes they are of."""
    outcomes = [
        EditOutcome(own[row["task"]], row["changed"], row["kept"], row["valid"])
        for result, own in zip(results, tasks, strict=True)
        for row in result["outcomes"]
    ]
    away = [row["outside"] for result in results for row in result["outcomes"] if row["outside"] is not None]
    return {"factor": factor, **summarise(outcomes), "outside": float(np.mean(away)) if away else None}, outcomes


def verdict_of(levels: dict[str, dict[str, Any]], chosen: dict[str, dict[str, Any]]) -> str:
    """One sentence from the numbers. ``levels``: each strategy at equal preservation; ``chosen``: at the strength that
    does best on development prompts."""
    above = sum(
        row["contrast"]["success"] > max(row[name]["success"] for name in RIVALS["contrast"]) for row in levels.values()
    )
    level_with = sum(
        row["contrast"]["success"] >= max(row[name]["success"] for name in RIVALS["contrast"])
        for row in levels.values()
    )
    ours, prompt = chosen["contrast"], chosen[PROMPT]
    raw = max((chosen[name] for name in RIVALS["contrast"]), key=lambda rival: float(rival["both"]))
    return (
        f"From one reference image the contrast of latents changes {ours['success']:.0%} of {ours['images']} images "
        f"and keeps all else in {ours['preserved']:.0%} (both {ours['both']:.0%}), the best of the raw activations "
        f"{raw['success']:.0%} and {raw['preserved']:.0%} (both {raw['both']:.0%}); it is above them at {above} of "
        f"{len(LEVELS)} levels of preservation and not below at {level_with}; prompt replacement reaches "
        f"{prompt['both']:.0%}, {prompt['both'] - ours['both']:.0%} more; pixels outside the edit's region move by "
        f"{ours['outside']:.1f} of 255 against {prompt['outside']:.1f} by the prompt."
    )


def _report(
    options: Options,
    study: Study,
    found: dict[str, Result],
    ranges: dict[tuple[str, int], Steps],
    chosen: dict[tuple[str, int], tuple[float, Steps]],
    seeds: list[int],
) -> str:
    def tasks(name: str, split: Split = "test") -> list[list[EditTask]]:
        kind = EVERYTHING if name == PROMPT else STRATEGIES[name].tasks
        return [study.tasks(kind, split, seed) for seed in seeds]

    def curve(name: str, split: Split) -> list[dict[str, Any]]:
        return [
            point([_of(found, name, split, seed, (f, ranges[name, seed])) for seed in seeds], tasks(name, split), f)[0]
            for f in study.sizes.factors(name)
        ]

    curves = {name: curve(name, "test") for name in STRATEGIES}
    everything = [name for name, strategy in STRATEGIES.items() if strategy.tasks == EVERYTHING]
    levels = equal_preservation(
        {name: curves[name] for name in everything}, {name: curve(name, "dev") for name in everything}
    )
    at_chosen: dict[str, dict[str, Any]] = {}
    outcomes: dict[str, list[EditOutcome]] = {}
    for name in STRATEGIES:
        results = [_of(found, name, "test", seed, chosen[name, seed]) for seed in seeds]
        at_chosen[name], outcomes[name] = point(results, tasks(name), math.nan)
        at_chosen[name]["factor"] = [chosen[name, seed][0] for seed in seeds]
    ceiling = [_of(found, PROMPT, "test", seed, (1.0, (0.0, 1.0))) for seed in seeds]
    at_chosen[PROMPT], outcomes[PROMPT] = point(ceiling, tasks(PROMPT), 1.0)
    for name, row in at_chosen.items():
        label = "the prompt replaced" if name == PROMPT else STRATEGIES[name].label
        away = "" if row["outside"] is None else f", outside {row['outside']:.1f}"
        options.say(
            f"  {label:26} changed {row['success']:4.0%}, kept {row['preserved']:4.0%}, both {row['both']:4.0%}, "
            f"a scene {row['valid']:4.0%}{away} ({row['images']} images)"
        )
    verdict = verdict_of(levels, at_chosen)
    compared = {a: {b: paired(outcomes[a], outcomes[b]) for b in others} for a, others in RIVALS.items()}
    write_results(
        options,
        "fig6",
        {
            "seeds": seeds,
            "data": study.bench.config(),
            "training": study.models.config.to_dict(),
            "sizes": vars(study.sizes),
            "step_ranges": {f"{name} seed {seed}": list(steps) for (name, seed), steps in ranges.items()},
            "chosen": at_chosen,
            "by_attribute": {name: _by_attribute(each) for name, each in outcomes.items()},
            "curves": curves,
            "equal_preservation": levels,
            "paired": compared,
            "verdict": verdict,
        },
    )
    write_csv(options.out / "fig6.csv", _rows(curves, at_chosen[PROMPT]))
    draw_curves(options, curves, at_chosen[PROMPT])
    draw_gallery(options, study, ranges, chosen, seeds[0])
    return verdict


def _by_attribute(outcomes: list[EditOutcome]) -> dict[str, Any]:
    found = {a: [o for o in outcomes if o.task.attribute == a] for a in ATTRIBUTES}
    return {a: summarise(each) for a, each in found.items() if each}


def _rows(curves: dict[str, list[dict[str, Any]]], prompt: dict[str, Any]) -> list[dict[str, Any]]:
    figures = ("success", "preserved", "both", "valid", "outside", "images")
    rows = [
        {"strategy": STRATEGIES[name].label, "knows": STRATEGIES[name].knows, "edits": STRATEGIES[name].tasks,
         "strength": each["factor"], **{f: each[f] for f in figures}}
        for name, curve in curves.items()
        for each in curve
    ]  # fmt: skip
    ceiling = {"strategy": "prompt replaced", "knows": "the target's prompt", "edits": EVERYTHING, "strength": 1.0}
    return [*rows, {**ceiling, **{f: prompt[f] for f in figures}}]
