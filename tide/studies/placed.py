"""Edits of some tokens: where in the image, times what is put there.

Where: everywhere, or in the tokens that differ most between target and source, or show the source. Latents, raw
activations or a dictionary that was never trained tell. What: latents, or raw activations. By what is known of the
target:

- one image: the contrast of :mod:`tide.studies.paper_methods`, on tokens that differ on that image;
- the target's prompt: what it makes of the very same noisy latents (:class:`tide.editing.Beside`), on tokens that
  differ there, at every step;
- a bank of training scenes (:class:`tide.editing.Bank`): what it says of the target, in tokens where its detectors find
  the source, at every step.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

from torch import Tensor

from tide.editing import Bank, Beside, Edit, PerImage, RawEdit, SteerPerImage, Where
from tide.editing.bank import By as BankBy
from tide.sae.model import TIDE
from tide.studies.class_knowledge import Told, concepts_of
from tide.studies.editor import BANK, PROMPT_BESIDE, By, Editor, Spec, Tasks
from tide.studies.paper_methods import PAPER
from tide.studies.tasks import EditTask

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

# -- a bank ---------------------------------------------------------------------------------------------------


class What(NamedTuple):
    """What a bank puts there, in words, the strengths that are tried, and the one for step ranges."""

    label: str
    strengths: tuple[float, ...]
    middle: float


WHATS: dict[BankBy, What] = {
    "contrast": What("contrasts of similar tokens", (0.25, 0.5, 1.0, 1.5), 1.5),
    "mean": What("difference of means", (1.0,), 1.0),
    "nearest": What("nearest tokens", (1.0,), 1.0),
    "latents": What("difference of mean latents", (1.0, 2.0), 1.0),
}


def _what(editor: Editor, tasks: Tasks, factor: float, *, by: BankBy) -> Edit | RawEdit:
    model, bank = editor.bank()
    edits = [_of_task(model, bank, task, by, factor) for task in tasks]
    if by == "latents":
        return PerImage(tuple(cast("list[Edit]", edits)))
    return SteerPerImage(tuple(cast("list[RawEdit]", edits)))


def _of_task(model: TIDE, bank: Bank, task: EditTask, by: BankBy, factor: float) -> Edit | RawEdit:
    source, target = concepts_of(task)
    # The nearest tokens replace any source.
    return bank.what(target, by=by, source=None if by == "nearest" else source, factor=factor, model=model)


def _source(editor: Editor, tasks: Tasks, factor: float, *, told: Told = "latents") -> list[Where]:
    model, bank = editor.bank(told)
    return [bank.where(concepts_of(task)[0], model, grow=1) for task in tasks]


def bank_method(by: BankBy, told: Told | None) -> str:
    """The name of the method that puts there what the bank says ``by``, everywhere or where ``told`` find the
    source."""
    return f"bank {by}" + ("" if told is None else f" where {told} find the source")


def _bank_spec(by: BankBy, told: Told | None) -> Spec:
    label, strengths, middle = WHATS[by]
    where = "everywhere" if told is None else f"where {told} find the source"
    tokens = None if told is None else partial(_source, told=told)
    make = partial(_what, by=by)
    return Spec(f"{label}, {where}", BANK, strengths, middle, make, raw=by != "latents", tokens=tokens)


#: What finds the source without trained latents.
BASELINES_BANK: dict[Told, str] = {told: bank_method("contrast", told) for told in ("random latents", "neurons")}

BANKED: dict[str, Spec] = {
    **{bank_method(by, told): _bank_spec(by, told) for told in (None, "latents") for by in WHATS},
    **{
        name: replace(_bank_spec("contrast", told), strengths=WHATS["contrast"].strengths[-1:])
        for told, name in BASELINES_BANK.items()
    },
}

PLACED = ONE_IMAGE_PLACED | BESIDE | BANKED
