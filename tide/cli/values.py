"""The values that options take: how they are written on a command line, and their limits. Imports nothing heavy."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal
from unicodedata import normalize

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from tide.checks import n_bytes, shown
from tide.errors import TideError

#: The largest count: PyTorch's and NumPy's own limits are far above, and no count of anything here comes near.
MOST = 2**31 - 1
#: Seeds are multiplied and added to, and stay below 2^63.
MOST_SEED = 2**32 - 1
MOST_PIXELS = 2**16
#: What PyTorch's numbers of 32 bits hold.
MOST_NUMBER = 3e38
#: The share of images that is left out of a training unless asked otherwise.
HOLD_OUT = 0.1
#: Bytes of a name that becomes part of a file's name.
MOST_BYTES = 100


def size(text: str) -> tuple[int, ...]:
    """``1024`` or ``768x1024`` (height x width), in pixels, or ``9x768x1024``, with frames before them."""
    found = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?(?:x([0-9]{1,6}))?", text)
    given = [] if found is None else [int(side) for side in found.groups() if side]
    sides = tuple(given * 2 if len(given) == 1 else given) or (0, 0)
    if not all(1 <= side <= MOST_PIXELS for side in sides):
        raise TideError(
            f"{shown(text)} is not a valid size; give pixels, such as 1024 or 768x1024 (of clips 9x768x1024), at most "
            f"{MOST_PIXELS}"
        )
    return sides


def part(text: str) -> tuple[int, int]:
    """``3/64``: part 3 of 64, counted from 0. Whether there is such a part is the library's to say."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None:
        raise TideError(f"{shown(text)} is not a part; write it as 3/64, counted from 0")
    return int(found[1]), int(found[2])


def fraction(text: str) -> float:
    """``1/16`` or ``0.0625``; any finite number."""
    over, slash, under = text.partition("/")
    try:
        return finite(str(finite(over) / finite(under))) if slash else finite(text)
    except (TideError, ZeroDivisionError):
        raise TideError(f"{shown(text)} is not a fraction; write it as 1/16 or 0.0625") from None


def block(text: str) -> int | str:
    """A block's number, negative from the end, or ``penultimate``."""
    if text == "penultimate":
        return text
    try:
        return int(text)
    except ValueError:
        raise TideError(f"{shown(text)} is not a block; give a number or 'penultimate'") from None


def block_of_several(text: str) -> int | str:
    """As :func:`block`, or ``all``."""
    return text if text == "all" else block(text)


def positive(text: str) -> int:
    return _whole(text, "count", 1, MOST)


def count_or_none(text: str) -> int:
    """A count, or 0 for none."""
    return _whole(text, "count", 0, MOST)


def seed(text: str) -> int:
    return _whole(text, "seed", 0, MOST_SEED)


def seeds(text: str) -> int:
    return _whole(text, "number of seeds", 1, 1000)


def prompts(text: str) -> int:
    """A million scenes are the most that :func:`tide.scenes.scenes` makes; known before hours of measuring."""
    return _whole(text, "number of prompts", 1, 10**6)


def threads(text: str) -> int:
    """More threads than a few a core only cost, and PyTorch crashes on very many."""
    return _whole(text, "number of threads", 1, max(64, 4 * (os.cpu_count() or 1)))


def port(text: str) -> int:
    return _whole(text, "port", 0, 65535)


def _whole(text: str, what: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise TideError(f"{shown(text)} is not a {what}; give a whole number, {least} to {most}")
    return value


def finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= MOST_NUMBER:
        raise TideError(f"{shown(text)} is not a number; give a finite one, at most {MOST_NUMBER:g}")
    return value


def features(text: str) -> tuple[int, ...]:
    """``12,40``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise TideError(f"{shown(text)} is not a list of latents; write it as 12,40") from None


def scaling(text: str) -> tuple[tuple[int, ...], float]:
    """``12,40=3.0``: latents and their factor."""
    names, _, factor = text.partition("=")
    try:
        return features(names), finite(factor)
    except TideError:
        raise TideError(f"{shown(text)} is not a scaling; write it as 12,40=3.0") from None


def replacement(text: str) -> tuple[str, str]:
    """``red=blue``: a word and what takes its place."""
    source, _, target = (part.strip() for part in text.partition("="))
    if not source or not target:
        raise TideError(f"{shown(text)} is not a change of a word; write it as red=blue")
    return source, target


def places(text: str) -> tuple[int, ...] | tuple[str, ...]:
    """``12,40``: latents; or ``house,tree``: concepts of a bank."""
    try:
        return features(text)
    except TideError:
        if any(character.isalpha() for character in text):
            return words(text)
        raise TideError(
            f"{shown(text)} names neither latents nor concepts; write it as 12,40 or as house,tree"
        ) from None


def dtype(text: str) -> str:
    return _one_of(text, "number type", "bf16", "fp16", "fp32")


def _one_of(text: str, what: str, *known: str) -> str:
    if text not in known:
        raise TideError(f"{shown(text)} is not a {what}; use {', '.join(known[:-1])} or {known[-1]}")
    return text


def words(text: str) -> tuple[str, ...]:
    """``house,tree``: each names a picture's file as well."""
    found = tuple(dict.fromkeys(normalize("NFC", part).strip().lower() for part in text.split(",") if part.strip()))
    if not found:
        raise TideError("no concept is named; write them as house,tree")
    for word in found:
        if not word.isprintable() or set("/\\") & set(word) or len(word.encode()) > MOST_BYTES:
            raise TideError(
                f"{shown(word)} cannot name a picture; give words without slashes, of at most {MOST_BYTES} bytes"
            )
    return found


# -- types of options -----------------------------------------------------------------------------------------------


def _hint(default: str) -> str:
    """What the help says about a default: nothing where the option is off or its text says it."""
    return "" if default in ("None", "False", "") else f"(default {default})"


def option(metavar: str | None = None, *, name: str | None = None) -> Any:
    """An option that is written ``--name`` (default: as its field) and shown with ``metavar``."""
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint=_hint)


def read_by(parse: Callable[[str], Any], metavar: str, write: Callable[[Any], str] = str) -> Any:
    """An option of one word, which ``parse`` turns into its value."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: parse(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [write(value)],
    )


def words_by(parse: Callable[[str], Any], metavar: str, n: int | Literal["*"] = "*") -> Any:
    """An option of ``n`` words, each of which ``parse`` turns into a value."""
    return PrimitiveConstructorSpec(
        nargs=n,
        metavar=metavar,
        instance_from_str=lambda words: tuple(parse(word) for word in words),
        is_instance=lambda value: True,
        str_from_instance=lambda values: [str(value) for value in values or ()],
    )


def _fraction_text(value: float) -> str:
    return f"1/{round(1 / value)}" if 0 < value < 1 and (1 / value).is_integer() else f"{value:g}"


Text = Annotated[str, option()]
Assignments = Annotated[list[tuple[str, ...]], tyro.conf.UseAppendAction, option("KEY=VALUE ...")]
Folder = Annotated[str, option("DIR")]
Flag = Annotated[bool, option()]
Count = Annotated[int, read_by(positive, "N"), option()]
Seed = Annotated[int, read_by(seed, "N"), option()]
Number = Annotated[float, read_by(finite, "X"), option()]
Fraction = Annotated[float, read_by(fraction, "X", _fraction_text), option()]
Blocks = Annotated[tuple[int | str, ...], words_by(block_of_several, "B ..."), option()]
Numbers = Annotated[tuple[float, ...], words_by(finite, "X ..."), option()]
MaybeNames = Annotated[tuple[str, ...] | None, words_by(str, "DIR ..."), option()]
MaybeTrackers = Annotated[tuple[str, ...] | None, words_by(str, "NAME ..."), option()]
MaybeText = Annotated[str | None, read_by(str, "STR"), option()]
MaybeFolder = Annotated[str | None, read_by(str, "DIR"), option()]
MaybeFile = Annotated[str | None, read_by(str, "FILE"), option()]
MaybeCount = Annotated[int | None, read_by(positive, "N"), option()]
MaybeCountOrNone = Annotated[int | None, read_by(count_or_none, "N"), option()]
MaybeCounts = Annotated[tuple[int, ...] | None, words_by(positive, "N ..."), option()]
MaybeSeed = Annotated[int | None, read_by(seed, "N"), option()]
MaybeSeeds = Annotated[int | None, read_by(seeds, "N"), option()]
MaybePrompts = Annotated[int | None, read_by(prompts, "N"), option()]
MaybeThreads = Annotated[int | None, read_by(threads, "N"), option()]
MaybeFraction = Annotated[float | None, read_by(fraction, "X"), option()]
MaybeNumber = Annotated[float | None, read_by(finite, "X"), option()]
MaybeBlock = Annotated[int | str | None, read_by(block, "B"), option()]
MaybeBlocks = Annotated[tuple[int | str, ...] | None, words_by(block, "B ..."), option()]
MaybeDtype = Annotated[str | None, read_by(dtype, "{bf16,fp16,fp32}"), option()]
MaybeSize = Annotated[tuple[int, ...] | None, read_by(size, "PIXELS"), option()]
MaybeRange = Annotated[tuple[float, float] | None, words_by(finite, "FIRST LAST", 2), option()]
MaybeBytes = Annotated[int | None, read_by(n_bytes, "50GB"), option()]
MaybePart = Annotated[tuple[int, int] | None, read_by(part, "R/W"), option()]
MaybeWords = Annotated[tuple[str, ...] | None, read_by(words, "WORD,WORD"), option()]
MaybeFeatures = Annotated[tuple[int, ...] | None, read_by(features, "N,N"), option()]
MaybeScaling = Annotated[tuple[tuple[int, ...], float] | None, read_by(scaling, "N,N=X"), option()]
MaybePlaces = Annotated[tuple[int, ...] | tuple[str, ...] | None, read_by(places, "N,N|WORD,WORD"), option()]
MaybeReplacements = Annotated[tuple[tuple[str, str], ...] | None, words_by(replacement, "WORD=WORD ..."), option()]
MaybeReplacement = Annotated[tuple[str, str] | None, read_by(replacement, "WORD=WORD"), option()]
