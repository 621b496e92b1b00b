"""What a guard made of latents is compared with: protections by the prompt, and the form that all protections have."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from tide.studies.safety.prompts import Unwanted
from tide.studies.tasks import swap_word


def _as_it_is(prompt: str) -> str:
    return prompt


def _open(pipe: Any) -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass(frozen=True)
class Rival:
    """A protection of the pipeline: what becomes of a prompt, the context in which the pipeline is called, and the
    negative prompt, which acts under guidance alone. The defaults protect from nothing."""

    name: str
    prompt: Callable[[str], str] = _as_it_is
    context: Callable[[Any], AbstractContextManager[Any]] = _open
    negative_prompt: str = ""


#: The pipeline as it is.
UNGUARDED = Rival("unguarded")


def filtered(concept: Unwanted) -> Rival:
    """The unwanted word is replaced by the neutral one of its kind; other prompts stay as they are."""
    return Rival("prompt filter", lambda prompt: swap_word(prompt, concept.value, concept.neutral))


def negative(concept: Unwanted) -> Rival:
    """The unwanted word is the negative prompt: guidance moves away from it.

    It is weak where the prompt itself names the concept: of 24 test prompts at the pipeline's guidance of 2 every one
    still drew it (house, ornate, tree). On development prompts at a guidance of 7, "house" removed 1 of 12 and
    "a house" 1; "ornate" removed 0 of 9 and "an ornate house" 3, with 2 of 12 images wrecked (by hand).
    """
    return Rival("negative prompt", negative_prompt=concept.value)
