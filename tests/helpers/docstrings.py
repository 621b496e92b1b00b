"""What docstrings of public names lack."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from tests.helpers.names import PACKAGES
from website.public import Name, data_comment, members
from website.roles import full_name, roles_of

#: Entries of a section: ``name: what`` or ``one, other: what``, indented once.
ENTRY = re.compile(r"(?:^    |; )(?!None\b)(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \([^)]*\))?:", re.MULTILINE)


def gaps(name: Name) -> Iterator[str]:
    """What the docstrings of a public name and of its members lack, a line for each."""
    if name.kind == "data":
        if not data_comment(name):
            yield f"{name.full}: no comment that begins with #:"
    elif name.kind == "function":
        yield from _of_function(name.full, name.value, inspect.getdoc(name.value))
        yield from unknown_roles(name.full, name.value.__doc__, name.value.__module__, "")
    else:
        yield from _of_class(name)


def _of_class(name: Name) -> Iterator[str]:
    kind = name.value
    text = own_text(kind)
    if text is None:
        yield f"{name.full}: no docstring"
    else:
        yield from unknown_roles(name.full, text, kind.__module__, kind.__qualname__)
        yield from _unnamed(name.full, fields_of(kind), class_text(kind), attribute_comments(kind))
    for member, value in members(kind):
        own = value.fget if isinstance(value, property) else value
        if not inspect.getdoc(value) and not inspect.getdoc(getattr(kind, member)):
            yield f"{name.full}.{member}: no docstring"
        yield from unknown_roles(f"{name.full}.{member}", own.__doc__, own.__module__, kind.__qualname__)


def own_text(kind: type) -> str | None:
    """The docstring that a class itself has; none for what ``dataclass`` and ``NamedTuple`` generate."""
    text = vars(kind).get("__doc__")
    return None if text is None or text.startswith(f"{kind.__name__}(") else inspect.cleandoc(text)


def class_text(kind: type) -> str:
    """The docstrings of a class, of its ``__init__``, and of the project's classes that it extends."""
    ours = [each for each in kind.__mro__ if each.__module__.split(".")[0] in PACKAGES]
    inits = [vars(each)["__init__"].__doc__ for each in ours if "__init__" in vars(each)]
    return "\n\n".join([*(own_text(each) or "" for each in ours), *(inspect.cleandoc(text) for text in inits if text)])


def fields_of(kind: type) -> list[str]:
    """The fields of a dataclass or named tuple, or else the parameters of the class."""
    if is_dataclass(kind):
        return [each.name for each in fields(kind) if not each.name.startswith("_")]
    if issubclass(kind, tuple):
        return list(getattr(kind, "_fields", ()))
    ours = any("__init__" in vars(each) for each in kind.__mro__ if each.__module__.split(".")[0] in PACKAGES)
    return parameters(kind) if ours and not getattr(kind, "_is_protocol", False) else []


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls") and name[0] != "_"]


def attribute_comments(kind: type) -> set[str]:
    """Names of a class's body that a ``#:`` comment precedes."""
    found: set[str] = set()
    for each in kind.__mro__:
        if each.__module__.split(".")[0] in PACKAGES:
            found |= set(re.findall(r"^    #: .*\n(?:    #: .*\n)*    (\w+)", inspect.getsource(each), re.MULTILINE))
    return found


def _of_function(full: str, function: Callable[..., Any], text: str | None) -> Iterator[str]:
    if not text:
        yield f"{full}: no docstring"
    else:
        yield from _unnamed(full, parameters(function), text, set())


def _unnamed(full: str, names: list[str], text: str, commented: set[str]) -> Iterator[str]:
    """Names that the docstring does not name; where it has a section for them, those that the section lacks, too."""
    for name in names:
        if name not in commented and not re.search(rf"(?<![\w.]){name}(?!\w)", text):
            yield f"{full}: {name} is not described"
    listed = [set(re.findall(r"\w+", entry)) for section in sections(text) for entry in ENTRY.findall(section)]
    if listed and (left := set(names) - set.union(*listed) - commented - in_words(text)):
        yield f"{full}: its list lacks {', '.join(sorted(left))}"
    if unknown := set().union(*listed) - set(names):
        yield f"{full}: it lists {', '.join(sorted(unknown))}, which are no parameters"


def in_words(text: str) -> set[str]:
    """Names between double backticks outside the lists."""
    return set(re.findall(r"``(\w+)(?=[`= \[])", text))


def sections(text: str) -> list[str]:
    """The lists of arguments and attributes of a docstring."""
    return re.findall(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", text, re.MULTILINE)


def unknown_roles(full: str, text: str | None, module: str, kind: str) -> Iterator[str]:
    for role in roles_of(text or "", bare=module.startswith("tide_kernels")):
        if full_name(role.target, module, kind) is None:
            yield f"{full}: {role.words} names nothing"
