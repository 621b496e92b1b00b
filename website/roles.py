"""Names in docstrings, such as ``:func:`train```: what they mean, and where that is documented."""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tests.helpers.names import resolved
from website.public import public_names, split

#: A role with its target; in `tide_kernels` also a name between single backticks.
ROLE = re.compile(r":(?:py:)?(class|func|meth|data|attr|mod|exc|obj):`([^`<]+)`")
BARE = re.compile(r"(?<![`:\w])`([\w.]+)`(?![`\w])")


@dataclass(frozen=True)
class Role:
    """A name in a docstring: the words as they stand there, what is shown, and the name that it means."""

    words: str
    shown: str
    target: str


def roles_of(text: str, *, bare: bool) -> Iterator[Role]:
    """The roles of a docstring. ``bare``: names between single backticks are roles as well."""
    for found in ROLE.finditer(text):
        target = found[2].strip().lstrip("~!")
        yield Role(found[0], target.split(".")[-1] if found[2].startswith("~") else target, target)
    if bare:
        yield from (Role(found[0], found[1], found[1]) for found in BARE.finditer(text))


def full_name(target: str, module: str, kind: str = "") -> str | None:
    """The dotted name from its first package on, if ``target`` is one where it stands: inside the class ``kind`` (a
    name within the module, or "" outside classes), in ``module``, in its package, or anywhere. None if there is no
    such name."""
    for place in (f"{module}.{kind}." if kind else "", f"{module}.", f"{module.rpartition('.')[0]}.", ""):
        name = f"{place}{target}".lstrip(".")
        if name.split(".")[0] in sys.modules and resolved(name):
            return name
    return f"builtins.{target}" if hasattr(builtins, target) else None


class Documented:
    """Where the reference documents what a name means."""

    def __init__(self) -> None:
        self.homes = {id(name.value): name.full for name in public_names() if name.kind != "data"}
        self.data = {name.full for name in public_names() if name.kind == "data"}

    def home(self, name: str) -> str | None:
        """The name in the reference, of a class, function or member of a class; None for what is not public."""
        if name.split(".")[0] not in ("tide", "tide_kernels"):
            return None
        if name in self.data:
            return name
        module, first = split(name)
        if not first:
            return None
        rest = name.split(".")[len(module.split(".")) + 1 :]
        full = self.homes.get(id(getattr(import_module(module), first)))
        return None if full is None else ".".join((full, *rest))


def linked(text: str, module: str, kind: str, documented: Documented, complain: Callable[[str], Any] = print) -> str:
    """A docstring whose roles are links of Sphinx to where the reference documents their targets; what it does not
    document is code. ``complain`` is called with each target that is no name."""
    for role in roles_of(text, bare=module.startswith("tide_kernels")):
        name = full_name(role.target, module, kind)
        if name is None:
            complain(role.target)
        home = name and documented.home(name)
        link = f":py:obj:`{role.shown} <{home}>`" if home else f"``{role.shown}``"
        # Between double backticks stands what is code already, also the replacement of a name that is there twice.
        text = "".join(
            part if part.startswith("``") else part.replace(role.words, link) for part in re.split(r"(``[^`]+``)", text)
        )
    return text
