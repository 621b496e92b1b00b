"""Fig. 6 and section 6: every method of editing, its trade-off between change and preservation, and raw activations.

The protocol is that of :mod:`tide.studies.edit_study`, with a TIDE of each seed.
"""

from __future__ import annotations

from typing import Any

from tide.studies.compare import LEVELS
from tide.studies.edit_study import EditStudy, Sizes, say_chosen
from tide.studies.fig6_pictures import draw_curves, draw_gallery
from tide.studies.grid import run_cells
from tide.studies.methods import METHODS, RIVALS
from tide.studies.models import Models, model_cells
from tide.studies.options import Options, write_results
from tide.studies.paper_methods import PAPER
from tide.studies.tasks import EVERYTHING
from tide.studies.trial import PROMPT
from tide.tables import write_csv

DEFAULT = Sizes(16, 24, 16, ((0.0, 1.0), (0.0, 0.8)), 4, 384, 192, 3)
FAST = Sizes(2, 4, 1, ((0.0, 1.0),), 2, 48, 16, 1)


def reproduce(options: Options) -> str:
    """Runs the study into ``options.out`` and returns what was found."""
    sizes = FAST if options.fast else DEFAULT
    seeds = options.each_seed(sizes.seeds)
    models = Models.of_study(options)
    study = EditStudy(models.bench, models, sizes, tuple(PAPER))
    run_cells(model_cells(models, seeds, study.config), options.out, options.say)
    edits = study.run(seeds, options.out, options.say)
    found = edits.summary()
    say_chosen(found["chosen"], options.say)
    verdict = verdict_of(found["equal_preservation"], found["chosen"])
    described = {"seeds": seeds, "data": models.bench.config(), "training": models.config.to_dict()}
    write_results(options, "fig6", {**described, "sizes": vars(sizes), **found, "verdict": verdict})
    write_csv(options.out / "fig6.csv", _rows(found["curves"], found["chosen"][PROMPT]))
    draw_curves(options, found["curves"], found["chosen"][PROMPT])
    draw_gallery(options, edits, seeds[0])
    return verdict


def verdict_of(levels: dict[str, dict[str, Any]], chosen: dict[str, dict[str, Any]]) -> str:
    """One sentence from the numbers. ``levels``: each method at equal preservation; ``chosen``: at the strength that
    does best on development prompts."""
    raw_best = {level: max(row[name]["success"] for name in RIVALS["contrast"]) for level, row in levels.items()}
    above = sum(row["contrast"]["success"] > raw_best[level] for level, row in levels.items())
    level_with = sum(row["contrast"]["success"] >= raw_best[level] for level, row in levels.items())
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


def _rows(curves: dict[str, list[dict[str, Any]]], prompt: dict[str, Any]) -> list[dict[str, Any]]:
    figures = ("success", "preserved", "both", "valid", "outside", "images")
    rows = [
        {"strategy": METHODS[name].label, "knows": METHODS[name].knows, "edits": METHODS[name].tasks,
         "strength": each["factor"], **{f: each[f] for f in figures}}
        for name, curve in curves.items()
        for each in curve
    ]  # fmt: skip
    ceiling = {"strategy": "prompt replaced", "knows": "the target's prompt", "edits": EVERYTHING, "strength": 1.0}
    return [*rows, {**ceiling, **{f: prompt[f] for f in figures}}]
