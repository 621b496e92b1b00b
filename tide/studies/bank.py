"""Where in the image to edit, times what to put there, with a bank of training scenes known.

No image and no prompt of the target: the bank says what its concepts look like, and its detectors find the source at
every step, as latents tell, or beside them raw neurons or a dictionary that was never trained
(:mod:`tide.studies.placed`).
"""

from __future__ import annotations

from tide.studies.edit_study import Sizes
from tide.studies.equal_information import LATENTS, RAW, WHERE, Group, reproduce_groups
from tide.studies.options import Options
from tide.studies.placed import BASELINES_BANK, WHATS, bank_method

GROUPS = {
    "a bank": Group(
        "of-bank",
        bank_method("contrast", "latents"),
        {
            WHERE: tuple(bank_method(by, "latents") for by in WHATS),
            RAW: tuple(bank_method(by, None) for by in WHATS if by != "latents"),
            LATENTS: (bank_method("latents", None),),
        },
        tuple(BASELINES_BANK.values()),
        Sizes(24, 144, 1, ((0.0, 1.0),), 4, 48, 256, 3),
    ),
}


def reproduce(options: Options) -> str:
    """Runs the study into ``options.out`` and returns what was found."""
    return reproduce_groups(options, "bank", GROUPS)
