"""The edits a study compares, each with and without the SAE.

``swap`` and ``steer`` know a concept only as its mean over training scenes; no prompt names the target. ``towards`` and
``steer towards`` know the target as what the block holds while its own prompt is drawn, step by step (appendix C.1).
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from tide.adapters import Adapter
from tide.editing import PerImage, Replace, Steer, SteerTowards, Swap, edit
from tide.editing.record import Recording, record_targets
from tide.interpretation.profiles import ConceptProfiles, concept_profiles
from tide.sae.model import TIDE
from tide.scenes.annotate import N_SAMPLING_STEPS, concept_masks, generate_images
from tide.scenes.scene import ATTRIBUTES, Scene, prompts
from tide.study.edits import EditTask, Method
from tide.study.reconstruction import prepared_scenes

Steps = tuple[float, float] | None

#: Ground that lies in the light: the counterpart of the concept "shadow".
LIT = "lit ground"


def swap_word(caption: str, source: str, target: str) -> str:
    """A caption with the source value's word replaced by the target's."""
    return re.sub(rf"\b{source}\b", target, caption)


def target_prompt(task: EditTask) -> str:
    return swap_word(task.caption, task.source, task.target)


def _lit_ground(scene: Scene, masks: dict[str, torch.Tensor], i: int) -> torch.Tensor:
    ground = masks[scene.ground][i]
    return ground if scene.shadow == "without" else torch.zeros_like(ground)


def scene_profiles(adapter: Adapter, model: TIDE, *, n_images: int = 256, seed: int = 0) -> ConceptProfiles:
    """Profiles of every attribute value over training scenes, at every step of the sampling run."""
    pairs = prompts("train", n_images, seed)
    items = [scene for scene, _ in pairs]
    data = prepared_scenes(adapter, pairs)
    masks = concept_masks(items, adapter.token_grid(*data[0].latents.shape[-2:]))
    masks[LIT] = torch.stack([_lit_ground(scene, masks, i) for i, scene in enumerate(items)])
    wanted = {value for values in ATTRIBUTES.values() for value in values} | {"shadow", LIT}
    masks = {name: mask for name, mask in masks.items() if name in wanted}
    return concept_profiles(adapter, model, data, masks, adapter.sampling_timesteps(N_SAMPLING_STEPS), seed=seed)


def _concept(attribute: str, value: str) -> str:
    if attribute == "shadow":
        return {"with": "shadow", "without": LIT}[value]
    return value


@dataclass
class Methods:
    """Makes the methods for one SAE. Targets are recorded once per batch of tasks and kept."""

    adapter: Adapter
    model: TIDE
    profiles: ConceptProfiles
    recordings: dict[tuple[EditTask, ...], Recording] = field(default_factory=dict)

    def swap(self, factor: float, steps: Steps = None) -> Method:
        """Where the source's latents fire, they are exchanged for the target's."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            edits = []
            for t in tasks:
                source, target = (_concept(t.attribute, value) for value in (t.source, t.target))
                edits.append(Swap(*self.profiles.contrast(source, target), factor))
            return edit(self.adapter.pipe, self.model, PerImage(tuple(edits)), steps=steps)

        return context

    def steer(self, factor: float, steps: Steps = None) -> Method:
        """The difference of the two concepts' mean activations, added to every token."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            directions = [
                self.profiles.direction(_concept(t.attribute, t.source), _concept(t.attribute, t.target)) for t in tasks
            ]
            change = Steer(self.profiles.timesteps, torch.stack(directions, dim=1)[:, :, None], factor)
            return edit(self.adapter.pipe, None, change, block=self.model.config.block, steps=steps)

        return context

    def towards(self, factor: float, steps: Steps = None) -> Method:
        """Latents moved towards the target's own at the same step."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            change = PerImage(tuple(Replace(target, factor) for target in self._record(tasks).targets))
            return edit(self.adapter.pipe, self.model, change, steps=steps)

        return context

    def steer_towards(self, factor: float, steps: Steps = None) -> Method:
        """Raw activations moved towards the target's own at the same step."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            recording = self._record(tasks)
            change = SteerTowards(recording.timesteps, recording.raw, factor)
            return edit(self.adapter.pipe, None, change, block=self.model.config.block, steps=steps)

        return context

    def _record(self, tasks: list[EditTask]) -> Recording:
        key = tuple(tasks)
        if key not in self.recordings:
            self.recordings.clear()  # a batch's recording is large, and its methods follow one another
            self.recordings[key] = record_targets(
                self.adapter,
                self.model,
                lambda: generate_images(self.adapter, [target_prompt(t) for t in tasks], [t.seed for t in tasks]),
            )
        return self.recordings[key]
