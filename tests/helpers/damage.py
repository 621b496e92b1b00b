"""Ways to damage a file, or to lie in it: what disks, copies that broke off, other programs and attackers leave."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

#: What an entry of a JSON file is replaced by.
VALUES: tuple[Any, ...] = (
    *(None, True, [], [[]], {}, {"x": 1}, "", "x", "../outside", "/etc/passwd", "a\0b", "x" * 10**5),
    *(-1, 0, 1, 3, 10**12, 10**30, -(10**12), 1.5, 1e-300, 1e308, float("inf"), float("nan")),
)
#: What takes the place of a whole file.
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "a number": b"3",
    "text": b'"x"',
    "a list": b"[]",
    "a list of lists": b"[[]]",
    "an object": b"{}",
    "zeros": bytes(4096),
    "not UTF-8": b"\xff\xfe\x00{",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "a long number": b"1" * 100_000,
    "a bomb of aliases": b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (i + 1, i + 1, b", ".join(9 * [b"*%c" % i])) for i in range(97, 108)),
    "a header beyond the file": struct.pack("<Q", 2**62) + b"{}",
    "a header of 100 MB": struct.pack("<Q", 10**8) + b"{}",
    "a header that is none": struct.pack("<Q", 2) + b"[]",
    "a tensor of 8 EB": (lambda h: struct.pack("<Q", len(h)) + h)(
        b'{"x":{"dtype":"F32","shape":[2305843009213693951],"data_offsets":[0,9223372036854775804]}}'
    ),
    "a shape that overflows": (lambda h: struct.pack("<Q", len(h)) + h)(
        b'{"x":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}'
    ),
}


class Damage(NamedTuple):
    name: str
    #: Does it to the folder, a copy of a good one.
    apply: Callable[[Path], Any]


class Trap:
    """Unpickled, it makes the file of this name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def damages(folder: Path, trap: Path, rng: random.Random) -> Iterator[Damage]:
    """Every kind of damage to each of the good files in ``folder``. A pickle that is loaded makes the file ``trap``."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        file = str(path.relative_to(folder))
        kinds = [_of_bytes(path.read_bytes(), rng), _of_contents(trap), _of_place()]
        if path.suffix == ".json":
            kinds.append(_of_json(json.loads(path.read_text())))
        if path.suffix == ".yaml":  # of which JSON is a part
            kinds.append(_of_json(yaml.safe_load(path.read_text())))
        if path.suffix == ".jsonl":
            kinds.append(_of_lines([json.loads(line) for line in path.read_text().splitlines()]))
        if path.suffix == ".safetensors":
            kinds += [_of_tensors(path), _of_header(path.read_bytes())]
        for kind in kinds:
            for what, change in kind:
                yield Damage(f"{file}: {what}", partial(_change, file, change))


def _change(file: str, change: Callable[[Path], Any], folder: Path) -> None:
    change(folder / file)


#: What is done, and the function that does it to the file.
_Changes = Iterator[tuple[str, Callable[[Path], Any]]]


def _writes(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def _of_bytes(good: bytes, rng: random.Random) -> _Changes:
    n = len(good)
    for at in sorted({*range(1, min(n, 10)), n // 4, n // 2, n - 2, n - 1, *(rng.randrange(n) for _ in range(6))}):
        yield f"cut after {at} of {n} bytes", _writes(good[:at])
    for _ in range(24):
        at, bit = rng.randrange(n if rng.random() < 0.5 else min(n, 400)), rng.randrange(8)
        yield f"bit {bit} of byte {at} flipped", _writes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
    for _ in range(6):
        at, length = rng.randrange(n), rng.randrange(1, 64)
        yield f"{length} bytes at {at} zeroed", _writes(good[:at] + bytes(length) + good[at + length :])
        yield f"{length} bytes at {at} gone", _writes(good[:at] + good[at + length :])
    yield "twice", _writes(good + good)
    yield "more behind it", _writes(good + b"\0\0x")


def _of_contents(trap: Path) -> _Changes:
    for name, content in CONTENTS.items():
        yield name, _writes(content)
    yield "a pickle", _writes(pickle.dumps(Trap(trap)))
    yield "a pickle of torch", partial(torch.save, Trap(trap))


def _of_place() -> _Changes:
    def put(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
        return lambda path: (path.unlink(), make(path))

    yield "missing", lambda path: path.unlink()
    yield "a folder", put(Path.mkdir)
    yield "a pipe", put(os.mkfifo)
    yield "a link to nothing", put(lambda path: path.symlink_to(path.parent / "nothing"))
    yield "a link to itself", put(lambda path: path.symlink_to(path))
    yield "a link to a device", put(lambda path: path.symlink_to("/dev/zero"))


def _of_json(good: Any, write: Callable[[Any], bytes] | None = None) -> _Changes:
    written = write or (lambda value: json.dumps(value).encode())

    def puts(change: Callable[..., Any], *arguments: Any) -> Callable[[Path], Any]:
        return lambda path: path.write_bytes(written(change(good, *arguments)))

    for keys in _entries(good):
        for value in VALUES:
            yield f"{_name(keys)} = {_shown(value)}", puts(_with, keys, value)
        yield f"{_name(keys)} gone", puts(_without, keys)
    for keys in ((), *_entries(good)):
        if isinstance(_at(good, keys), dict):
            yield f"{_name(keys)} with one more", puts(_with, (*keys, "one more"), [None])
        if isinstance(_at(good, keys), list):
            yield f"{_name(keys)} doubled", puts(_with, keys, 2 * _at(good, keys))
    if isinstance(good, dict) and write is None:
        text = json.dumps(good)
        yield "every key twice", _writes(f"{text[:-1]}, {text[1:]}".encode())


def _of_lines(good: list[Any]) -> _Changes:
    return _of_json(good, lambda lines: "\n".join(json.dumps(line) for line in lines).encode())


def _entries(value: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*keys, key)
        yield from _entries(each, (*keys, key))


def _at(value: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        value = value[key]
    return value


def _with(good: Any, keys: tuple[Any, ...], value: Any) -> Any:
    if not keys:
        return value
    changed = copy.deepcopy(good)
    _at(changed, keys[:-1])[keys[-1]] = value
    return changed


def _without(good: Any, keys: tuple[Any, ...]) -> Any:
    changed = copy.deepcopy(good)
    del _at(changed, keys[:-1])[keys[-1]]
    return changed


def _name(keys: tuple[Any, ...]) -> str:
    return ".".join(map(str, keys)) or "all"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 30 else f"{text[:26]}..."


_CASTS = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn)


def _of_tensors(path: Path) -> _Changes:
    good = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()

    def saved(change: Callable[[], dict[str, Any]], about: dict[str, str] | None = metadata) -> Callable[[Path], Any]:
        def apply(path: Path) -> None:
            changed = {name: value for name, value in (good | change()).items() if value is not None}
            save_file({name: value.contiguous() for name, value in changed.items()}, path, about)

        return apply

    yield "no tensors", saved(lambda: dict.fromkeys(good))
    yield "one tensor more", saved(lambda: {"one more": torch.zeros(3)})
    yield "no description", saved(dict, None)
    for key in metadata or {}:
        for text in ("", "{", "[]", "{}", "3", "null", "[" * 10**5, '{"step": "x"}'):
            yield f"described as {text[:20]}", saved(dict, {**(metadata or {}), key: text})
    for name, value in good.items():
        for what, change in _of_tensor(name, value):
            yield f"{name} {what}", saved(change)


def _of_tensor(name: str, value: torch.Tensor) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is done to a tensor, and the function of the tensors that change, None for one that goes."""
    flat = value.reshape(-1)
    yield "gone", lambda: {name: None}
    yield "renamed", lambda: {name: None, f"{name}x": value}
    yield "of one element more", lambda: {name: torch.cat([flat, flat[:1]])}
    yield "of one dimension more", lambda: {name: value[None]}
    yield "of another order", lambda: {name: value.T if value.ndim == 2 else flat}
    yield "without elements", lambda: {name: value.new_zeros(0, *value.shape[1:])}
    for dtype in _CASTS:
        yield f"as {dtype}", lambda dtype=dtype: {name: value.to(dtype)}
    for number in (float("nan"), float("inf"), 0.0, -1.0, 1e38, 2**31 - 1):
        if value.is_floating_point() or number in (0.0, -1.0, 2**31 - 1):
            filled = partial(torch.full_like, value, _within(number, value.dtype))
            yield f"all {number}", lambda filled=filled: {name: filled()}


def _within(number: float, dtype: torch.dtype) -> float:
    """The number, or the dtype's nearest."""
    if dtype == torch.bool or number != number or abs(number) == float("inf"):
        return number
    if dtype.is_floating_point:
        return max(-torch.finfo(dtype).max, min(torch.finfo(dtype).max, number))
    range_ = torch.iinfo(dtype)
    return int(max(range_.min, min(range_.max, number)))


def _of_header(good: bytes) -> _Changes:
    (length,) = struct.unpack("<Q", good[:8])
    header, rest = json.loads(good[8 : 8 + length]), good[8 + length :]

    def write(value: Any) -> bytes:
        text = json.dumps(value).encode()
        return struct.pack("<Q", len(text)) + text + rest

    yield from ((f"header's {what}", change) for what, change in _of_json(header, write))
