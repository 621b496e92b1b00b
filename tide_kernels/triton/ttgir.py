"""Reads Triton's GPU dialect (the stage "ttgir" of a compiled kernel) into operations, by its text.

Triton has no stable interface to its compiler's stages from Python. The text has one operation a line; a region
begins at the end of a line and ends at the beginning of one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_NAME = r"%[\w$.]+(?:-[\w$.]+)*"
_USE = re.compile(rf"{_NAME}(?:#\d+)?")
_LOCATION = re.compile(r"\s*loc\([^()]*(?:\([^()]*\)[^()]*)*\)$")
_RESULTS = re.compile(rf"^({_NAME}(?::\d+)?(?:, {_NAME}(?::\d+)?)*) = (.*)$")
_CARRIED = re.compile(rf"({_NAME}) = ({_NAME}(?:#\d+)?)")
LOOPS = ("for", "while")


@dataclass(eq=False)
class Op:
    """An operation; its operands are resolved to the operations that made them."""

    kind: str  # without its dialect: "local_alloc", "for", ...
    text: str
    operands: list[Value]
    results: int
    loops: int  # how many loops are around it
    body: list[Op] = field(default_factory=list)  # the operations of its regions, one region after another
    initial: list[Value] = field(default_factory=list)  # of a loop: what the values that it carries start as

    @property
    def final(self) -> list[Value]:
        """What the values that a loop carries are at the end of a round."""
        return self.body[-1].operands if self.body and self.body[-1].kind == "yield" else []


@dataclass(frozen=True)
class Value:
    """A result of an operation or, ``inside`` a loop, a value that it carries; op is None for any other argument."""

    op: Op | None
    place: int = 0
    inside: bool = False


_Region = tuple[dict[str, Value], Op]


def parse(ttgir: str) -> Op:
    """The module; its body holds the functions, and so on."""
    module = Op("module", "", [], 0, 0)
    # Names are unique only among the regions around them. Each region has its names, and belongs to an operation.
    regions: list[_Region] = [({}, module)]
    for line in ttgir.splitlines():
        text = _LOCATION.sub("", line.strip())
        if text.startswith("}"):
            _, owner = regions.pop() if len(regions) > 1 else regions[0]
            if text.endswith("{"):  # "} else {" and "} do {"
                regions.append(({}, owner))
        elif text and not text.startswith(("#", "//", "^", "{-#")):
            op = _operation(text, regions)
            regions[-1][1].body.append(op)
            if text.endswith("{"):
                regions.append((_carried(text, op, regions), op))
    return module


def _operation(text: str, regions: list[_Region]) -> Op:
    found = _RESULTS.match(text)
    names, body = (found[1].split(", "), found[2]) if found else ([], text)
    kind = re.split(r"[\s(<]", body, maxsplit=1)[0].strip('"').rsplit(".", 1)[-1]
    loops = sum(owner.kind in LOOPS for _, owner in regions)
    op = Op(kind, body, [_value(name, regions) for name in _USE.findall(body)], 0, loops)
    for name in names:
        name, _, count = name.partition(":")
        for i in range(int(count or 1)):
            regions[-1][0][f"{name}#{i}"] = Value(op, op.results)
            op.results += 1
    return op


def _carried(text: str, loop: Op, regions: list[_Region]) -> dict[str, Value]:
    """The values that a loop carries, by the names that they have inside."""
    names: dict[str, Value] = {}
    for inside, start in _CARRIED.findall(text.partition("iter_args(")[2]):
        names[f"{inside}#0"] = Value(loop, len(loop.initial), inside=True)
        loop.initial.append(_value(start, regions))
    return names


def _value(name: str, regions: list[_Region]) -> Value:
    full = name if "#" in name else f"{name}#0"
    return next((names[full] for names, _ in reversed(regions) if full in names), Value(None))
