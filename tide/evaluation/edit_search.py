"""One edit at several blocks, steps, branches and strengths: how far each setting moves the picture to where it should,
and how much it breaks it. Nothing but the model itself measures this."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from tide.adapters import Adapter
from tide.adapters.sizes import image_size
from tide.checks import GUIDANCE
from tide.editing import Edit
from tide.editing.context import edit
from tide.editing.edits import Branch
from tide.editing.met import Met
from tide.editing.progress import is_within
from tide.errors import TideError
from tide.evaluation.edit_ruler import Drawer, EditTrial, Ruler
from tide.pictures import to_image
from tide.sae.model import TIDE

Steps = tuple[float, float]

#: Parts of the sampling run that are tried.
STEPS: tuple[Steps, ...] = ((0.0, 1.0), (0.0, 0.3), (0.0, 0.6), (0.2, 0.6), (0.4, 1.0))
#: How much of the effect a doubling of the damage outweighs. On the bundled pipeline (two words changed, at two blocks,
#: by eight edits each) 0.07 to 0.15 choose equally good edits by its judge, and fewer broken ones than less does.
PRICE = 0.1
#: An edit that comes less than this part of the way has not done what it should.
LEAST_EFFECT = 0.5
#: Of the pictures with at least this damage the judge calls 68 % broken.
BREAKS = 5.0
#: Of the 410 pictures with less than this damage it calls none broken.
WHOLE = 2.0


class EditSetting(NamedTuple):
    """``model`` and ``edit`` by their names."""

    model: str
    edit: str
    steps: Steps
    branch: Branch


@dataclass(frozen=True)
class Tried:
    """A setting: for each trial its ``effects``, ``damages`` and ``pictures``, and what the edit ``met``; ``towards``:
    whether there are targets."""

    setting: EditSetting
    towards: bool
    effects: list[float]
    damages: list[float]
    pictures: list[Image]
    met: list[Met]

    @property
    def effect(self) -> float:
        """The mean over the trials that have one; NaN if none has."""
        known = [each for each in self.effects if not math.isnan(each)]
        return sum(known) / len(known) if known else math.nan

    @property
    def damage(self) -> float:
        """The mean over the trials."""
        return sum(self.damages) / len(self.damages)

    @property
    def score(self) -> float:
        """Towards a target ``min(effect, 1) - PRICE * log2(max(damage, 1))``; an effect that is not known counts as 0.
        Without a target the effect, which says nothing of what is wanted, and of a picture with a damage of
        :data:`WHOLE` or more ``-damage``."""
        if not self.towards:
            return self.effect if self.damage < WHOLE else -self.damage
        effect = 0.0 if math.isnan(self.effect) else min(self.effect, 1.0)
        return effect - PRICE * math.log2(max(self.damage, 1.0))


@dataclass(frozen=True)
class Search:
    """What :func:`search_edits` finds.

    Attributes:
        trials: what was drawn.
        before: each trial's picture without an edit.
        wanted: the pictures of the trials' target prompts; empty without targets.
        tried: the settings, the best first (:attr:`Tried.score`).
    """

    trials: list[EditTrial]
    before: list[Image]
    wanted: list[Image]
    tried: list[Tried]

    @property
    def best(self) -> Tried:
        """The setting of the highest score."""
        return self.tried[0]


def settings(
    models: Sequence[str],
    edits: Sequence[str],
    *,
    n_steps: int,
    guidance_scale: float,
    steps: Sequence[Steps] = STEPS,
) -> list[EditSetting]:
    """Every combination: of ``steps`` those that hold a step of the run, the first of those that hold the same; of
    branches the conditional rows and both, or the first alone where there is no guidance."""
    first: dict[tuple[int, ...], Steps] = {}
    for part in steps:
        first.setdefault(tuple(step for step in range(n_steps) if is_within(step, n_steps, part)), part)
    parts = [part for held, part in first.items() if held]
    branches: tuple[Branch, ...] = ("conditional", "both") if guidance_scale > 1 else ("conditional",)
    return [EditSetting(m, e, part, b) for m in models for e in edits for part in parts for b in branches]


@torch.no_grad()
def search_edits(
    adapter: Adapter,
    models: Mapping[str, TIDE],
    trials: Sequence[EditTrial],
    make: Callable[[TIDE, EditTrial], Mapping[str, Edit]],
    *,
    steps: Sequence[Steps] = STEPS,
    n_steps: int = 20,
    guidance_scale: float = GUIDANCE,
    size: tuple[int, ...] | None = None,
    tokens: Tensor | None = None,
    renormalise: bool = False,
    on_run: Callable[[], object] = lambda: None,
) -> Search:
    """Draws every trial without an edit and at every setting: each model (one a block), edit, part of the run, and
    branch (:func:`settings`).

    The effect is how far the edit comes on the straight way from the picture to that of the trial's target prompt, in
    the pipeline's final latents from the same noise: ``<e - s, w - s> / |w - s|^2``; 0 is not moved, 1 is there, more
    is beyond; NaN where both prompts draw the same picture. Without a target it is how far the picture moves at all,
    ``|e - s| / |s|``, in whatever direction.

    The damage is how implausible the model finds the finished picture: its diffusion loss (eq. 4) on it over that on
    the unedited picture; with a target prompt, or on the target's picture under that prompt if this is lower. 1 is as
    good as unedited; infinite for a picture that is not finite.

    Args:
        adapter: the pipeline.
        models: name -> TIDE, on the pipeline's device. With several, every trial needs a target: latents of different
            models have nothing to do with each other.
        trials: what is drawn; all with a target prompt or none.
        make: from a model and a trial to the edits by name, such as ``{"1": Replace(target), "0.5": ...}``; the same
            names for all.
        steps: parts of the run to try, as fractions.
        n_steps: sampling steps.
        guidance_scale: of classifier-free guidance; at most 1 is without.
        size: height and width in pixels; default the pipeline's own.
        tokens: bool ``[tokens]``, the image tokens to edit; default all.
        renormalise: keep each token's latent norm (eqs 9, 19).
        on_run: called after each run of the pipeline (:func:`n_runs` of them).

    Raises:
        TideError: trials, models and targets do not go together; an edit or the size does not fit; an unedited picture
            is not finite.
    """
    _check(models, trials)
    drawer = Drawer(adapter, n_steps, guidance_scale, image_size(adapter, size), on_run)
    where: dict[str, Any] = {"tokens": tokens, "renormalise": renormalise}
    found: dict[EditSetting, Tried] = {}
    before, wanted = [], []
    for trial in trials:
        ruler = Ruler.of(drawer, trial)
        before.append(_picture(adapter, ruler.source))
        if ruler.target is not None:
            wanted.append(_picture(adapter, ruler.target))
        for name, model in models.items():
            edits = make(model, trial)
            for setting in settings([name], list(edits), n_steps=n_steps, guidance_scale=guidance_scale, steps=steps):
                tried = found.setdefault(setting, Tried(setting, ruler.target is not None, [], [], [], []))
                change = edits[setting.edit]
                with edit(
                    adapter.pipe, model, change, steps=setting.steps, branch=setting.branch, **where, warns=False
                ) as met:
                    edited = drawer.draw(trial.prompt, trial.seed)
                finite = bool(torch.isfinite(edited).all())
                tried.effects.append(ruler.effect(edited) if finite else math.nan)
                tried.damages.append(ruler.damage(edited) if finite else math.inf)
                tried.pictures.append(_picture(adapter, edited.nan_to_num(0, 0, 0)))
                tried.met.append(met)
    return Search(list(trials), before, wanted, sorted(found.values(), key=lambda each: -each.score))


def n_runs(n_settings: int, trials: Sequence[EditTrial]) -> int:
    """How often :func:`search_edits` runs the pipeline, besides the runs that ``make`` needs."""
    return len(trials) * (n_settings + 1) + sum(trial.target is not None for trial in trials)


def _check(models: Mapping[str, TIDE], trials: Sequence[EditTrial]) -> None:
    with_target = [trial.target is not None for trial in trials]
    if not trials or not models:
        raise TideError("there is nothing to search; give at least one model and one trial")
    if any(with_target) and not all(with_target):
        raise TideError("some trials have a target prompt and some have none; give all of them one, or none")
    if len(models) > 1 and not all(with_target):
        raise TideError("several models can be compared only by what they reach; give the trials a target prompt")


def _picture(adapter: Adapter, latents: Tensor) -> Image:
    return to_image(adapter.decode_latents(latents)[0].nan_to_num(0.0))
