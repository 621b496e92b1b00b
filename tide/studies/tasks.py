"""Edits of single prompts, judged: did the target change, was everything else kept, is it still a scene."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.evaluation.statistics import wilson_interval
from tide.scenes.annotate import generate_images
from tide.scenes.judge import Verdict
from tide.scenes.scene import ATTRIBUTES, Scene, Split, prompts, with_articles


@dataclass(frozen=True)
class EditTask:
    """Change one attribute of a scene: its prompt, its sampling seed, and the value to reach."""

    scene: Scene
    caption: str
    seed: int
    attribute: str
    target: str

    @property
    def source(self) -> str:
        return self.scene[self.attribute]

    @property
    def target_prompt(self) -> str:
        """The caption with the target's word in place of the source's."""
        return swap_word(self.caption, self.source, self.target)


def swap_word(caption: str, source: str, target: str) -> str:
    return with_articles(re.sub(rf"\b{source}\b", target, caption))


#: Kinds of tasks: every attribute in turn, the ornate style removed, one style changed into another.
EVERYTHING = "every attribute"
UNGILDING = "ornate to plain"
STYLES = "to another style"
KINDS = (EVERYTHING, UNGILDING, STYLES)

#: Images that the pipeline draws at once.
DRAW_BATCH = 32

#: Makes the context in which a batch of tasks is drawn: task i edits image i.
Method = Callable[[list[EditTask]], AbstractContextManager[Any]]


def edit_tasks(pairs: Sequence[tuple[Scene, str]], attribute: str, seed: int = 0) -> list[EditTask]:
    """One task a prompt: ``attribute`` to another of its values, drawn at random; task i samples from seed i."""
    rng = np.random.default_rng([seed, list(ATTRIBUTES).index(attribute)])
    tasks = []
    for i, (scene, caption) in enumerate(pairs):
        others = [value for value in ATTRIBUTES[attribute] if value != scene[attribute]]
        target = others[rng.integers(len(others))]
        tasks.append(EditTask(scene, caption, seed * 100_003 + i, attribute, target))
    return tasks


def tasks_of(split: Split, n: int, seed: int) -> list[EditTask]:
    """``n`` prompts, each edited in one attribute, the attributes taking turns."""
    pairs = prompts(split, n, seed)
    turns = len(ATTRIBUTES)
    return [
        task
        for turn, attribute in enumerate(ATTRIBUTES)
        for task in edit_tasks(pairs[turn::turns], attribute, seed * turns + turn)
    ]


def style_tasks(kind: str, split: Split, n: int, seed: int) -> list[EditTask]:
    """``n`` edits of the kind :data:`UNGILDING` or :data:`STYLES` on prompts of ``split``."""
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


def draw(
    adapter: Adapter,
    tasks: Sequence[EditTask],
    method: Method | None = None,
    *,
    prompts: Sequence[str] | None = None,
    batch_size: int = DRAW_BATCH,
) -> Tensor:
    """Images ``[tasks, 3, 64, 64]`` on the CPU, each from its own seed, edited by ``method`` (None: unedited).

    ``prompts`` replaces the tasks' captions.
    """
    captions = [task.caption for task in tasks] if prompts is None else list(prompts)
    images = []
    for start in range(0, len(tasks), batch_size):
        part = slice(start, start + batch_size)
        with nullcontext() if method is None else method(list(tasks[part])):
            images.append(generate_images(adapter, captions[part], [task.seed for task in tasks[part]]).cpu())
    return torch.cat(images)


@dataclass(frozen=True)
class EditOutcome:
    """The outcome of one task. ``kept``: every other attribute reads as it did before the edit."""

    task: EditTask
    changed: bool
    kept: bool
    valid: bool


def judge_edits(tasks: Sequence[EditTask], before: Sequence[Verdict], after: Sequence[Verdict]) -> list[EditOutcome]:
    """Outcomes of the tasks whose unedited image is valid and shows the source value; others have nothing to edit."""
    outcomes = []
    for task, old, new in zip(tasks, before, after, strict=True):
        if not (old.valid and old.attributes[task.attribute] == task.source):
            continue
        others = [name for name in ATTRIBUTES if name != task.attribute]
        outcomes.append(
            EditOutcome(
                task,
                changed=new.valid and new.attributes[task.attribute] == task.target,
                kept=new.valid and all(new.attributes[name] == old.attributes[name] for name in others),
                valid=new.valid,
            )
        )
    return outcomes


def summarise(outcomes: Sequence[EditOutcome]) -> dict[str, Any]:
    """Shares of the outcomes with 95 % Wilson intervals. ``both``: changed to the target and all else kept."""
    n = len(outcomes)
    counts = {
        "success": sum(o.changed for o in outcomes),
        "preserved": sum(o.kept for o in outcomes),
        "both": sum(o.changed and o.kept for o in outcomes),
        "valid": sum(o.valid for o in outcomes),
    }
    shares: dict[str, Any] = {name: count / max(1, n) for name, count in counts.items()}
    return shares | {"interval": {name: wilson_interval(c, n) for name, c in counts.items()}, "images": n}
