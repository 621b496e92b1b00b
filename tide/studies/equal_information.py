"""Edits everywhere against edits in some tokens, at equal information: what the studies ``where`` and ``bank`` share.

Methods that know the same of the target form a group; its contenders are compared on the same images and at equal
preservation. The protocol is that of :mod:`tide.studies.edit_study`, with a TIDE of each seed and six times the
held-out prompts of Fig. 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tide import charts
from tide.evaluation.statistics import mean_interval
from tide.studies.compare import LEVELS
from tide.studies.edit_study import Edits, EditStudy, InProcesses, Sizes, Wanted, say_chosen
from tide.studies.grid import Cell, run_cells
from tide.studies.methods import METHODS
from tide.studies.models import Models, model_cells
from tide.studies.options import Options, write_results
from tide.studies.tasks import EditOutcome
from tide.studies.trial import ASKED, PROMPT
from tide.tables import write_csv

WHERE, RAW, LATENTS = "where latents say", "raw everywhere", "latents everywhere"


@dataclass(frozen=True)
class Group:
    """Methods that know the same: the contenders, each the best of its methods by development prompts, and what tells
    without trained latents which tokens to edit, beside the method ``ours``. The cells are in ``folder``."""

    folder: str
    ours: str
    contenders: Mapping[str, tuple[str, ...]]
    baselines: tuple[str, ...]
    sizes: Sizes

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([name for each in self.contenders.values() for name in each])) + self.baselines


#: Of a fast run, for every group.
FAST = Sizes(2, 4, 1, ((0.0, 1.0),), 2, 48, 48, 1)


def reproduce_groups(options: Options, name: str, groups: Mapping[str, Group]) -> str:
    """Runs the study ``name`` of ``groups``, by what they know, into ``options.out`` and returns what was found."""
    models = Models.of_study(options)
    seeds = options.each_seed(FAST.seeds if options.fast else next(iter(groups.values())).sizes.seeds)
    found, verdicts = {}, []
    for known, group in groups.items():
        options.say(f"\nKnown: {known}")
        edits = _edits(models, options, group, seeds)
        found[known] = edits.summary() | _compared(edits, group)
        say_chosen(found[known]["chosen"], options.say)
        verdicts.append(f"Known: {known}. {verdict_of(group, found[known])}")
    described = {"seeds": seeds, "data": models.bench.config(), "training": models.config.to_dict()}
    verdict = " ".join(verdicts)
    write_results(options, name, {**described, "known": found, "verdict": verdict})
    write_csv(options.out / f"{name}.csv", [row for known in found for row in _rows(known, found[known])])
    _draw(options, name, found)
    return verdict


def cells_of(options: Options, group: Group, wanted: Wanted) -> list[Cell]:
    """The cells of what is ``wanted``; a worker process makes them again."""
    study = _study(Models.of_study(options), options, group)
    return [study.cell(*each) for each in wanted]


def _study(models: Models, options: Options, group: Group) -> EditStudy:
    sizes = FAST if options.fast else group.sizes
    return EditStudy(models.bench, models, sizes, group.methods, folder=options.out)


def _edits(models: Models, options: Options, group: Group, seeds: list[int]) -> Edits:
    study, out = _study(models, options, group), options.out / group.folder
    run_cells(model_cells(models, seeds, study.config), out, options.say)
    shared = InProcesses(options.workers, partial(cells_of, options.for_workers(), group))
    return study.run(seeds, out, options.say, shared if options.workers > 1 else None)


def _compared(edits: Edits, group: Group) -> dict[str, Any]:
    points = points_of(edits)
    levels = {f"{level:g}": {kind: at_level(points, group, level, kind) for kind in KINDS} for level in LEVELS}
    return {"sizes": vars(edits.study.sizes), "levels": levels, "both_against": both_against(edits, group.ours)}


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


def at_level(points: list[Point], group: Group, level: float, kind: str) -> dict[str, Any]:
    """For each of the group's contenders: the point that changes most on development prompts and keeps all else in at
    least ``level`` of them, as it does on held-out ones. ``ahead``: how much more of the images the first changes, with
    a 95 % interval over the images.

    Where no strength keeps as much, nothing is edited.
    """
    chosen: dict[str, tuple[Point, float] | None] = {}
    for contender, methods in group.contenders.items():
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
        less = [ours - theirs for ours, theirs in zip(changed[WHERE], changed[name], strict=True)]
        rows[name] = {
            "method": each and each[0].method,
            "factor": each and each[0].factor,
            "share": each and each[1],
            "success": sum(changed[name]) / n,
            "preserved": 1.0 if each is None else 1 - each[1] * sum(not o.kept for o in each[0].outcomes) / n,
            "ahead": {"mean": sum(less) / n, "interval": mean_interval(less)},
        }
    return rows


def both_against(edits: Edits, ours: str) -> dict[str, Any]:
    """How much more of the same images ``ours`` changes to the target while all else is kept than every other method
    and the prompt replaced, each at its strength of development prompts: mean and 95 % interval."""
    done = {
        name: edits.point({seed: edits.chosen[name, seed] for seed in edits.seeds}, 1.0)[1]
        for name in edits.study.methods
    }
    done[PROMPT] = edits.point(dict.fromkeys(edits.seeds, ASKED), 1.0)[1]
    found = {}
    for name, outcomes in done.items():
        if name != ours:
            more = [
                float(a.changed and a.kept) - float(b.changed and b.kept)
                for a, b in zip(done[ours], outcomes, strict=True)
            ]
            found[name] = {"mean": sum(more) / len(more), "interval": mean_interval(more)}
    return found


def verdict_of(group: Group, found: Mapping[str, Any]) -> str:
    """One sentence from the numbers."""
    levels, chosen = found["levels"], found["chosen"]
    above = {
        kind: sum(
            all(each["ahead"]["mean"] > 0 for name, each in row[kind].items() if name != WHERE)
            for row in levels.values()
        )
        for kind in KINDS
    }
    ours, prompt = chosen[group.ours], chosen[PROMPT]
    low, high = found["both_against"][PROMPT]["interval"]
    rest = "; ".join(
        f"{name} {max(chosen[each]['both'] for each in methods):.1%}"
        for name, methods in group.contenders.items()
        if name != WHERE
    )
    return (
        f"{METHODS[group.ours].label}: {ours['success']:.1%} of {ours['images']} images changed, all else kept in "
        f"{ours['preserved']:.1%}, both {ours['both']:.1%} ({rest}; the prompt replaced {prompt['both']:.1%}, ours "
        f"less that {low:+.1%} to {high:+.1%}), a scene in {ours['valid']:.1%}; above raw and latents everywhere at "
        f"{above[KINDS[0]]} of {len(levels)} levels of preservation by strength, and at {above[KINDS[1]]} where each "
        "may leave images as they are."
    )


# -- what is written ------------------------------------------------------------------------------------------


def _rows(known: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    figures = ("success", "preserved", "both", "valid", "outside", "images")
    points = [(METHODS[name].label, each) for name, curve in found["curves"].items() for each in curve]
    points.append(("prompt replaced", found["chosen"][PROMPT]))
    return [{"known": known, "edit": name, "strength": p["factor"], **{f: p[f] for f in figures}} for name, p in points]


def _draw(options: Options, name: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """What each method changes and keeps, at every strength."""
    figure, axes = charts.panels(len(found), width=5.4, height=6.4)
    for axis, (known, each) in zip(axes, found.items(), strict=True):
        for i, (method, curve) in enumerate(each["curves"].items()):
            line = "--" if METHODS[method].raw else "-"
            style = {**charts.style(i), "linestyle": line, "linewidth": 1.4, "label": METHODS[method].label}
            if i >= len(charts.COLOURS):  # whose colours and markers come again
                style["markerfacecolor"] = "white"
            axis.plot([p["preserved"] for p in curve], [p["success"] for p in curve], **style)
        prompt = each["chosen"][PROMPT]
        axis.plot(prompt["preserved"], prompt["success"], "k*", markersize=9, label="prompt replaced")
        least = min(p["preserved"] for curve in each["curves"].values() for p in curve)
        axis.set(
            title=f"known: {known}", xlabel="all else kept", xlim=(min(0.5, least) - 0.02, 1.02), ylim=(-0.02, 1.04)
        )
        axis.legend(frameon=False, fontsize="x-small", loc="upper left", bbox_to_anchor=(0, -0.14))
    axes[0].set_ylabel("changed to the target")
    charts.save(figure, options.out / f"{name}.png")
