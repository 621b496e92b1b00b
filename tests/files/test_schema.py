"""JSON values against the types that their readers were written for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from tide.errors import TideError
from tide.files.schema import check_schema


class Shard(TypedDict):
    file: str
    rows: int
    note: NotRequired[str | None]


class Manifest(TypedDict):
    shards: list[Shard]
    info: dict[str, Any]
    complete: bool
    kind: Literal["x", "y"]
    rate: float


@dataclass
class Options:
    steps: int
    betas: tuple[float, float] = (0.9, 0.99)
    sizes: tuple[int, ...] = ()


def good() -> dict[str, Any]:
    shards = [{"file": "a", "rows": 1}, {"file": "b", "rows": 2, "note": None}]
    return {"shards": shards, "info": {"any": ["thing"]}, "complete": True, "kind": "x", "rate": 1, "more": object()}


def test_what_fits_passes_and_further_keys_are_let_be():
    check_schema(good(), Manifest, "f")
    check_schema({"steps": 3, "betas": [0, 1.5]}, Options, "f")
    check_schema({"steps": 3}, Options, "f")
    check_schema({"steps": 3, "sizes": [1, 2, 3]}, Options, "f")
    check_schema({"steps": 3, "sizes": []}, Options, "f")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": {}}, "shards is {} and must be a list"),
        ({"shards": [1]}, r"shards\[0\] is 1 and must be an object"),
        ({"shards": [{"file": "a"}]}, r"shards\[0\].rows is missing"),
        ({"shards": [{"file": "a", "rows": 1.0}]}, r"shards\[0\].rows is 1.0 and must be a whole number"),
        ({"shards": [{"file": "a", "rows": True}]}, r"rows is True and must be a whole number"),
        ({"shards": [{"file": None, "rows": 1}]}, r"file is None and must be text"),
        ({"shards": [{"file": "a", "rows": 1, "note": 3}]}, r"note is 3 and must be text or null"),
        ({"info": []}, r"info is \[\] and must be an object"),
        ({"complete": 1}, "complete is 1 and must be true or false"),
        ({"kind": "z"}, "kind is 'z' and must be 'x' or 'y'"),
        ({"kind": ["x"]}, r"kind is \['x'\] and must be 'x' or 'y'"),
        ({"rate": float("nan")}, "rate is nan and must be a finite number"),
        ({"rate": 10**400}, r"rate is 10{36}\.\.\. and must be a finite number"),
        ({"rate": "1"}, "rate is '1' and must be a finite number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_is_named(change, message):
    with pytest.raises(TideError, match=rf"^f: {message}|^f: .*{message}") as caught:
        check_schema(good() | change, Manifest, "f")
    assert "make it again" in str(caught.value)


def test_a_value_of_another_kind_altogether():
    with pytest.raises(TideError, match=r"f: it is \[\] and must be an object"):
        check_schema([], Manifest, "f")
    with pytest.raises(TideError, match=r"betas is \[1\] and must be a list of 2"):
        check_schema({"steps": 1, "betas": [1]}, Options, "f")
    with pytest.raises(TideError, match=r"sizes is 3 and must be a list;"):
        check_schema({"steps": 1, "sizes": 3}, Options, "f")
    with pytest.raises(TideError, match=r"sizes\[1\] is 0.5 and must be a whole number"):
        check_schema({"steps": 1, "sizes": [1, 0.5]}, Options, "f")
