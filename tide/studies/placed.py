"""Edits of some tokens: where in the image, times what is put there.

Where: everywhere, or in the tokens that differ most between target and source. Latents, raw activations or a dictionary
that was never trained say how much a token differs. What: latents, or raw activations. Twice, by what is known of the
target:

- one image: the contrast of :mod:`tide.studies.paper_methods`, on tokens that differ on that image;
- the target's prompt: what it makes of the very same noisy latents (:class:`tide.editing.Beside`), on tokens that
  differ there, at every step.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from tide.editing import Beside
from tide.studies.editor import PROMPT_BESIDE, By, Editor, Spec, Tasks
from tide.studies.paper_methods import PAPER

#: A token differs enough if it does so by this share of what the most different one does: a third of the tokens do.
SHARE = 0.4
#: The same of edits that see the target's prompt.
SHARE_BESIDE = 0.3

# -- one image ------------------------------------------------------------------------------------------------


def _there(editor: Editor, tasks: Tasks, factor: float, *, by: By = "latents") -> Tensor:
    return editor.differing(tasks, by, SHARE)


LATENTS_THERE, RAW_THERE = "contrast where latents differ", "steer bounded where latents differ"
#: What tells without trained latents how much a token differs.
BASELINES_THERE = ("contrast where activations differ", "contrast where random latents differ")

_LATENTS = replace(PAPER["contrast"], strengths=(1.0, 1.5, 2.0), tokens=_there)

ONE_IMAGE_PLACED: dict[str, Spec] = {
    LATENTS_THERE: replace(_LATENTS, label="contrast of latents where they differ"),
    RAW_THERE: replace(
        PAPER["steer bounded"],
        label="contrast, raw and bounded, where latents differ",
        strengths=(1.5,),
        tokens=_there,
    ),
    BASELINES_THERE[0]: replace(
        _LATENTS,
        label="contrast of latents where activations differ",
        strengths=(1.5,),
        tokens=partial(_there, by="activations"),
    ),
    BASELINES_THERE[1]: replace(
        _LATENTS,
        label="contrast of latents where random ones differ",
        strengths=(1.5,),
        tokens=partial(_there, by="random latents"),
    ),
}

# -- the target's prompt --------------------------------------------------------------------------------------


def _everywhere(editor: Editor, tasks: Tasks, factor: float) -> Beside:
    return Beside(editor.adapter, _prompts(tasks), factor)


def _latents_everywhere(editor: Editor, tasks: Tasks, factor: float) -> Beside:
    return Beside(editor.adapter, _prompts(tasks), factor, latents=editor.model)


def _where(editor: Editor, tasks: Tasks, factor: float) -> Beside:
    return Beside(editor.adapter, _prompts(tasks), factor, share=SHARE_BESIDE, differing=editor.model)


def _where_random(editor: Editor, tasks: Tasks, factor: float) -> Beside:
    return Beside(editor.adapter, _prompts(tasks), factor, share=SHARE_BESIDE, differing=editor.random)


def _prompts(tasks: Tasks) -> list[str]:
    return [task.target_prompt for task in tasks]


RAW_BESIDE, LATENTS_BESIDE = "beside", "beside in latents"
RAW_BESIDE_THERE, BASELINE_BESIDE = "beside where latents differ", "beside where random latents differ"

BESIDE: dict[str, Spec] = {
    name: Spec(label, PROMPT_BESIDE, (1.0,), 1.0, make, raw=True)
    for name, label, make in (
        (RAW_BESIDE, "raw activations, everywhere", _everywhere),
        (LATENTS_BESIDE, "latents, everywhere", _latents_everywhere),
        (RAW_BESIDE_THERE, "raw activations where latents differ", _where),
        (BASELINE_BESIDE, "raw activations where random latents differ", _where_random),
    )
}

PLACED = ONE_IMAGE_PLACED | BESIDE
