"""Fig. 5: coarse to fine. Latents of consecutive steps, and of source and target, along the sampling run.

Held-out prompts are drawn, each beside its target: the same seed under the prompt with one attribute changed. At every
step the sparse latents are compared with those of the next step, and the source's with the target's, by cosine and mean
squared difference; so are the raw activations, as the baseline. The abrupt change is the deepest dip of the consecutive
cosines (:mod:`tide.interpretation.abrupt_change`). It is compared with when
the picture forms: the contours of the image that the model predicts at each step against those of the final image, and
the step from which on a judge reads each attribute as in the final image. The share of the active latents that belong
to each level of concepts is counted at every step; a latent's level is that of the concept whose masks it fits best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from tide import charts
from tide.interpretation.abrupt_change import abrupt_change
from tide.interpretation.atlas import label_latents
from tide.interpretation.concepts import mean_latents
from tide.interpretation.timesteps import spread_timesteps
from tide.interpretation.trajectory import (
    Change,
    active_shares,
    raw_step_changes,
    record_trajectory,
    run_distances,
    step_changes,
)
from tide.sae.model import TIDE
from tide.scenes.annotate import N_SAMPLING_STEPS, annotated_scenes, generate_latents
from tide.scenes.scene import ATTRIBUTES, CONCEPTS, LEVEL_OF, scenes
from tide.studies.emergence import emergence
from tide.studies.grid import Result
from tide.studies.models import Models, SeedStudy
from tide.studies.options import Options, write_results
from tide.studies.tasks import DRAW_BATCH, EditTask, tasks_of
from tide.tables import known, mean, spread, write_csv

LEVELS = (*CONCEPTS, "other")
#: The abrupt change and the contours' rise coincide if they are at most so many steps apart.
NEAR = 2


@dataclass(frozen=True)
class Sizes:
    prompts: int
    level_images: int
    level_timesteps: int
    seeds: int


DEFAULT = Sizes(prompts=64, level_images=192, level_timesteps=10, seeds=3)
FAST = Sizes(prompts=8, level_images=32, level_timesteps=2, seeds=1)


@dataclass
class TrajectoryStudy(SeedStudy):
    """What the cells of all seeds share."""

    sizes: Sizes

    def tasks(self, seed: int) -> list[EditTask]:
        return tasks_of("test", self.sizes.prompts, seed + 5)

    def levels(self, model: TIDE, seed: int) -> torch.Tensor:
        """The index in :data:`LEVELS` of every latent, by training scenes at timesteps of the whole run."""
        items = list(scenes("train", self.sizes.level_images, seed + 6))
        timesteps = spread_timesteps(self.bench.adapter, self.sizes.level_timesteps)
        data = annotated_scenes(self.bench.adapter, items, [self.bench.block], timesteps)[self.bench.block]
        masks = {concept: mask.flatten() for concept, mask in data.masks.items()}
        labels = label_latents(mean_latents(model, data), masks, LEVEL_OF)
        return torch.tensor([LEVELS.index(label.level if label else "other") for label in labels])

    def seconds(self, seed: int) -> float:
        return self.models.seconds(seed) + 60 * self.sizes.prompts / DEFAULT.prompts

    def measure(self, seed: int) -> Result:
        model = self.models.of(seed)
        level, tasks = self.levels(model, seed), self.tasks(seed)
        parts = [self._batch(model, level, tasks[i : i + DRAW_BATCH]) for i in range(0, len(tasks), DRAW_BATCH)]
        weights = [len(part["contour step"]) for part in parts]
        shares = np.average([part.pop("shares") for part in parts], axis=0, weights=weights)
        joined: Result = {}
        for name in parts[0]:
            values = [part[name] for part in parts]
            if isinstance(values[0], dict):
                joined[name] = {key: np.concatenate([v[key] for v in values], axis=-1).tolist() for key in values[0]}
            else:
                joined[name] = np.concatenate(values, axis=-1).tolist()
        timesteps = self.bench.adapter.sampling_timesteps(N_SAMPLING_STEPS).tolist()
        named = [int((level == i).sum()) for i in range(len(LEVELS))]
        return {
            **joined,
            "timesteps": timesteps,
            "shares": shares.tolist(),
            "latents of level": dict(zip(LEVELS, named, strict=True)),
        }

    def _batch(self, model: TIDE, level: torch.Tensor, tasks: list[EditTask]) -> dict[str, Any]:
        """Figures ``[steps, images]`` of one batch of tasks."""
        adapter, seeds = self.bench.adapter, [task.seed for task in tasks]
        source, target = (
            record_trajectory(adapter, model, partial(generate_latents, adapter, prompts, seeds))
            for prompts in ([t.caption for t in tasks], [t.target_prompt for t in tasks])
        )
        images = torch.stack([adapter.decode_latents(step) for step in source.clean])
        formed = emergence(self.judge, images, adapter.decode_latents(source.final))

        def curves(change: Change) -> dict[str, list[list[float]]]:
            return {"cosine": change.cosine.tolist(), "mse": change.mse.tolist()}

        return {
            "latents": curves(step_changes(source)),
            "raw": curves(raw_step_changes(source)),
            "target": curves(run_distances(source, target)),
            "contours": formed.likeness.tolist(),
            "contour step": formed.contour_step.tolist(),
            "settled": formed.settled,
            "agrees": {name: table.float().tolist() for name, table in formed.agrees.items()},
            "shares": active_shares(source, level, len(LEVELS)).tolist(),
        }

    def example(self, seed: int, task: EditTask) -> torch.Tensor:
        """The images predicted at each step, ``[2, steps, 3, 64, 64]``, of the task's source and target."""
        adapter = self.bench.adapter
        prompts, model = [task.caption, task.target_prompt], self.models.of(seed)
        run = record_trajectory(adapter, model, partial(generate_latents, adapter, prompts, [task.seed] * 2))
        return torch.stack([adapter.decode_latents(step) for step in run.clean], dim=1)


def reproduce(options: Options) -> str:
    """Runs the study into ``options.out`` and returns what was found."""
    sizes = FAST if options.fast else DEFAULT
    seeds = options.each_seed(sizes.seeds)
    study = TrajectoryStudy(Models.of_study(options), sizes)
    return _report(options, study, study.run(seeds, options), seeds)


# -- what is read off the curves --------------------------------------------------------------------------


@dataclass(frozen=True)
class Abrupt:
    """The abrupt change of a seed's mean curve and of each image's curve, as the number of the step after it (None: no
    dip), and the strength of the former."""

    step: int | None
    strength: float
    each: list[int | None]


def abrupt_of(curve: list[list[float]]) -> Abrupt:
    """From ``curve [steps - 1, images]``, where row i compares steps i and i + 1."""
    table = np.asarray(curve)
    found, *each = (abrupt_change(values) for values in (table.mean(1).tolist(), *table.T.tolist()))
    steps = [None if dip is None else dip.index + 1 for dip in (found, *each)]
    return Abrupt(steps[0], 0.0 if found is None else found.strength, steps[1:])


def verdict_of(changes: list[Abrupt], results: list[Result]) -> str:
    """One sentence from the numbers."""
    steps = len(results[0]["timesteps"])
    contour = [int(s) for r in results for s in r["contour step"]]
    each = [s for change in changes for s in change.each]
    near = mean([float(a is not None and abs(a - b) <= NEAR) for a, b in zip(each, contour, strict=True)])
    settled = {name: median([s for r in results for s in r["settled"][name]]) for name in ATTRIBUTES}
    order = sorted(settled, key=lambda name: settled[name])
    apart = (
        [float(np.mean(r["target"]["cosine"][0])) for r in results],
        [float(np.mean(r["target"]["cosine"][-1])) for r in results],
    )
    dips = known([change.step for change in changes])
    found = (
        f"The cosine of consecutive latents dips before step {median(dips):g} of {steps} (by "
        f"{mean([c.strength for c in changes]):.0%} of its range, in {len(dips)} of {len(changes)} seeds)"
        if dips
        else "The cosine of consecutive latents has no dip"
    )
    return (
        f"{found}, the predicted image's contours have half risen at step {median(contour):g}, within {NEAR} steps of "
        f"its own dip in {near:.0%} of the images; the judge's reading settles from {order[0]} (median step "
        f"{settled[order[0]]:g}) to {order[-1]} ({settled[order[-1]]:g}), and source and target drift from a cosine of "
        f"{mean(apart[0]):.3f} at the first step to {mean(apart[1]):.3f} at the last."
    )


def median(values: list[int]) -> float:
    return float(np.median(values))


# -- results ----------------------------------------------------------------------------------------------


def _report(options: Options, study: TrajectoryStudy, results: list[Result], seeds: list[int]) -> str:
    changes = [abrupt_of(r["latents"]["cosine"]) for r in results]
    raw_changes = [abrupt_of(r["raw"]["cosine"]) for r in results]
    for seed, found, raw in zip(seeds, changes, raw_changes, strict=True):
        options.say(
            f"Seed {seed}: consecutive cosine of latents dips before step {found.step} (strength "
            f"{found.strength:.2f}), of raw activations before step {raw.step} ({raw.strength:.2f})."
        )
    verdict = verdict_of(changes, results)
    table = _rows(results, seeds)
    write_results(
        options,
        "fig5",
        {
            "seeds": seeds,
            "data": study.bench.config(),
            "training": study.models.config.to_dict(),
            "sizes": vars(study.sizes),
            "abrupt": [vars(change) for change in changes],
            "raw_abrupt": [vars(change) for change in raw_changes],
            "contour_step": [r["contour step"] for r in results],
            "settled": [r["settled"] for r in results],
            "latents_of_level": [r["latents of level"] for r in results],
            "curves": table,
            "verdict": verdict,
        },
    )
    write_csv(options.out / "fig5.csv", table)
    tasks = study.tasks(seeds[0])
    task = next((t for t in tasks if t.attribute == "class"), tasks[0])
    _draw(options, study, task, seeds[0], results, changes)
    return verdict


def _curves(result: Result) -> dict[str, np.ndarray]:
    """Name -> ``[steps or steps - 1, images]``."""
    named = {
        f"{what} {figure}": np.asarray(result[what][figure])
        for what in ("latents", "raw", "target")
        for figure in ("cosine", "mse")
    }
    named["contours"] = np.asarray(result["contours"])
    return named | {f"{name} reads as at the end": np.asarray(result["agrees"][name]) for name in ATTRIBUTES}


def _rows(results: list[Result], seeds: list[int]) -> list[dict[str, Any]]:
    """For each curve and step the mean over images, and its spread over seeds."""
    tables = [_curves(result) for result in results]
    rows: list[dict[str, Any]] = []
    for name in tables[0]:
        for step in range(len(tables[0][name])):
            values = [float(table[name][step].mean()) for table in tables]
            rows.append({"curve": name, "step": step, "mean": mean(values), "spread": spread(values)})
    for i, level in enumerate(LEVELS):
        for step in range(len(results[0]["shares"])):
            values = [float(r["shares"][step][i]) for r in results]
            rows.append({"curve": f"share of {level}", "step": step, "mean": mean(values), "spread": spread(values)})
    return [{**row, "seeds": len(seeds)} for row in rows]


def _draw(
    options: Options, study: TrajectoryStudy, task: EditTask, seed: int, results: list[Result], changes: list[Abrupt]
) -> None:
    predicted = study.example(seed, task)
    pictures = ((predicted.permute(0, 1, 3, 4, 2) + 1) / 2).clamp(0, 1).numpy()
    steps = pictures.shape[1]
    figure, strip, axes = charts.strip_over_panels(2, steps, 4)
    for row, label in enumerate((f"“{task.source}”", f"“{task.target}”")):
        charts.pictures(strip, pictures[row], row)
        strip.text(-0.7, 0.5 - row, label, ha="right", va="center", fontsize="small")
    pooled = {name: np.concatenate([_curves(r)[name] for r in results], axis=1) for name in _curves(results[0])}
    dips = known([change.step for change in changes])
    at = median(dips) - 0.5 if dips else math.nan  # nothing is drawn at NaN
    between = np.arange(steps - 1) + 0.5
    for axis, figure_name, title in (
        (axes[0], "cosine", "cosine of consecutive steps"),
        (axes[1], "mse", "difference of consecutive steps"),
    ):
        for i, what in enumerate(("latents", "raw")):
            charts.band(axis, between, pooled[f"{what} {figure_name}"], charts.COLOURS[i], what)
        axis.axvline(at, color="black", linewidth=0.9, linestyle="--")
        axis.set(title=title, xlabel="step")
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False, fontsize="small")
    if dips:
        axes[0].text(at + 0.2, axes[0].get_ylim()[1], "abrupt change", fontsize="x-small", va="top")
    charts.band(axes[2], np.arange(steps), pooled["target cosine"], charts.COLOURS[2], "source and target, cosine")
    charts.band(axes[2], np.arange(steps), pooled["contours"], charts.COLOURS[4], "contours, likeness to the final")
    axes[2].axvline(at, color="black", linewidth=0.9, linestyle="--")
    axes[2].set(title="source against target; contours", xlabel="step")
    axes[2].legend(frameon=False, fontsize="small")
    shares = np.mean([r["shares"] for r in results], axis=0)
    colours = [*charts.COLOURS[: len(LEVELS) - 1], "#eeeeee"]
    axes[3].stackplot(np.arange(steps), shares.T, labels=LEVELS, colors=colours)
    axes[3].set(title="active latents by level of their concept", xlabel="step", ylim=(0, 1.3))
    axes[3].set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes[3].legend(frameon=False, fontsize="x-small", ncols=3, loc="upper center")
    charts.whole_numbers(*axes)
    charts.save(figure, options.out / "fig5.png")
    figure, panels = charts.panels(1, width=6.4)
    order = sorted(ATTRIBUTES, key=lambda n: -float(pooled[f"{n} reads as at the end"].mean()))
    for i, name in enumerate(order):
        curve = pooled[f"{name} reads as at the end"].mean(1)
        panels[0].plot(np.arange(steps), curve, label=name, **charts.style(i))
    panels[0].set(xlabel="step", ylabel="share of images read as at the end", ylim=(0, 1.02))
    panels[0].axvline(at, color="black", linewidth=0.9, linestyle="--")
    charts.whole_numbers(*panels)
    panels[0].legend(frameon=False, fontsize="small")
    charts.save(figure, options.out / "fig5-settling.png")
