"""The options of ``tide edit`` that let latents draw where it edits, and what they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tide.cli.usage import Aspect, with_option
from tide.cli.values import Flag, Fraction, MaybeCount, MaybePlaces, Number
from tide.errors import TideError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image
    from torch import Tensor

    from tide import editing
    from tide.editing import Overlay
    from tide.sae import TIDE


@dataclass(frozen=True, kw_only=True)
class DrawnWhere:
    """Which latents draw the mask, and how."""

    where: MaybePlaces = None
    """edit only where these latents are active, found anew at every step, such as 12,40; or where --bank finds a
    concept, such as house"""
    where_threshold: Number = 0.0
    """edit where their sum is above this"""
    where_grow: MaybeCount = None
    """edit N tokens more on each side"""
    where_smooth: MaybeCount = None
    """average the sum over N tokens on each side first"""
    where_hold: Fraction = 1.0
    """keep a token of the last step while the sum is above this share of the threshold"""
    show_where: Flag = False
    """write where.png, the edited tokens over what some steps predict"""

    def check(self) -> None:
        """Raises for a share that is none."""
        if not 0 <= self.where_hold <= 1:
            raise TideError(f"--where-hold {self.where_hold:g} is not a share of the threshold; give 0 to 1")

    @property
    def concepts(self) -> tuple[str, ...]:
        """Those that ``--where`` names."""
        return tuple(each for each in self.where or () if isinstance(each, str))

    @property
    def latents(self) -> tuple[int, ...]:
        """Those that ``--where`` names."""
        return tuple(each for each in self.where or () if not isinstance(each, str))

    def mask(
        self, model: TIDE, within: Tensor | None, bank: editing.Bank | None = None
    ) -> editing.Where | Tensor | None:
        """The image tokens to edit, as :func:`tide.editing.draw_edits` takes them; ``within`` is the mask of
        ``--mask``, which holds alone where no latents are named, and ``bank`` holds the concepts that are."""
        from tide import editing

        if self.where is None:
            return within
        if self.concepts:
            assert bank is not None
            detectors = tuple(bank.detector(concept, model) for concept in self.concepts)
        else:
            detectors = (editing.Detector.of_features(model, self.latents, self.where_threshold),)
        return editing.Where(
            detectors,
            grow=self.where_grow or 0,
            smooth=self.where_smooth or 0,
            low=self.where_hold,
            within=within,
        )

    def strip(self, steps: Mapping[str, Sequence[Overlay]], prompt: str) -> Image:
        """where.png: a row of ``steps`` for each picture, under its words."""
        from tide.strips import Row, labelled

        assert self.where is not None
        rows = [
            Row([step.pictures[0] for step in each], [step.label for step in each], words)
            for words, each in steps.items()
        ]
        named = ", ".join(map(str, self.where))
        found = f"of {named}" if self.concepts else f"latents {named} are above {self.where_threshold:g}"
        return labelled(rows, f"{prompt}: where {found}")


def usage() -> Aspect:
    """What goes with ``--where``."""
    return with_option(
        "where", uses="where_threshold where_grow where_smooth where_hold show_where", leaves_out="altered"
    )


def names_usage() -> Aspect:
    """A concept of a bank has thresholds of its own."""
    named, numbered = "with concepts in --where", "with latents in --where"
    return Aspect(
        lambda asked: named if asked.drawn_mask.concepts else numbered, {named: "", numbered: "where_threshold"}
    )
