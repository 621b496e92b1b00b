"""Where in the image to edit, times what to put there, at equal information.

All methods know the target's prompt, and see what it makes of the same noisy latents at the same step
(:mod:`tide.studies.beside`). What they move are raw activations or latents, everywhere or in the tokens that differ
most under the two prompts; beside trained latents, raw activations and a dictionary that was never trained say so. The
protocol is that of :mod:`tide.studies.edit_study`, with a TIDE of each seed and six times the held-out prompts of Fig.
6.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tide import charts
from tide.evaluation.statistics import mean_interval
from tide.studies.beside import BESIDE, LATENTS_EVERYWHERE, LATENTS_WHERE, RAW_EVERYWHERE, RAW_WHERE
from tide.studies.compare import LEVELS
from tide.studies.edit_study import Edits, EditStudy, InProcesses, Sizes, Wanted, say_chosen
from tide.studies.grid import Cell, run_cells
from tide.studies.models import Models, model_cells
from tide.studies.options import Options, write_results
from tide.studies.tasks import EditOutcome
from tide.studies.trial import ASKED, PROMPT
from tide.tables import write_csv

DEFAULT = Sizes(24, 144, 1, ((0.0, 1.0), (0.5, 1.0)), 4, 48, 16, 3)
FAST = Sizes(2, 4, 1, ((0.0, 1.0),), 2, 16, 16, 1)

#: What is compared at each level: the best of several methods, as development prompts choose it.
CONTENDERS = {
    "where latents differ": (RAW_WHERE, LATENTS_WHERE),
    RAW_EVERYWHERE: (RAW_EVERYWHERE,),
    LATENTS_EVERYWHERE: (LATENTS_EVERYWHERE,),
}
OURS = next(iter(CONTENDERS))


def reproduce(options: Options) -> str:
    """Runs the study into ``options.out`` and returns what was found."""
    models = Models.of_study(options)
    study = _study(models, options)
    seeds = options.each_seed(study.sizes.seeds)
    run_cells(model_cells(models, seeds, study.config), options.out, options.say)
    shared = InProcesses(options.workers, partial(cells_of, options.for_workers())) if options.workers > 1 else None
    edits = study.run(seeds, options.out, options.say, shared)
    found = edits.summary()
    say_chosen(found["chosen"], options.say)
    points = points_of(edits)
    levels = {f"{level:g}": {str(kind): at_level(points, level, kind) for kind in KINDS} for level in LEVELS}
    against = both_against(edits)
    verdict = verdict_of(levels, against, found["chosen"])
    described = {"seeds": seeds, "data": models.bench.config(), "training": models.config.to_dict()}
    figures = {"levels": levels, "both_against": against}
    write_results(options, "where", {**described, "sizes": vars(study.sizes), **found, **figures, "verdict": verdict})
    write_csv(options.out / "where.csv", _rows(found["curves"], found["chosen"][PROMPT]))
    _draw(options, found["curves"], found["chosen"][PROMPT])
    return verdict


def cells_of(options: Options, wanted: Wanted) -> list[Cell]:
    """The cells of what is ``wanted``; a worker process makes them again."""
    study = _study(Models.of_study(options), options)
    return [study.cell(*each) for each in wanted]


def _study(models: Models, options: Options) -> EditStudy:
    return EditStudy(models.bench, models, FAST if options.fast else DEFAULT, tuple(BESIDE))


# -- at equal preservation ------------------------------------------------------------------------------------

#: How a method comes to keep as much as a level asks for: by a weaker edit, or also by leaving images, drawn at random,
#: as they are.
KINDS = ("strength", "share of the images")


@dataclass(frozen=True)
class Point:
    """A method at one strength: the shares of images changed and kept on development prompts, and what it did on
    held-out ones."""

    method: str
    factor: float
    dev: dict[str, Any]
    outcomes: list[EditOutcome]

    def share(self, level: float) -> float:
        """The share of the images that may be edited for ``level`` of all to be kept, by development prompts."""
        lost = 1.0 - float(self.dev["preserved"])
        return 1.0 if lost <= 1 - level else (1 - level) / lost


def points_of(edits: Edits) -> list[Point]:
    """All methods at all strengths."""
    points = []
    for name in edits.study.methods:
        for i, factor in enumerate(edits.study.sizes.factors(name)):
            settings = {seed: edits.curves[name, seed][i] for seed in edits.seeds}
            dev, _ = edits.point(settings, factor, "dev")
            points.append(Point(name, factor, dev, edits.point(settings, factor)[1]))
    return points


def at_level(points: list[Point], level: float, kind: str) -> dict[str, Any]:
    """For each of :data:`CONTENDERS`: the point that changes most on development prompts and keeps all else in at least
    ``level`` of them, as it does on held-out ones. ``ahead``: how much more of the images ours changes, with a 95 %
    interval over the images.

    Where no strength keeps as much, nothing is edited.
    """
    chosen: dict[str, tuple[Point, float] | None] = {}
    for contender, methods in CONTENDERS.items():
        shares = [(each, each.share(level)) for each in points if each.method in methods]
        fitting = [each for each in shares if kind != KINDS[0] or each[1] == 1]
        chosen[contender] = max(fitting, key=lambda each: each[1] * each[0].dev["success"], default=None)
    n = len(points[0].outcomes)
    changed = {
        name: [0.0] * n if each is None else [each[1] * outcome.changed for outcome in each[0].outcomes]
        for name, each in chosen.items()
    }
    rows: dict[str, Any] = {}
    for name, each in chosen.items():
        less = [ours - theirs for ours, theirs in zip(changed[OURS], changed[name], strict=True)]
        rows[name] = {
            "method": each and each[0].method,
            "factor": each and each[0].factor,
            "share": each and each[1],
            "success": sum(changed[name]) / n,
            "preserved": 1.0 if each is None else 1 - each[1] * sum(not o.kept for o in each[0].outcomes) / n,
            "ahead": {"mean": sum(less) / n, "interval": mean_interval(less)},
        }
    return rows


def both_against(edits: Edits) -> dict[str, Any]:
    """How much more of the same images raw activations where latents differ change to the target while all else is kept
    than every other method and the prompt replaced, each at its strength of development prompts: mean and 95 %
    interval."""
    done = {
        name: edits.point({seed: edits.chosen[name, seed] for seed in edits.seeds}, 1.0)[1]
        for name in edits.study.methods
    }
    done[PROMPT] = edits.point(dict.fromkeys(edits.seeds, ASKED), 1.0)[1]
    found = {}
    for name, outcomes in done.items():
        if name != RAW_WHERE:
            more = [
                float(a.changed and a.kept) - float(b.changed and b.kept)
                for a, b in zip(done[RAW_WHERE], outcomes, strict=True)
            ]
            found[name] = {"mean": sum(more) / len(more), "interval": mean_interval(more)}
    return found


def verdict_of(levels: dict[str, Any], against: dict[str, Any], chosen: dict[str, dict[str, Any]]) -> str:
    """One sentence from the numbers."""
    above = {
        kind: sum(
            all(each["ahead"]["mean"] > 0 for name, each in row[kind].items() if name != OURS)
            for row in levels.values()
        )
        for kind in KINDS
    }
    ours, prompt, raw = chosen[RAW_WHERE], chosen[PROMPT], chosen[RAW_EVERYWHERE]
    low, high = against[PROMPT]["interval"]
    return (
        f"Moved where latents differ, raw activations change {ours['success']:.1%} of {ours['images']} images and keep "
        f"all else in {ours['preserved']:.1%} (both {ours['both']:.1%}, a scene {ours['valid']:.1%}), everywhere "
        f"{raw['success']:.1%} and {raw['preserved']:.1%} (both {raw['both']:.1%}), the prompt replaced "
        f"{prompt['success']:.1%} and {prompt['preserved']:.1%} (both {prompt['both']:.1%}; ours less the prompt's "
        f"{low:+.1%} to {high:+.1%}); above raw and latents everywhere at {above[KINDS[0]]} of {len(levels)} levels of "
        f"preservation by strength, and at {above[KINDS[1]]} where each may leave images as they are."
    )


# -- what is written ------------------------------------------------------------------------------------------


def _rows(curves: dict[str, list[dict[str, Any]]], prompt: dict[str, Any]) -> list[dict[str, Any]]:
    figures = ("success", "preserved", "both", "valid", "outside", "images")
    points = [(name, each) for name, curve in curves.items() for each in curve] + [("prompt replaced", prompt)]
    return [{"edit": name, "strength": p["factor"], **{f: p[f] for f in figures}} for name, p in points]


def _draw(options: Options, curves: dict[str, list[dict[str, Any]]], prompt: dict[str, Any]) -> None:
    figure, (axis,) = charts.panels(1, width=6.2, height=4.4)
    for i, (name, curve) in enumerate(curves.items()):
        axis.plot([p["preserved"] for p in curve], [p["success"] for p in curve], label=name, **charts.style(i))
    axis.plot(prompt["preserved"], prompt["success"], "k*", markersize=10, label="prompt replaced")
    axis.set(xlabel="all else kept", ylabel="changed to the target", ylim=(-0.02, 1.04))
    axis.legend(frameon=False, fontsize="small")
    charts.save(figure, options.out / "where.png")
