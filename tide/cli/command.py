"""What a command is: its options as a dataclass, and ``run()``."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

from tide.cli.options import values_of
from tide.cli.usage import Aspect


@dataclass(frozen=True, kw_only=True)
class Command:
    """Its subclasses' docstrings are the commands' help, their fields the options."""

    #: What decides over the options that only some runs use.
    usage: ClassVar[tuple[Aspect, ...]] = ()
    #: Option -> the option of text, required otherwise, that need not be given with it.
    supplies: ClassVar[Mapping[str, str]] = {}
    #: What an interruption leaves, for the line that reports it.
    interrupted: ClassVar[str] = "nothing was written"

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def run(self) -> int | None:
        """The exit code; None counts as 0."""
        raise NotImplementedError

    def made_by(self, *, seed: int | None = None) -> dict[str, Any]:
        """This command with its options as they were given, for ``run.json``. Values that stand for options that were
        left off belong into its contents. ``seed``: the one that was used, if ``--seed`` does not say it."""
        from tide.provenance import provenance

        arguments = values_of(self)
        return provenance(self.name, arguments, seed=arguments.get("seed") if seed is None else seed)


#: What an interruption would leave right now, where it is not the command's ``interrupted``.
left_behind: ContextVar[str | None] = ContextVar("left_behind", default=None)
