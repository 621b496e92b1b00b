"""The methods of editing that studies compare, in latents and in raw activations, by what they know of the target.

- One reference image: a training scene that shows the target, and the difference that the target's word makes there
  ("contrast"). Style transfer knows its average over the image's tokens, and no places.
- The target's own run: what the block holds, step by step, while the target's prompt is drawn from the same seed
  (appendix C.1: global replacement, scaling of activation indices).
- Class means: the concept's mean over training scenes; no prompt names the target.
- Nothing: each token's strongest latents are erased or inverted, their norm kept (appendix C.1).

Methods that know the same are given the same recordings, tokens, steps and block. The bounded ones stop each neuron
near the level that it has with the target, as a contrast stops each latent: at 1.5 times that level if it rises and at
that level if it falls; a neuron, which may be negative, half of the difference beyond the level either way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.editing import (
    Contrast,
    Edit,
    Erase,
    Invert,
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
from tide.editing.contrast import sparse_again
from tide.editing.record import ContrastRecording, Recording, record_contrast, record_targets
from tide.interpretation.profiles import ConceptProfiles, concept_profiles
from tide.sae.model import TIDE
from tide.scenes.annotate import N_SAMPLING_STEPS, concept_masks, generate_images, images_of
from tide.scenes.pipeline import MAX_CAPTION_TOKENS
from tide.scenes.scene import ATTRIBUTES, Scene, prompts
from tide.studies.bench import prepared_scenes
from tide.studies.tasks import EVERYTHING, STYLES, UNGILDING, EditTask, Method, swap_word

Steps = tuple[float, float]
Tasks = list[EditTask]
T = TypeVar("T")

#: Strength of the contrast whose number of altered tokens grows.
ALTERED_STRENGTH = 2.0

#: How many of the target's strongest latents of each token are scaled.
SCALED_TOP = 32

#: Ground that lies in the light: the counterpart of the concept "shadow".
LIT = "lit ground"


@dataclass
class Editor:
    """What the methods need to edit with one SAE. A recording is made once for a batch of tasks and then shared.

    ``references`` are needed by the methods that know a reference image, ``profiles`` by those that know class means.
    """

    adapter: Adapter
    model: TIDE
    references: dict[EditTask, Scene] = field(default_factory=dict)
    profiles: ConceptProfiles | None = None
    seed: int = 0
    _kept: dict[str, tuple[Tasks, Any]] = field(default_factory=dict)

    def method(self, name: str, factor: float, steps: Steps | None = None) -> Method:
        """The method of this name in :data:`METHODS` at one strength."""
        spec = METHODS[name]

        def context(tasks: Tasks) -> AbstractContextManager[Any]:
            change = spec.make(self, tasks, factor)
            if spec.raw:
                return edit(self.adapter.pipe, None, change, block=self.block, steps=steps)
            tokens = None if spec.tokens is None else spec.tokens(self, tasks, factor)
            return edit(self.adapter.pipe, self.model, change, steps=steps, tokens=tokens, renormalise=spec.renormalise)

        return context

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

    def recording(self, tasks: Tasks) -> Recording:
        """What the block holds while the target's prompt is drawn."""
        return self._once("recording", tasks, self._record_targets)

    def _record_targets(self, tasks: Tasks) -> Recording:
        def run() -> Tensor:
            return generate_images(self.adapter, [t.target_prompt for t in tasks], [t.seed for t in tasks])

        return record_targets(self.adapter, self.model, run)

    def means(self) -> ConceptProfiles:
        assert self.profiles is not None, "methods that know class means need profiles"
        return self.profiles


# -- how each edits a batch of tasks --------------------------------------------------------------------------


def _contrast(editor: Editor, tasks: Tasks, factor: float) -> Edit:
    return _moved(editor, editor.pairs(tasks), factor)


def _moved(editor: Editor, pairs: list[tuple[Target, Target]], factor: float) -> Edit:
    """Each latent moves at most to the level that it has with the target; a TopK model's k largest are kept."""
    return PerImage(tuple(sparse_again(Contrast(*pair, factor), editor.model) for pair in pairs))


def _steer_contrast(editor: Editor, tasks: Tasks, factor: float) -> Steer:
    found = editor.contrast(tasks)
    return Steer(found.timesteps, found.direction, factor)


def _steer_bounded(editor: Editor, tasks: Tasks, factor: float) -> Steer:
    found = editor.contrast(tasks)
    return SteerBounded(found.timesteps, found.direction, factor, found.mean_present)


def _altered(editor: Editor, tasks: Tasks, factor: float) -> Edit:
    return _moved(editor, editor.pairs(tasks), ALTERED_STRENGTH)


def _altered_tokens(editor: Editor, tasks: Tasks, factor: float) -> Tensor:
    return torch.stack([most_different_tokens(*pair, int(factor)) for pair in editor.pairs(tasks)])


def _towards(editor: Editor, tasks: Tasks, factor: float) -> Edit:
    return PerImage(tuple(Replace(target, factor) for target in editor.recording(tasks).targets))


def _scale_target(editor: Editor, tasks: Tasks, factor: float) -> Edit:
    return PerImage(tuple(ScaleTarget(target, SCALED_TOP, factor) for target in editor.recording(tasks).targets))


def _steer_towards(editor: Editor, tasks: Tasks, factor: float) -> Steer:
    found = editor.recording(tasks)
    return SteerTowards(found.timesteps, found.raw, factor)


def _swap(editor: Editor, tasks: Tasks, factor: float) -> Edit:
    """Acts where the source's latents fire."""
    return PerImage(tuple(Swap(*editor.means().contrast(*_concepts(task)), factor) for task in tasks))


def _steer(editor: Editor, tasks: Tasks, factor: float) -> Steer:
    """Acts on every token: raw activations do not tell where the source is."""
    profiles = editor.means()
    directions = [profiles.direction(*_concepts(task)) for task in tasks]
    return Steer(profiles.timesteps, torch.stack(directions, dim=1)[:, :, None], factor)


def _erase_top(editor: Editor, tasks: Tasks, factor: float) -> Edit:
    return Erase(top_k=int(factor))


def _invert_top(editor: Editor, tasks: Tasks, factor: float) -> Edit:
    return Invert(top_k=int(factor))


def _transfer(editor: Editor, tasks: Tasks, factor: float) -> Edit:
    return _moved(editor, [(present.pooled(), absent.pooled()) for present, absent in editor.pairs(tasks)], factor)


def _steer_transfer(editor: Editor, tasks: Tasks, factor: float) -> Steer:
    found = editor.contrast(tasks)
    return Steer(found.timesteps, found.direction.mean(2, keepdim=True), factor)


def _steer_transfer_bounded(editor: Editor, tasks: Tasks, factor: float) -> Steer:
    found = editor.contrast(tasks)
    direction, bound = (each.mean(2, keepdim=True) for each in (found.direction, found.mean_present))
    return SteerBounded(found.timesteps, direction, factor, bound)


# -- the table ------------------------------------------------------------------------------------------------

ONE_IMAGE, OWN_RUN, MEANS = "one image", "the target's run", "class means"
PLACELESS, NOTHING = "one image, no places", "nothing"


@dataclass(frozen=True)
class Spec:
    """A method of editing: what it is called, what it knows of the target, and the edit that it makes of a batch.

    ``strengths`` are those that studies try, in growing order, ``middle`` the one at which step ranges are compared;
    ``tasks`` the kind that it is tried on. ``raw``: it edits raw activations, without the SAE. ``tokens`` are the ones
    that it edits, bool ``[tasks, tokens]``, by default all; ``renormalise`` keeps each token's latent norm.
    """

    label: str
    knows: str
    strengths: tuple[float, ...]
    middle: float
    make: Callable[[Editor, Tasks, float], Edit | Steer]
    tasks: str = EVERYTHING
    raw: bool = False
    tokens: Callable[[Editor, Tasks, float], Tensor] | None = None
    renormalise: bool = False


METHODS: dict[str, Spec] = {
    "contrast": Spec("contrast of latents", ONE_IMAGE, (0.5, 1.0, 1.5, 2.5), 1.5, _contrast),
    "steer contrast": Spec("contrast, raw", ONE_IMAGE, (0.5, 0.75, 1.0, 1.5), 1.0, _steer_contrast, raw=True),
    "steer bounded": Spec("contrast, raw and bounded", ONE_IMAGE, (0.5, 1.0, 1.5, 2.5), 1.5, _steer_bounded, raw=True),
    "altered": Spec("contrast in n tokens", ONE_IMAGE, (4, 16, 32, 64), 16, _altered, tokens=_altered_tokens),
    "towards": Spec("global replacement", OWN_RUN, (0.5, 0.75, 1.0), 1.0, _towards),
    "scale target": Spec("target's indices scaled", OWN_RUN, (1.5, 3.0, 6.0), 3.0, _scale_target, renormalise=True),
    "steer towards": Spec("replacement, raw", OWN_RUN, (0.5, 0.75, 1.0), 1.0, _steer_towards, raw=True),
    "swap": Spec("class means exchanged", MEANS, (0.5, 1.0, 2.0), 2.0, _swap),
    "steer": Spec("class means, raw", MEANS, (0.25, 0.5, 1.0), 1.0, _steer, raw=True),
    "erase top": Spec("top K erased", NOTHING, (1, 4, 16, 64), 4, _erase_top, UNGILDING, renormalise=True),
    "invert top": Spec("top K inverted", NOTHING, (1, 4, 16), 4, _invert_top, UNGILDING, renormalise=True),
    "transfer": Spec("style transfer", PLACELESS, (1.0, 2.0, 4.0), 2.0, _transfer, STYLES),
    "steer transfer": Spec("style transfer, raw", PLACELESS, (0.5, 1.0, 2.0), 1.0, _steer_transfer, STYLES, raw=True),
    "steer transfer bounded": Spec(
        "style transfer, raw and bounded", PLACELESS, (1.0, 2.0, 4.0), 2.0, _steer_transfer_bounded, STYLES, raw=True
    ),
}

#: A method of latents -> those of raw activations that know the same.
RIVALS: dict[str, tuple[str, ...]] = {
    "contrast": ("steer contrast", "steer bounded"),
    "towards": ("steer towards",),
    "swap": ("steer",),
    "transfer": ("steer transfer", "steer transfer bounded"),
}


# -- class means ----------------------------------------------------------------------------------------------


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


def _lit_ground(scene: Scene, masks: dict[str, Tensor], i: int) -> Tensor:
    ground = masks[scene.ground][i]
    return ground if scene.shadow == "without" else torch.zeros_like(ground)


def _concepts(task: EditTask) -> tuple[str, str]:
    """The concepts of the task's source and target."""
    if task.attribute == "shadow":
        shadow = {"with": "shadow", "without": LIT}
        return shadow[task.source], shadow[task.target]
    return task.source, task.target
