"""Figures of the study of sparsity from the results of its cells, as far as these are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from torch import Tensor

from tide.evaluation.statistics import mean_interval
from tide.files import read_tensors
from tide.studies.compare import at_l0
from tide.studies.features import PROBED
from tide.studies.grid import Result
from tide.studies.sparsity_edits import both
from tide.studies.sparsity_settings import (
    BASELINES,
    MODELS,
    TRAINED,
    Model,
    Sizes,
    cell_name,
    dictionary_path,
    edit_name,
)
from tide.tables import known, mean, spread

#: The number of features of the probes by which the default is chosen, and the share of the loss that it must recover.
PROBE, LEAST = 5, 0.98
#: A run whose L0 is this close to a target, relatively, counts as being there.
NEAR = 0.05
#: Cosine from which a decoder's row counts as the same latent.
SAME = 0.9

#: Figure -> what falls to zero as latents are added, for :func:`~tide.studies.compare.at_l0`: 1 minus it, or itself.
SHARES = (
    "recovered",
    "recovered dev",
    "cosine",
    "auroc",
    "iou",
    *(f"probe {m}{d}" for m in PROBED for d in ("", " dev")),
)
ERRORS = ("mse", "dead")
FIGURES = (*SHARES, *ERRORS)


def figures_of(result: Result) -> dict[str, float]:
    """The figures of a cell; of concepts the mean."""
    found: dict[str, float] = {name: result["held_out"][name] for name in ("mse", "cosine")}
    found |= {name: result["held_out"][name] for name in ("l0", "dead") if name in result["held_out"]}
    if "diffusion" in result:
        found |= {"recovered": result["diffusion"]["test"]["recovered"]}
        found |= {"recovered dev": result["diffusion"]["dev"]["recovered"]}
    return found | (concept_figures(result["concepts"]) if "concepts" in result else {})


def concept_figures(concepts: Mapping[str, Any]) -> dict[str, float]:
    """Means over the concepts that are known."""
    rows = list(concepts.values())
    found = {name: mean([row[name] for row in rows]) for name in ("auroc", "iou")}
    for m in PROBED:
        found[f"probe {m}"] = mean([row["probes"][str(m)]["test"] for row in rows])
        found[f"probe {m} dev"] = mean(known(row["probes"][str(m)]["dev"] for row in rows))
    return found


def of_concepts(results: Sequence[Result], figure: str) -> list[float]:
    """A figure of each concept on test scenes, the mean of ``results``."""
    if not results:
        return []

    def value(row: Mapping[str, Any]) -> float:
        return float(
            row["probes"][figure.removeprefix("probe ")]["test"] if figure.startswith("probe") else row[figure]
        )

    return [mean([value(result["concepts"][concept]) for result in results]) for concept in results[0]["concepts"]]


def paired_margin(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any] | None:
    """The mean of the differences, its 95 % interval (of Student's t), and in how many of them ours is ahead."""
    if not ours or len(ours) != len(theirs):
        return None
    apart = [a - b for a, b in zip(ours, theirs, strict=True)]
    ahead = sum(each > 0 for each in apart)
    return {"margin": mean(apart), "interval": list(mean_interval(apart)), "ahead": ahead, "of": len(apart)}


def repeated(rows: Tensor, others: Tensor) -> float:
    """The share of unit ``rows [n, d]`` with a cosine of at least :data:`SAME` to one of ``others``."""
    return float(((rows.float() @ others.float().T).amax(1) >= SAME).float().mean()) if len(others) else 0.0


@dataclass(frozen=True)
class Found:
    """What the study has found: results by cell, and the names of cells that are missing."""

    sizes: Sizes
    seeds: list[int]
    results: dict[str, Result]
    missing: list[str]
    out: Path

    def runs(self, model: Model, k: int, *, longer: bool = False) -> dict[int, Result]:
        """Seed -> the result of one setting."""
        named = {seed: cell_name(model.name, k, seed, longer=longer) for seed in self.seeds}
        return {seed: self.results[name] for seed, name in named.items() if name in self.results}

    def setting(self, model: Model, k: int, *, longer: bool = False) -> dict[str, Any]:
        """Figure -> its mean and standard deviation over the seeds that are there."""
        rows = [figures_of(result) for result in self.runs(model, k, longer=longer).values()]
        if not rows:
            return {}
        found: dict[str, Any] = {"seeds": len(rows)}
        for name in rows[0]:
            values = [row[name] for row in rows]
            found |= {name: mean(values), f"{name} ±": spread(values)}
        return found

    def settings(self) -> dict[str, dict[str, Any]]:
        """:meth:`setting` of each that is there, by its name."""
        grid = [(model, k) for model in MODELS.values() for k in self.sizes.l0]
        return {f"{model.name} {k}": found for model, k in grid if (found := self.setting(model, k))}

    def at_target(self, model: Model, target: int, figure: str) -> list[float | None]:
        """A figure at ``target`` active latents for each seed: that of the setting whose L0 is there, or between the
        settings around it."""
        return [self._at(model, target, figure, seed) for seed in self.seeds]

    def _at(self, model: Model, target: int, figure: str, seed: int) -> float | None:
        runs = [self.runs(model, k).get(seed) for k in self.sizes.l0]
        rows = [row for row in map(figures_of, known(runs)) if figure in row]
        near = [row for row in rows if abs(row["l0"] - target) <= NEAR * target]
        if near:
            return min(near, key=lambda row: abs(row["l0"] - target))[figure]
        falling = [1 - row[figure] if figure in SHARES else row[figure] for row in rows]
        found = at_l0([row["l0"] for row in rows], falling, target)
        return None if found is None else 1 - found if figure in SHARES else found

    def table(self) -> dict[str, dict[str, dict[str, list[float | None]]]]:
        """Model -> target -> figure -> seeds."""
        return {
            name: {str(t): {f: self.at_target(model, t, f) for f in FIGURES} for t in self.sizes.l0}
            for name, model in MODELS.items()
        }

    # -- the rule of docs/method.md -------------------------------------------------------------------------

    def chosen(self) -> dict[str, Any] | None:
        """The setting that the rule of docs/method.md makes the default; None where none qualifies."""
        score, rows = f"probe {PROBE} dev", []
        for model in TRAINED:
            for k in self.sizes.l0:
                found = self.setting(model, k)
                if found and found["recovered dev"] >= LEAST:
                    rows.append({"model": model.name, "k": k, **found})
        if not rows:
            return None
        top = max(rows, key=lambda row: float(row[score]))
        equal = [row for row in rows if row[score] > top[score] - top[f"{score} ±"] or row is top]
        return min(equal, key=lambda row: float(row["l0"]))

    # -- dictionaries ---------------------------------------------------------------------------------------

    def stability(self) -> dict[str, dict[str, Any]]:
        """Setting -> the share of the latents that fire which another seed finds again, a pair of seeds each."""
        found = {}
        for model in MODELS.values():
            for k in self.sizes.l0:
                paths = [dictionary_path(self.out, cell_name(model.name, k, seed)) for seed in self.seeds]
                rows = [read_tensors(path)["rows"] for path in paths if path.is_file()]
                shares = [repeated(a, b) for a, b in permutations(rows, 2)]
                if shares:
                    sizes = [len(each) for each in rows]
                    found[f"{model.name} {k}"] = {"share": mean(shares), "pairs": shares, "firing": sizes}
        return found

    # -- margins --------------------------------------------------------------------------------------------

    def margins(self) -> list[dict[str, Any]]:
        """Of every trained setting over every baseline at the same place of the grid: reconstruction by seeds, probing
        and localisation by concepts, edits by tasks."""
        rows = [
            {"model": model.name, "k": k, "baseline": name, "figure": figure, **margin}
            for model in TRAINED
            for k in self.sizes.l0
            for name in (*(b.name for b in BASELINES), "neurons", "PCA")
            for figure in ("recovered", f"probe {PROBE}", "auroc", "iou")
            if (margin := self._margin(model, k, name, figure)) is not None
        ]
        return rows + self._edit_margins()

    def _margin(self, model: Model, k: int, baseline: str, figure: str) -> dict[str, Any] | None:
        ours, theirs = self.runs(model, k), self._baseline(baseline, k)
        if figure != "recovered":
            return paired_margin(*(of_concepts(list(each.values()), figure) for each in (ours, theirs)))
        pairs = [(ours[seed], theirs[seed]) for seed in ours if "diffusion" in theirs.get(seed, {})]
        return paired_margin(*([figures_of(pair[i])["recovered"] for pair in pairs] for i in (0, 1)))

    def _baseline(self, name: str, k: int) -> dict[int, Result]:
        """Raw neurons and components are the same for every seed."""
        if name in MODELS:
            return self.runs(MODELS[name], k)
        raw = self.results.get(name)
        if raw is None:
            return {}
        result = {**raw["k"][str(k)], "concepts": raw["concepts"]}
        return {seed: result for seed in self.seeds}

    def edited(self, name: str) -> dict[tuple[int, int], float]:
        """(seed, task) -> 1 where the edit reached its target and kept all else, else 0."""
        cells = {seed: self.results.get(edit_name(name, seed)) for seed in self.seeds}
        return {
            (seed, task): value for seed, found in cells.items() if found for task, value in both(found["rows"]).items()
        }

    def _edit_margins(self) -> list[dict[str, Any]]:
        rivals = (*(model.name for model in BASELINES), "raw")
        pairs = [(model.name, rival) for model in TRAINED for rival in rivals]
        rows = []
        for name, rival in pairs:
            ours, theirs = self.edited(name), self.edited(rival)
            shared = sorted(ours.keys() & theirs.keys())
            margin = paired_margin([ours[task] for task in shared], [theirs[task] for task in shared])
            if margin is not None:
                rows.append({"model": name, "k": None, "baseline": rival, "figure": "edits", **margin})
        return rows
