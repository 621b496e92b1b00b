"""Edits towards what the target's prompt makes of the same noisy latents: where in the image, times what is moved.

What is moved are raw activations, or latents. Where: everywhere, or in the tokens that differ most under the two
prompts. Latents, raw activations or a dictionary that was never trained say how much a token differs.
"""

from __future__ import annotations

from tide.editing import Beside
from tide.studies.editor import PROMPT_BESIDE, Editor, Spec, Tasks

#: Strengths of edits of every token: how far it moves.
FACTORS = (0.1, 1.0, 1.3)
#: Strengths of edits of some tokens: they move all the way and differ by at least 1 less this share of the most.
REACHES = (0.05, 0.7, 0.85)
#: That of the baselines, and the one at which step ranges are compared.
REACH = 0.7


def _everywhere(editor: Editor, tasks: Tasks, factor: float) -> Beside:
    return Beside(editor.adapter, _prompts(tasks), factor)


def _latents_everywhere(editor: Editor, tasks: Tasks, factor: float) -> Beside:
    return Beside(editor.adapter, _prompts(tasks), factor, latents=editor.model)


def _where_latents(editor: Editor, tasks: Tasks, reach: float) -> Beside:
    return Beside(editor.adapter, _prompts(tasks), share=1 - reach, differing=editor.model)


def _latents_where_latents(editor: Editor, tasks: Tasks, reach: float) -> Beside:
    return Beside(editor.adapter, _prompts(tasks), share=1 - reach, differing=editor.model, latents=editor.model)


def _where_activations(editor: Editor, tasks: Tasks, reach: float) -> Beside:
    return Beside(editor.adapter, _prompts(tasks), share=1 - reach)


def _where_random(editor: Editor, tasks: Tasks, reach: float) -> Beside:
    return Beside(editor.adapter, _prompts(tasks), share=1 - reach, differing=editor.random)


def _prompts(tasks: Tasks) -> list[str]:
    return [task.target_prompt for task in tasks]


RAW_EVERYWHERE, LATENTS_EVERYWHERE = "raw everywhere", "latents everywhere"
RAW_WHERE, LATENTS_WHERE = "raw where latents differ", "latents where latents differ"
#: What tells without trained latents how much a token differs.
BASELINES = ("raw where activations differ", "raw where random latents differ")

#: The methods by their names, which are their labels.
BESIDE: dict[str, Spec] = {
    label: Spec(label, PROMPT_BESIDE, strengths, middle, make, raw=True)
    for label, strengths, middle, make in (
        (RAW_EVERYWHERE, FACTORS, 1.0, _everywhere),
        (LATENTS_EVERYWHERE, FACTORS, 1.0, _latents_everywhere),
        (RAW_WHERE, REACHES, REACH, _where_latents),
        (LATENTS_WHERE, REACHES, REACH, _latents_where_latents),
        (BASELINES[0], (REACH,), REACH, _where_activations),
        (BASELINES[1], (REACH,), REACH, _where_random),
    )
}
