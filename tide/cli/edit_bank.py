"""The options of ``tide edit`` that take concepts from a bank, and what they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tide.cli.usage import Aspect, with_option
from tide.cli.values import MaybeFile, MaybeText, option
from tide.errors import TideError

if TYPE_CHECKING:
    from tide import editing
    from tide.adapters import Adapter
    from tide.sae import TIDE


@dataclass(frozen=True, kw_only=True)
class FromBank:
    """Which bank, and how a concept of it is put into the image."""

    bank: MaybeFile = None
    """bank.safetensors that `tide bank` wrote, or its folder; its concepts are names for --where and --what"""
    what_by: Annotated[Literal["nearest", "mean", "contrast", "latents"] | None, option()] = None
    """what to put there: the most similar tokens of the concept (nearest, the default), their mean, what the words
    changed (contrast), or its latents"""
    what_from: MaybeText = None
    """the concept that --what takes the place of; contrast needs it"""

    def load(self, adapter: Adapter) -> editing.Bank | None:
        """The bank; raises :class:`~tide.errors.TideError` for one of another pipeline."""
        if self.bank is None:
            return None
        from tide.cli.bank import FILE
        from tide.editing import load_bank

        path = Path(self.bank)
        found = load_bank(path / FILE if path.is_dir() else path)
        found.check(adapter)
        return found

    def edit(self, bank: editing.Bank, model: TIDE, what: str, strength: float) -> editing.RawEdit | editing.Edit:
        """``--what`` at a strength."""
        bank.check_model(model)
        return bank.what(what, by=self.what_by or "nearest", source=self.what_from, factor=strength, model=model)

    def check(self, what: str | None, concepts: tuple[str, ...], renormalise: bool) -> None:
        """Raises for options that do not go together."""
        if concepts and self.bank is None:
            raise TideError(f"--where names {concepts[0]!r}; give --bank, which holds concepts, or numbers of latents")
        if what is not None and self.bank is None:
            raise TideError("--what names a concept; give --bank, which holds concepts")
        if self.bank is not None and what is None and not concepts:
            raise TideError("nothing of --bank is asked for; name concepts in --what or --where")
        if what is not None and renormalise and self.what_by != "latents":
            raise TideError("--renormalise keeps the norm of latents; give --what-by latents, or leave it off")


def usage() -> Aspect:
    """What goes with ``--what``."""
    return with_option("what", uses="what_by what_from", leaves_out="search")
