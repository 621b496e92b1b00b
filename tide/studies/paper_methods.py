"""The paper's methods of editing, in latents and in raw activations, by what they know of the target.

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

import torch
from torch import Tensor

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
    most_different_tokens,
)
from tide.editing.contrast import sparse_again
from tide.studies.class_knowledge import concepts_of
from tide.studies.editor import MEANS, NOTHING, ONE_IMAGE, OWN_RUN, PLACELESS, Editor, Spec, Tasks
from tide.studies.tasks import STYLES, UNGILDING

#: Strength of the contrast whose number of altered tokens grows.
ALTERED_STRENGTH = 2.0

#: How many of the target's strongest latents of each token are scaled.
SCALED_TOP = 32


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
    return PerImage(tuple(Swap(*editor.means().contrast(*concepts_of(task)), factor) for task in tasks))


def _steer(editor: Editor, tasks: Tasks, factor: float) -> Steer:
    """Acts on every token: raw activations do not tell where the source is."""
    profiles = editor.means()
    directions = [profiles.direction(*concepts_of(task)) for task in tasks]
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

#: Those of the paper (section 6, appendix C.1), and what their latents are compared with.
PAPER: dict[str, Spec] = {
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
