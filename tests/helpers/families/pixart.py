"""PixArt: the bundled architecture."""

from __future__ import annotations

from typing import Any

from tests.helpers.families.family import ADALN_SINGLE, Family
from tide.scenes.pipeline import build_pipeline


def build_pixart() -> Any:
    return build_pipeline()


FAMILY = Family(build_pixart, (64, 32), (8, 4), ADALN_SINGLE)
