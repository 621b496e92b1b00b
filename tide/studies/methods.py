"""The methods of editing that studies compare, by name."""

from __future__ import annotations

from tide.studies.editor import Spec
from tide.studies.paper_methods import PAPER
from tide.studies.placed import PLACED

METHODS: dict[str, Spec] = PAPER | PLACED

#: A method of latents -> those of raw activations that know the same.
RIVALS: dict[str, tuple[str, ...]] = {
    "contrast": ("steer contrast", "steer bounded"),
    "towards": ("steer towards",),
    "swap": ("steer",),
    "transfer": ("steer transfer", "steer transfer bounded"),
}
