"""The edits a study compares, each with and without the SAE, by what they know of the target.

- ``contrast``, ``steer contrast``, ``steer bounded``: one training image that shows it, and the difference that the
  word makes there; ``altered`` is the first in the tokens that it changes most, ``transfer``, ``steer transfer`` and
  ``steer transfer bounded`` know no places, only the average over the image's tokens (style transfer).
- ``towards``, ``scale target``, ``steer towards``: what the block holds while the target's own prompt is drawn from the
  same seed, step by step (appendix C.1: global replacement, scaling of activation indices).
- ``swap``, ``steer``: the concept's mean over training scenes; no prompt names the target.
- ``erase top``, ``invert top``: nothing (appendix C.1: each token's strongest latents, their norm kept).

The methods of a group are given the same: the same recordings, tokens, steps and block. Those called bounded stop each
neuron near the level that it has with the target, as a contrast stops each latent (at 1.5 times that level if it rises
and at it if it falls; a neuron, which may be negative, half of the difference beyond it either way). ``swap`` acts
where the source's latents fire; ``steer`` cannot tell where that is, and acts everywhere.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from tide.adapters import Adapter
from tide.editing import (
    Contrast,
    Edit,
    Erase,
    Invert,
    Keep,
    PerImage,
    Replace,
    ScaleTarget,
    Steer,
    SteerBounded,
    SteerTowards,
    Swap,
    Target,
    edit,
    most_different_tokens,
)
from tide.editing.record import ContrastRecording, Recording, record_contrast, record_targets
from tide.interpretation.profiles import ConceptProfiles, concept_profiles
from tide.sae.model import TIDE
from tide.scenes.annotate import N_SAMPLING_STEPS, concept_masks, generate_images, images_of
from tide.scenes.pipeline import MAX_CAPTION_TOKENS
from tide.scenes.scene import ATTRIBUTES, Scene, prompts, with_articles
from tide.studies.reconstruction import prepared_scenes
from tide.studies.tasks import EditTask, Method

Steps = tuple[float, float] | None

#: Task -> its reference images, as many for each.
References = dict[EditTask, list[Scene]]

#: Strength of the contrast whose number of altered tokens grows.
ALTERED_STRENGTH = 2.0

#: The target's strongest latents of each token that ``scale target`` scales.
SCALED_TOP = 32

#: Ground that lies in the light: the counterpart of the concept "shadow".
LIT = "lit ground"


def swap_word(caption: str, source: str, target: str) -> str:
    """A caption with the source value's word replaced by the target's."""
    return with_articles(re.sub(rf"\b{source}\b", target, caption))


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
class Contrasts:
    """What some blocks hold on each task's reference images with the target in the prompt and with the source, recorded
    once per batch of tasks."""

    adapter: Adapter
    blocks: tuple[int, ...]
    references: References
    seed: int = 0
    recorded: dict[tuple[EditTask, ...], dict[int, ContrastRecording]] = field(default_factory=dict)

    def of(self, tasks: list[EditTask], block: int) -> ContrastRecording:
        key = tuple(tasks)
        if key not in self.recorded:
            self.recorded.clear()
            self.recorded[key] = self._record(tasks)
        return self.recorded[key][block]

    def _record(self, tasks: list[EditTask]) -> dict[int, ContrastRecording]:
        chosen = [(task, scene) for task in tasks for scene in self.references[task]]
        prompts = [scene.caption() for _, scene in chosen]
        return record_contrast(
            self.adapter,
            self.blocks,
            self.adapter.encode_images(images_of([scene for _, scene in chosen])),
            (prompts, [swap_word(p, task.target, task.source) for p, (task, _) in zip(prompts, chosen, strict=True)]),
            self.adapter.sampling_timesteps(N_SAMPLING_STEPS),
            per_image=len(self.references[tasks[0]]),
            seed=self.seed,
            max_sequence_length=MAX_CAPTION_TOKENS,
        )


@dataclass
class Methods:
    """Makes the methods for one SAE. What is recorded is recorded once per batch of tasks and kept; ``profiles`` are
    for swap and steer only, ``contrasts`` for the methods that know a reference image."""

    adapter: Adapter
    model: TIDE
    profiles: ConceptProfiles | None = None
    contrasts: Contrasts | None = None
    recordings: dict[tuple[EditTask, ...], Recording] = field(default_factory=dict)
    targets: dict[tuple[EditTask, ...], list[tuple[Target, Target]]] = field(default_factory=dict)

    @property
    def block(self) -> int:
        assert self.model.config.block is not None
        return self.adapter.resolve_block(self.model.config.block)

    def contrast(self, factor: float, steps: Steps = None) -> Method:
        """Latents moved along the reference's contrast, each up to the level it has there, the k largest kept."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            keep = Keep(self.model.config.k)
            change = PerImage(tuple(Contrast(*pair, factor) + keep for pair in self._targets(tasks)))
            return edit(self.adapter.pipe, self.model, change, steps=steps)

        return context

    def steer_contrast(self, factor: float, steps: Steps = None) -> Method:
        """Raw activations moved along the same contrast."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            found = self._contrast(tasks)
            change = Steer(found.timesteps, found.direction, factor)
            return edit(self.adapter.pipe, None, change, block=self.block, steps=steps)

        return context

    def steer_bounded(self, factor: float, steps: Steps = None) -> Method:
        """The same, each neuron stopped near the level that it has on the reference."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            found = self._contrast(tasks)
            change = SteerBounded(found.timesteps, found.direction, factor, found.mean_present)
            return edit(self.adapter.pipe, None, change, block=self.block, steps=steps)

        return context

    def altered(self, factor: float, steps: Steps = None) -> Method:
        """:meth:`contrast` at :data:`ALTERED_STRENGTH` in the ``factor`` tokens of each image that it moves most."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            pairs = self._targets(tasks)
            keep = Keep(self.model.config.k)
            change = PerImage(tuple(Contrast(*pair, ALTERED_STRENGTH) + keep for pair in pairs))
            tokens = torch.stack([most_different_tokens(*pair, int(factor)) for pair in pairs])
            return edit(self.adapter.pipe, self.model, change, steps=steps, tokens=tokens)

        return context

    def transfer(self, factor: float, steps: Steps = None) -> Method:
        """:meth:`contrast` with the reference's latents averaged over its tokens."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            keep = Keep(self.model.config.k)
            pairs = [(present.pooled(), absent.pooled()) for present, absent in self._targets(tasks)]
            change = PerImage(tuple(Contrast(*pair, factor) + keep for pair in pairs))
            return edit(self.adapter.pipe, self.model, change, steps=steps)

        return context

    def steer_transfer(self, factor: float, steps: Steps = None) -> Method:
        """Raw activations moved along the reference's contrast, averaged over its tokens."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            found = self._contrast(tasks)
            change = Steer(found.timesteps, found.direction.mean(2, keepdim=True), factor)
            return edit(self.adapter.pipe, None, change, block=self.block, steps=steps)

        return context

    def steer_transfer_bounded(self, factor: float, steps: Steps = None) -> Method:
        """The same, each neuron stopped near the average that it has on the reference."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            found = self._contrast(tasks)
            direction, bound = (each.mean(2, keepdim=True) for each in (found.direction, found.mean_present))
            change = SteerBounded(found.timesteps, direction, factor, bound)
            return edit(self.adapter.pipe, None, change, block=self.block, steps=steps)

        return context

    def erase_top(self, factor: float, steps: Steps = None) -> Method:
        """Each token's ``factor`` strongest latents set to zero, the norm of its latents kept (eq. 19)."""
        return self._of_strongest(Erase(top_k=int(factor)), steps)

    def invert_top(self, factor: float, steps: Steps = None) -> Method:
        """Each token's ``factor`` strongest latents with their sign flipped."""
        return self._of_strongest(Invert(top_k=int(factor)), steps)

    def _of_strongest(self, change: Edit, steps: Steps) -> Method:
        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            return edit(self.adapter.pipe, self.model, change, steps=steps, renormalise=True)

        return context

    def swap(self, factor: float, steps: Steps = None) -> Method:
        """Where the source's latents fire, they are exchanged for the target's."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            edits = []
            for t in tasks:
                source, target = (_concept(t.attribute, value) for value in (t.source, t.target))
                edits.append(Swap(*self._profiles.contrast(source, target), factor))
            return edit(self.adapter.pipe, self.model, PerImage(tuple(edits)), steps=steps)

        return context

    def steer(self, factor: float, steps: Steps = None) -> Method:
        """The difference of the two concepts' mean activations, added to every token."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            directions = [
                self._profiles.direction(_concept(t.attribute, t.source), _concept(t.attribute, t.target))
                for t in tasks
            ]
            change = Steer(self._profiles.timesteps, torch.stack(directions, dim=1)[:, :, None], factor)
            return edit(self.adapter.pipe, None, change, block=self.block, steps=steps)

        return context

    def towards(self, factor: float, steps: Steps = None) -> Method:
        """Latents moved towards the target's own at the same step."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            change = PerImage(tuple(Replace(target, factor) for target in self._record(tasks).targets))
            return edit(self.adapter.pipe, self.model, change, steps=steps)

        return context

    def scale_target(self, factor: float, steps: Steps = None) -> Method:
        """Inside the original, the indices of the target's :data:`SCALED_TOP` strongest latents scaled."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            recording = self._record(tasks)
            change = PerImage(tuple(ScaleTarget(target, SCALED_TOP, factor) for target in recording.targets))
            return edit(self.adapter.pipe, self.model, change, steps=steps, renormalise=True)

        return context

    def steer_towards(self, factor: float, steps: Steps = None) -> Method:
        """Raw activations moved towards the target's own at the same step."""

        def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
            recording = self._record(tasks)
            change = SteerTowards(recording.timesteps, recording.raw, factor)
            return edit(self.adapter.pipe, None, change, block=self.block, steps=steps)

        return context

    @property
    def _profiles(self) -> ConceptProfiles:
        assert self.profiles is not None, "swap and steer need profiles"
        return self.profiles

    def _contrast(self, tasks: list[EditTask]) -> ContrastRecording:
        assert self.contrasts is not None, "these methods need reference images"
        return self.contrasts.of(tasks, self.block)

    def _targets(self, tasks: list[EditTask]) -> list[tuple[Target, Target]]:
        key = tuple(tasks)
        if key not in self.targets:
            self.targets.clear()
            self.targets[key] = self._contrast(tasks).targets(self.model)
        return self.targets[key]

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
