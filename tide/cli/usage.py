"""Which options a command uses in each of its modes; options that a mode does not use are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Any

from tide.cli.options import options_of, value_of
from tide.errors import TideError


@dataclass(frozen=True)
class Aspect:
    """One way in which runs of a command differ.

    ``modes`` maps each mode, in the words of a refusal ("with --store"), to the options that it uses: the names of
    their fields, separated by blanks. ``of`` says the mode of a parsed command. An option that some mode uses is
    refused in the others; an option that no aspect names is used in every mode.
    """

    of: Callable[[Any], str]
    modes: dict[str, str]

    @property
    def options(self) -> set[str]:
        """The options that only some of the modes use."""
        return {name for uses in self.modes.values() for name in uses.split()}

    def unused(self, mode: str) -> set[str]:
        return self.options - set(self.modes[mode].split())


def check_usage(command: Any, aspects: Iterable[Aspect], given: Set[str]) -> None:
    """Raises :class:`~tide.errors.TideError` for the first of the ``given`` options, by their names, that this parsed
    command does not use."""
    for aspect in aspects:
        mode = aspect.of(command)
        for name in sorted(given & aspect.unused(mode)):
            raise TideError(f"{options_of(type(command))[name].flag} is not used {mode}; leave it off")


_FOLDER, _SAVED, _NAMED = "with a folder of images", "with a saved data set", "with a named data set"
_SCENES, _NOTHING = "with --data scenes", "without --data"


def _kind_of_data(command: Any) -> str:
    from tide.images.kinds import kind_of

    data = value_of(command, "data")
    if data is None:
        return _NOTHING
    return _SCENES if data == "scenes" else {"folder": _FOLDER, "saved": _SAVED, "named": _NAMED}[kind_of(data)]


def kind_of_data(*, without: str = "", reserves: bool = False) -> Aspect:
    """What ``--data`` names; the options ``without`` are also used where it is not given. ``reserves``: the command can
    hold images out."""
    folder = f"size skip_unreadable caption_column{' hold_out' if reserves else ''}"
    rows = f"{folder} split image_column"
    return Aspect(_kind_of_data, {_FOLDER: folder, _SAVED: rows, _NAMED: rows, _SCENES: "", _NOTHING: without})


def with_option(name: str, *, uses: str = "", leaves_out: str = "") -> Aspect:
    """Whether the option ``name`` is given (is not None or False): ``uses`` are used only with it, ``leaves_out`` only
    without it."""
    flag = f"--{name.replace('_', '-')}"

    def of(command: Any) -> str:
        value = value_of(command, name)
        return f"without {flag}" if value is None or value is False else f"with {flag}"

    return Aspect(of, {f"with {flag}": uses, f"without {flag}": leaves_out})


def fast_beside(*names: str) -> Aspect:
    """``--fast`` sets these options, unless all of them are given; for commands where it does nothing else."""
    flags = " and ".join(f"--{name.replace('_', '-')}" for name in names)

    def of(command: Any) -> str:
        return f"{'without' if any(value_of(command, name) is None for name in names) else 'with'} {flags}"

    return Aspect(of, {f"with {flags}": "", f"without {flags}": "fast"})
