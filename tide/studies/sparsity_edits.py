"""Edits by contrast with a given dictionary, judged: how often the target appears and all else stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tide.sae.model import TIDE
from tide.scenes.judge import Judge, load_judge
from tide.scenes.scene import Split
from tide.studies.bench import Bench
from tide.studies.compare import best
from tide.studies.edit_study import DEVELOPMENT
from tide.studies.grid import Result
from tide.studies.kept import kept
from tide.studies.methods import METHODS
from tide.studies.references import LayoutProbe
from tide.studies.tasks import EditOutcome, summarise, tasks_of
from tide.studies.trial import Setting, Trial

#: The contrast of latents, and those of raw activations that know the same.
LATENTS, RAW = ("contrast",), ("steer contrast", "steer bounded")


@dataclass(frozen=True)
class EditSizes:
    """Tasks of each seed, at most :data:`~tide.studies.tasks.DRAW_BATCH` of either split, and images of the probe that
    finds the edited object's place."""

    dev: int = 16
    test: int = 32
    probe_images: int = 384


@dataclass
class ContrastEdits:
    """Edits of scenes with latents of any model; the strength is chosen on development prompts."""

    bench: Bench
    sizes: EditSizes
    judge: Judge = field(default_factory=load_judge)

    @cached_property
    def probe(self) -> LayoutProbe:
        bench = self.bench
        if bench.folder is None:
            return self._fitted()
        config = {**bench.config(), **asdict(self.sizes)}
        found = kept(bench.folder / "layout-probe.safetensors", config, self._tensors)
        return LayoutProbe(bench.block, **found)

    def _fitted(self) -> LayoutProbe:
        bench = self.bench
        return LayoutProbe.fit(bench.adapter, bench.block, n_images=self.sizes.probe_images, seed=bench.seed)

    def _tensors(self) -> dict[str, Tensor]:
        probe = self._fitted()
        return {"weight": probe.weight, "mean": probe.mean, "offset": probe.offset}

    def measure(self, model: TIDE, methods: Sequence[str], seed: int) -> Result:
        """The outcomes of the test prompts of ``seed`` by the method and strength that does best on development
        prompts: ``rows`` of task, changed, kept and valid, where the unedited image shows the source."""
        trial = self._trial(model, "dev", seed)
        tried = [Setting(name, factor) for name in methods for factor in METHODS[name].strengths]
        outcomes = {setting: summarise(_outcomes(trial, setting)) for setting in tried}
        chosen = best(tried, outcomes.__getitem__)
        trial = self._trial(model, "test", seed)
        place = {task: i for i, task in enumerate(trial.tasks)}
        rows = [[place[o.task], o.changed, o.kept, o.valid] for o in _outcomes(trial, chosen)]
        return {"method": chosen.method, "factor": chosen.factor, "development": outcomes[chosen], "rows": rows}

    def _trial(self, model: TIDE, split: Split, seed: int) -> Trial:
        n, first = (self.sizes.test, seed) if split == "test" else (self.sizes.dev, seed + DEVELOPMENT)
        return Trial.of(self.bench.adapter, model, tasks_of(split, n, first), self.judge, self.probe, seed=seed)


@torch.no_grad()
def _outcomes(trial: Trial, setting: Setting) -> list[EditOutcome]:
    return trial.outcomes(trial.draw(setting))


def both(rows: Sequence[Sequence[Any]]) -> dict[int, float]:
    """Task -> 1 where the target appeared and all else stayed, else 0."""
    return {int(task): float(changed and stayed) for task, changed, stayed, _ in rows}
