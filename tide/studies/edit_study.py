"""The edits of ``tide evaluate``: blocks, step ranges and strengths chosen on development prompts, measured on test.

Each group of methods is given the same knowledge of the target (:mod:`tide.studies.methods`), so that within a group
only the SAE differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tide.activations import collect
from tide.activations.memory import ActivationPool
from tide.adapters import Adapter
from tide.sae.model import TIDE
from tide.scenes import scene as scene_module
from tide.scenes.judge import Judge, Verdict
from tide.scenes.scene import ATTRIBUTES, Split
from tide.studies.levels import best, equal_preservation, paired
from tide.studies.methods import Contrasts, Methods, References, Steps, scene_profiles, target_prompt
from tide.studies.reconstruction import prepared_scenes, train
from tide.studies.references import LayoutProbe, reference_scenes
from tide.studies.tasks import DRAW_BATCH, EditOutcome, EditTask, Method, draw, edit_tasks, judge_edits, summarise
from tide.training import TrainConfig, is_trained

#: Strengths of each method.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "contrast": (0.5, 1.0, 1.5, 2.0, 3.0),
    "steer contrast": (0.5, 1.0, 1.25, 1.5, 2.0),
    "steer bounded": (1.0, 1.5, 2.0, 3.0),
    "towards": (0.75, 1.0),
    "steer towards": (0.75, 1.0),
    "swap": (1.0, 2.0),
    "steer": (0.25, 0.5),
}

#: Methods that know one reference image; the first is the one of latents.
BY_REFERENCE = ("contrast", "steer contrast", "steer bounded")

#: The strength at which block and step range are chosen.
SWEPT: dict[str, float] = {
    "contrast": 1.5,
    "steer contrast": 1.5,
    "steer bounded": 1.5,
    "towards": 1.0,
    "steer towards": 1.0,
    "swap": 2.0,
    "steer": 0.5,
}
STEP_RANGES: tuple[tuple[float, float], ...] = ((0.0, 1.0), (0.3, 1.0), (0.0, 0.8))


@dataclass(frozen=True)
class EditSizes:
    """How much the edit stages take. ``blocks`` count from the SAE's own backwards."""

    sweep_prompts: int = 20
    test_prompts: int = 100
    blocks: tuple[int, ...] = (0, 1, 2)
    train_images: int = 640
    train_steps: int = 500
    probe_images: int = 384
    profile_images: int = 192
    more_references: int = 4
    step_ranges: tuple[tuple[float, float], ...] = STEP_RANGES


FAST = EditSizes(2, 2, (0, 1), 64, 4, 32, 16, 2, STEP_RANGES[:1])


def tasks_of(split: Split, n: int, seed: int) -> list[EditTask]:
    """``n`` prompts, each edited in one attribute, the attributes taking turns."""
    pairs = scene_module.prompts(split, n, seed)
    turns = len(ATTRIBUTES)
    return [
        task
        for turn, attribute in enumerate(ATTRIBUTES)
        for task in edit_tasks(pairs[turn::turns], attribute, seed * turns + turn)
    ]


def block_models(
    adapter: Adapter, model: TIDE, blocks: list[int], out: Path, sizes: EditSizes, seed: int
) -> dict[int, TIDE]:
    """The SAE itself and one of its shape for every other block: loaded from ``out`` if trained there before."""
    found = {_own_block(adapter, model): model}
    config = TrainConfig(
        modulation=model.modulation is not None,
        n_latents=model.n_latents,
        k=model.config.k,
        steps=sizes.train_steps,
        checkpoint_every=sizes.train_steps,
        seed=seed,
        centre=model.config.centre,
    )
    others = [block for block in blocks if block not in found]
    for block in [block for block in others if is_trained(out / f"block-{block}", config)]:
        folder = out / f"block-{block}"
        found[block] = TIDE.from_pretrained(folder, family=adapter.family, d_model=adapter.d_model, block=block)
    if missing := [block for block in others if block not in found]:
        prepared = prepared_scenes(adapter, scene_module.prompts("train", sizes.train_images, seed))
        passes = list(collect(adapter, prepared, missing, token_fraction=0.5, batch_size=32, seed=seed))
        for block in missing:
            pool = ActivationPool((batch[block] for batch in passes), config.batch_tokens, seed=seed)
            folder = out / f"block-{block}"
            found[block] = train(adapter, block, config, pool, folder, progress=False, resume=False).model
    return {block: found[block] for block in blocks}


def _own_block(adapter: Adapter, model: TIDE) -> int:
    return adapter.resolve_block("penultimate" if model.config.block is None else model.config.block)


@dataclass
class Trial:
    """Tasks of one split with their unedited images judged and their reference images chosen."""

    tasks: list[EditTask]
    before: list[Verdict]
    layouts: torch.Tensor
    outcomes: dict[str, list[EditOutcome]] = field(default_factory=dict)

    @classmethod
    def of(cls, adapter: Adapter, judge: Judge, probe: LayoutProbe, tasks: list[EditTask]) -> Trial:
        images, layouts = probe.draw(adapter, tasks)
        return cls(tasks, judge.read(images), layouts)

    def references(self, n: int = 1) -> References:
        return {task: reference_scenes(task, at, n) for task, at in zip(self.tasks, self.layouts, strict=True)}

    def run(self, adapter: Adapter, judge: Judge, methods: dict[str, Method | None]) -> None:
        """Judges every method on every task; ``None`` is prompt replacement."""
        read: dict[str, list[Verdict]] = {name: [] for name in methods}
        for start in range(0, len(self.tasks), DRAW_BATCH):  # all methods on one batch: they share its recordings
            part = self.tasks[start : start + DRAW_BATCH]
            for name, method in methods.items():
                swapped = None if method else [target_prompt(t) for t in part]
                read[name] += judge.read(draw(adapter, part, method, prompts=swapped))
        for name, after in read.items():
            self.outcomes[name] = judge_edits(self.tasks, self.before, after)

    def summary(self, name: str) -> dict[str, Any]:
        found = self.outcomes[name]
        return {
            **summarise(found),
            "attributes": {
                attribute: summarise([o for o in found if o.task.attribute == attribute])
                for attribute in ATTRIBUTES
                if any(t.attribute == attribute for t in self.tasks)
            },
        }


@dataclass(frozen=True)
class Point:
    """One setting of a method."""

    method: str
    block: int
    steps: tuple[float, float]
    factor: float

    @property
    def name(self) -> str:
        first, last = self.steps
        return f"{self.method}, block {self.block}, steps {first:g}-{last:g}, x{self.factor:g}"

    def make(self, books: dict[int, Methods]) -> Method:
        book = books[self.block]
        made: Callable[[float, Steps], Method] = getattr(book, self.method.replace(" ", "_"))
        return made(self.factor, self.steps)

    @classmethod
    def of(cls, method: str, setting: dict[str, Any]) -> Point:
        first, last = setting["steps"]
        return cls(method, setting["block"], (first, last), setting["factor"])

    @property
    def setting(self) -> dict[str, Any]:
        return {"block": self.block, "steps": list(self.steps), "factor": self.factor}

    def row(self, trial: Trial) -> dict[str, Any]:
        return {"method": self.method, **self.setting, **trial.summary(self.name)}


class EditStudy:
    """An SAE of each block, the layout probe and the concepts' means; then the sweep, then the measurement."""

    def __init__(
        self, adapter: Adapter, judge: Judge, model: TIDE, saes: Path, sizes: EditSizes, *, seed: int = 0
    ) -> None:
        self.adapter, self.judge, self.sizes, self.seed = adapter, judge, sizes, seed
        self.own = _own_block(adapter, model)
        self.blocks = [self.own - back for back in sizes.blocks if self.own >= back]
        self.models = block_models(adapter, model, self.blocks, saes, sizes, seed)
        self.probe = LayoutProbe.fit(adapter, self.own, n_images=sizes.probe_images, seed=seed)
        self.profiles = scene_profiles(adapter, model, n_images=sizes.profile_images, seed=seed)

    def _books(self, references: References, blocks: Iterable[int]) -> dict[int, Methods]:
        at = sorted(set(blocks))
        contrasts = Contrasts(self.adapter, tuple(at), references, self.seed)
        return {block: Methods(self.adapter, self.models[block], self.profiles, contrasts) for block in at}

    def _trial(self, split: Split, n: int, seed: int) -> Trial:
        return Trial.of(self.adapter, self.judge, self.probe, tasks_of(split, n, seed))

    def sweep(self) -> dict[str, Any]:
        """Of every method, on development prompts, the best block and step range, then the best strength there.

        Methods that know the target's own recording, or its mean, stay at the SAE's own block. What the methods that
        know one reference image do with more of them is measured, not chosen.
        """
        trial = self._trial("dev", self.sizes.sweep_prompts, self.seed + 3)
        books = self._books(trial.references(), self.blocks)
        chosen: dict[str, Point] = {}
        tried: list[Point] = []

        def run(points: list[Point]) -> None:
            fresh = [point for point in points if point.name not in trial.outcomes]
            trial.run(self.adapter, self.judge, {point.name: point.make(books) for point in fresh})
            tried.extend(fresh)

        for method, strengths in STRENGTHS.items():
            blocks = self.blocks if method in BY_REFERENCE else [self.own]
            swept = [Point(method, b, steps, SWEPT[method]) for steps in self.sizes.step_ranges for b in blocks]
            run(swept)
            at = best(swept, lambda point: trial.summary(point.name))
            curve = [Point(method, at.block, at.steps, factor) for factor in strengths]
            run(curve)
            chosen[method] = best(curve, lambda point: trial.summary(point.name))
        found = {
            "points": [point.row(trial) for point in tried],
            "chosen": {name: point.setting for name, point in chosen.items()},
            "images": len(trial.tasks),
        }
        more = [chosen[method] for method in BY_REFERENCE]
        books = self._books(trial.references(self.sizes.more_references), [point.block for point in more])
        trial.run(self.adapter, self.judge, {point.name: point.make(books) for point in more})
        rows = [point.row(trial) for point in more]
        return {"edit_sweep": found | {"more_references": {"n": self.sizes.more_references, "points": rows}}}

    def measure(self, sweep: dict[str, Any]) -> dict[str, Any]:
        """Every strength of every method on test prompts, at the block and steps that :meth:`sweep`, whose
        ``"edit_sweep"`` is given, chose; at equal preservation, too, the strengths are those of development prompts."""
        trial = self._trial("test", self.sizes.test_prompts, self.seed + 4)
        at = {method: Point.of(method, setting) for method, setting in sweep["chosen"].items()}
        books = self._books(trial.references(), [point.block for point in at.values()])
        curves = {m: [Point(m, p.block, p.steps, f) for f in STRENGTHS[m]] for m, p in at.items()}
        methods = {point.name: point.make(books) for points in curves.values() for point in points}
        trial.run(self.adapter, self.judge, {**methods, "prompt": None})
        rows = {method: [point.row(trial) for point in points] for method, points in curves.items()}
        ours = trial.outcomes[at[BY_REFERENCE[0]].name]
        tried = {(row["method"], row["block"], tuple(row["steps"]), row["factor"]): row for row in sweep["points"]}
        development = {m: [tried[m, p.block, p.steps, f] for f in STRENGTHS[m]] for m, p in at.items()}
        return {
            "trade_off": {**rows, "prompt": trial.summary("prompt")},
            "equal_preservation": equal_preservation(rows, development),
            "paired": {method: paired(ours, trial.outcomes[at[method].name]) for method in BY_REFERENCE[1:]},
        }
