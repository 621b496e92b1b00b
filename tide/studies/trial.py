"""A batch of edit tasks: drawn unedited, then edited by any method at any strength, and judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from tide.adapters import Adapter
from tide.interpretation.profiles import ConceptProfiles
from tide.sae.model import TIDE
from tide.scenes.judge import Judge, Verdict
from tide.studies.class_knowledge import ClassBanks
from tide.studies.editor import Editor, Steps
from tide.studies.methods import METHODS
from tide.studies.references import LayoutProbe, nearest_references
from tide.studies.tasks import EVERYTHING, EditOutcome, EditTask, draw, judge_edits

#: The prompt replaced by the target's: the ceiling of every method.
PROMPT = "prompt"


class Setting(NamedTuple):
    """A method at one strength, in a part of the sampling run."""

    method: str
    factor: float
    steps: Steps = (0.0, 1.0)

    @property
    def tasks(self) -> str:
        return EVERYTHING if self.method == PROMPT else METHODS[self.method].tasks

    def __str__(self) -> str:
        return f"{self.method} x{self.factor:g} steps {self.steps[0]:g}-{self.steps[1]:g}"


ASKED = Setting(PROMPT, 1.0)


@dataclass
class Trial:
    """At most :data:`~tide.studies.tasks.DRAW_BATCH` tasks, their unedited images, and what edits and judges them.

    Its recordings are large: keep one trial at a time.
    """

    tasks: list[EditTask]
    images: Tensor  # [tasks, 3, 64, 64]
    judge: Judge
    editor: Editor

    @classmethod
    def of(
        cls,
        adapter: Adapter,
        model: TIDE,
        tasks: list[EditTask],
        judge: Judge,
        probe: LayoutProbe,
        *,
        seed: int,
        profiles: ConceptProfiles | None = None,
        banks: ClassBanks | None = None,
    ) -> Trial:
        images, layouts = probe.draw(adapter, tasks)
        editor = Editor(adapter, model, nearest_references(tasks, layouts), profiles, seed, banks)
        return cls(tasks, images, judge, editor)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """What the judge reads off the unedited images."""
        return self.judge.read(self.images)

    @cached_property
    def regions(self) -> Tensor:
        return self.judge.regions(self.images)

    def draw(self, setting: Setting) -> Tensor:
        """The edited images ``[tasks, 3, 64, 64]``."""
        if setting.method == PROMPT:
            return draw(self.editor.adapter, self.tasks, prompts=[task.target_prompt for task in self.tasks])
        return draw(self.editor.adapter, self.tasks, METHODS[setting.method].method(self.editor, *setting[1:]))

    def outcomes(self, images: Tensor) -> list[EditOutcome]:
        """Of the tasks whose unedited image shows the source (:func:`~tide.studies.tasks.judge_edits`)."""
        return judge_edits(self.tasks, self.verdicts, self.judge.read(images))
