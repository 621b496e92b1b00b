"""Checks JSON values against types, so that a file holds what its reader expects."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from tide.errors import TideError

_NAMES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false", NoneType: "null"}


def check_schema(value: Any, kind: Any, where: str) -> None:
    """Raises :class:`~tide.errors.TideError`, naming the entry, unless ``value`` is of ``kind``.

    Args:
        value: what ``json.loads`` returned.
        kind: ``str``, ``int``, ``float`` (any finite number), ``bool``, ``None``, ``Any``, a ``Literal``, a union,
            ``list[...]``, ``tuple[...]`` (of any length with an ellipsis), ``dict[str, ...]``, a ``TypedDict`` or a
            dataclass, whose fields with a default may be missing; further keys of these two are allowed and not
            checked.
        where: the file, for the message.
    """
    if (fault := _fault(value, kind, "")) is not None:
        raise TideError(f"{where}: {fault}; the file is damaged or of another version, make it again")


def _fault(value: Any, kind: Any, at: str) -> str | None:
    """What is wrong with the entry ``at``, or None."""
    origin = get_origin(kind)
    if kind is Any:
        return None
    if origin in (Union, UnionType):
        faults = {each: _fault(value, each, at) for each in get_args(kind)}
        if None in faults.values():
            return None
        within = [fault for each, fault in faults.items() if isinstance(value, dict) and _is_object(each)]
        return within[0] if len(within) == 1 else f"{at or 'it'} is {_shown(value)} and must be {_name(kind)}"
    if _is_object(kind):
        return _object_fault(value, kind, at)
    if _is_list(kind) and isinstance(value, list):
        each = get_args(kind)[0]
        return _first(_fault(entry, each, f"{at}[{i}]") for i, entry in enumerate(value))
    if origin is tuple and isinstance(value, list) and len(value) == len(get_args(kind)):
        pairs = enumerate(zip(value, get_args(kind), strict=True))
        return _first(_fault(entry, each, f"{at}[{i}]") for i, (entry, each) in pairs)
    if origin is dict and isinstance(value, dict):
        each = get_args(kind)[1]
        return _first(_fault(entry, each, f"{at}.{key}" if at else key) for key, entry in value.items())
    return None if _is_plain(value, kind) else f"{at or 'it'} is {_shown(value)} and must be {_name(kind)}"


def _object_fault(value: Any, kind: Any, at: str) -> str | None:
    if not isinstance(value, dict):
        return f"{at or 'it'} is {_shown(value)} and must be an object"
    if missing := sorted(_required(kind) - value.keys()):
        return f"{at + '.' if at else ''}{missing[0]} is missing"
    hints = get_type_hints(kind)
    return _first(_fault(value[name], hints[name], f"{at}.{name}" if at else name) for name in hints if name in value)


def _required(kind: Any) -> set[str]:
    if is_typeddict(kind):
        # Not __required_keys__, which takes NotRequired for required where annotations are strings.
        hints = get_type_hints(kind, include_extras=True)
        return {name for name, each in hints.items() if get_origin(each) is not NotRequired}
    return {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}


def _first(faults: Any) -> str | None:
    return next((fault for fault in faults if fault is not None), None)


def _is_object(kind: Any) -> bool:
    return is_typeddict(kind) or is_dataclass(kind)


def _is_list(kind: Any) -> bool:
    """Whether ``kind`` has any number of entries of one kind."""
    return get_origin(kind) is list or (get_origin(kind) is tuple and get_args(kind)[-1] is ...)


def _is_plain(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind) and type(value) in {type(each) for each in get_args(kind)}
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if kind in (None, NoneType) else kind in (str, bool) and isinstance(value, kind)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _name(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_name(each) for each in get_args(kind))
    if get_origin(kind) is Literal:
        return " or ".join(repr(each) for each in get_args(kind))
    if get_origin(kind) in (list, tuple):
        return "a list" if _is_list(kind) else f"a list of {len(get_args(kind))}"
    if get_origin(kind) is dict or _is_object(kind):
        return "an object"
    return _NAMES.get(NoneType if kind is None else kind, str(kind))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
