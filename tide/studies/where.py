"""Where in the image to edit, times what to put there, with one image or the target's prompt known.

Latents or raw activations are edited, everywhere or in the tokens that differ most between target and source, as
trained latents tell, or beside them raw activations or a dictionary that was never trained
(:mod:`tide.studies.placed`).
"""

from __future__ import annotations

from tide.studies.edit_study import Sizes
from tide.studies.equal_information import LATENTS, RAW, WHERE, Group, reproduce_groups
from tide.studies.options import Options
from tide.studies.placed import (
    BASELINE_BESIDE,
    BASELINES_THERE,
    LATENTS_BESIDE,
    LATENTS_THERE,
    RAW_BESIDE,
    RAW_BESIDE_THERE,
    RAW_THERE,
)

GROUPS = {
    "one image": Group(
        "one-image",
        LATENTS_THERE,
        {WHERE: (LATENTS_THERE, RAW_THERE), RAW: ("steer bounded", "steer contrast"), LATENTS: ("contrast",)},
        BASELINES_THERE,
        Sizes(24, 144, 1, ((0.0, 1.0),), 3, 384, 16, 3),
    ),
    "the target's prompt": Group(
        "target-prompt",
        RAW_BESIDE_THERE,
        {WHERE: (RAW_BESIDE_THERE,), RAW: (RAW_BESIDE,), LATENTS: (LATENTS_BESIDE,)},
        (BASELINE_BESIDE,),
        Sizes(24, 144, 1, ((0.0, 1.0),), 1, 48, 16, 3),
    ),
}


def reproduce(options: Options) -> str:
    """Runs the study into ``options.out`` and returns what was found."""
    return reproduce_groups(options, "where", GROUPS)
