"""What an editing method of a study is, and the recordings that methods share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.editing import Bank, Beside, Edit, RawEdit, Target, Where, differing_tokens, edit
from tide.editing.record import ContrastRecording, Recording, record_contrast, record_targets
from tide.interpretation.profiles import ConceptProfiles
from tide.sae.model import TIDE
from tide.scenes.annotate import N_SAMPLING_STEPS, generate_images, images_of
from tide.scenes.pipeline import MAX_CAPTION_TOKENS
from tide.scenes.scene import Scene
from tide.studies.baselines import random_dictionary
from tide.studies.class_knowledge import ClassBanks, Told
from tide.studies.tasks import EVERYTHING, EditTask, Method, swap_word

Steps = tuple[float, float]
Tasks = list[EditTask]
T = TypeVar("T")
#: What says how much a token differs: the model's latents, raw activations, a dictionary that was never trained.
By = Literal["latents", "activations", "random latents"]


ONE_IMAGE, OWN_RUN, MEANS = "one image", "the target's run", "class means"
BANK = "a bank"
PROMPT_BESIDE = "the target's prompt"
PLACELESS, NOTHING = "one image, no places", "nothing"


@dataclass
class Editor:
    """What the methods need to edit with one SAE. A recording is made once for a batch of tasks and then shared.

    ``references`` are needed by the methods that know a reference image, ``profiles`` by those that know class means,
    ``banks`` by those that know a bank.
    """

    adapter: Adapter
    model: TIDE
    references: dict[EditTask, Scene] = field(default_factory=dict)
    profiles: ConceptProfiles | None = None
    seed: int = 0
    banks: ClassBanks | None = None
    _kept: dict[str, tuple[Tasks, Any]] = field(default_factory=dict)

    @property
    def block(self) -> int:
        return self.adapter.resolve_block(self.model.config.trained_block)

    def _once(self, kind: str, tasks: Tasks, make: Callable[[Tasks], T]) -> T:
        """What ``make`` records for ``tasks``; of each kind only the last is kept, since a recording is large."""
        if self._kept.get(kind, (None,))[0] != tasks:
            self._kept.pop(kind, None)
            self._kept[kind] = tasks, make(tasks)
        found: T = self._kept[kind][1]
        return found

    def contrast(self, tasks: Tasks) -> ContrastRecording:
        """What the block holds on each task's reference image with the target in the prompt and with the source."""
        return self._once("contrast", tasks, self._record_contrast)

    def _record_contrast(self, tasks: Tasks) -> ContrastRecording:
        references = [self.references[task] for task in tasks]
        captions = [scene.caption() for scene in references]
        swapped = [swap_word(c, task.target, task.source) for c, task in zip(captions, tasks, strict=True)]
        recorded = record_contrast(
            self.adapter,
            (self.block,),
            self.adapter.encode_images(images_of(references)),
            (captions, swapped),
            self.adapter.sampling_timesteps(N_SAMPLING_STEPS),
            seed=self.seed,
            max_sequence_length=MAX_CAPTION_TOKENS,
        )
        return recorded[self.block]

    def pairs(self, tasks: Tasks) -> list[tuple[Target, Target]]:
        """The latents of :meth:`contrast`: with the target and with the source."""
        return self._once("pairs", tasks, lambda tasks: self.contrast(tasks).targets(self.model))

    def differing(self, tasks: Tasks, by: By, share: float) -> Tensor:
        """bool ``[tasks, tokens]``: the tokens of :meth:`contrast` that differ by at least ``share`` of the most."""
        return self._once(f"differing {by} {share}", tasks, lambda tasks: self._record_differing(tasks, by, share))

    def _record_differing(self, tasks: Tasks, by: By, share: float) -> Tensor:
        found = self.contrast(tasks)
        if by == "latents":
            pairs = self.pairs(tasks)
        elif by == "random latents":
            pairs = found.targets(self.random)
        else:
            maps = (each.transpose(0, 1) for each in (found.mean_present, found.mean_present - found.direction))
            pairs = [(Target(found.timesteps, a), Target(found.timesteps, b)) for a, b in zip(*maps, strict=True)]
        return torch.stack([differing_tokens(*pair, share) for pair in pairs])

    def recording(self, tasks: Tasks) -> Recording:
        """What the block holds while the target's prompt is drawn."""
        return self._once("recording", tasks, self._record_targets)

    def _record_targets(self, tasks: Tasks) -> Recording:
        def run() -> Tensor:
            return generate_images(self.adapter, [t.target_prompt for t in tasks], [t.seed for t in tasks])

        return record_targets(self.adapter, self.model, run)

    @cached_property
    def random(self) -> TIDE:
        """A dictionary of the model's size that was never trained."""
        return random_dictionary(self.model)

    def means(self) -> ConceptProfiles:
        assert self.profiles is not None, "methods that know class means need profiles"
        return self.profiles

    def bank(self, told: Told = "latents") -> tuple[TIDE, Bank]:
        assert self.banks is not None, "methods that know a bank need banks"
        return self.banks[told]


@dataclass(frozen=True)
class Spec:
    """A method of editing: what it is called, what it knows of the target, and the edit that it makes of a batch.

    ``strengths`` are those that studies try, in growing order, ``middle`` the one at which step ranges are compared;
    ``tasks`` the kind that it is tried on. ``raw``: it edits raw activations, without the SAE. ``tokens`` are the ones
    that it edits, bool ``[tasks, tokens]`` or drawn for each task, by default all; ``renormalise`` keeps each token's
    latent norm.
    """

    label: str
    knows: str
    strengths: tuple[float, ...]
    middle: float
    make: Callable[[Editor, Tasks, float], Edit | RawEdit | Beside]
    tasks: str = EVERYTHING
    raw: bool = False
    tokens: Callable[[Editor, Tasks, float], Tensor | list[Where]] | None = None
    renormalise: bool = False

    def method(self, editor: Editor, factor: float, steps: Steps | None = None) -> Method:
        """The method at one strength."""

        def context(tasks: Tasks) -> AbstractContextManager[Any]:
            change = self.make(editor, tasks, factor)
            tokens = None if self.tokens is None else self.tokens(editor, tasks, factor)
            if self.raw:
                return edit(editor.adapter.pipe, None, change, block=editor.block, steps=steps, tokens=tokens)
            return edit(
                editor.adapter.pipe, editor.model, change, steps=steps, tokens=tokens, renormalise=self.renormalise
            )

        return context
