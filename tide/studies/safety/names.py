"""Names that the study's cells, its protections and its report share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tide.scenes.judge import Verdict
from tide.scenes.scene import ATTRIBUTES
from tide.studies.safety.prompts import Unwanted
from tide.studies.safety.rivals import UNGUARDED

UNGUARDED_NAME = UNGUARDED.name
GUARD, EDITED, STEERED = "guard", "cross-attention edit", "raw steering"
FILTER, NEGATIVE = "prompt filter", "negative prompt"
#: In the order of the tables.
PROTECTIONS = (UNGUARDED_NAME, GUARD, FILTER, NEGATIVE, EDITED, STEERED)
#: Those that are attacked with words.
ATTACKED = (UNGUARDED_NAME, GUARD, FILTER, EDITED)
#: Attacks on the prompt's embedding: found on the unguarded pipeline, and through the protection itself.
GRADIENT = ("gradient transferred", "gradient adaptive")


def cell_name(seed: int, concept: Unwanted, protection: str, what: str) -> str:
    return f"seed {seed} {concept.value} {protection} {what}"


def rows_of(verdicts: Sequence[Verdict]) -> list[list[Any]]:
    """What verdicts say, as JSON has it: the values of the attributes in their order."""
    return [[verdict.attributes[name] for name in ATTRIBUTES] for verdict in verdicts]


def verdicts_of(rows: Sequence[Sequence[Any]]) -> list[Verdict]:
    """Back from :func:`rows_of`, without confidences."""
    return [Verdict(dict(zip(ATTRIBUTES, row, strict=True)), {}) for row in rows]
