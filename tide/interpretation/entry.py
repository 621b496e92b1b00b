"""One line of a file of names: what a person or a program says of a latent, and when."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from tide.errors import TideError
from tide.messages import one_line

#: Characters of a name, of a note, and of who says it, at most.
MOST_NAME, MOST_NOTE, MOST_BY = 200, 10_000, 200
#: Latents are numbered below this where the number of latents is not known.
MOST_LATENTS = 2**31

_PROGRAMS = frozenset({"concepts", "captions", "clip"})
_AT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?Z")
#: Signs that turn the direction of the text around them, so that a name would not read as it is written.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True)
class Score:
    """How well a latent's peaks agree with its name: the AUROC on ``images`` that did not choose the name.

    Attributes:
        auroc: in [0, 1].
        images: how many images it was measured on.
    """

    auroc: float
    images: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What ``by`` says of a latent at a time; at least one of name, note and star.

    Attributes:
        latent: its number, from 0.
        by: ``person:NAME``, ``concepts``, ``captions``, ``clip`` or ``model:NAME``.
        at: UTC, ``2026-11-28T09:00:00Z``, with up to six decimals of the seconds.
        name: at most :data:`MOST_NAME` characters, none of them a control character; "" takes the name back.
        note: at most :data:`MOST_NOTE` characters; "" takes the note back.
        star: whether the latent is one to come back to.
        score: of a name that was found automatically.

    Raises :class:`~tide.errors.TideError` for anything else.
    """

    latent: int
    by: str
    at: str
    name: str | None = None
    note: str | None = None
    star: bool | None = None
    score: Score | None = None

    def __post_init__(self) -> None:
        if (fault := _fault(self)) is not None:
            raise TideError(f"{fault}; correct the entry")

    @property
    def by_person(self) -> bool:
        """Whether a person says so, and not a method."""
        return self.by.startswith("person:")

    @property
    def when(self) -> str:
        """The time as text that sorts by time."""
        # Seconds without decimals and with them: "09:00:00" sorts before "09:00:00.5", and "00.50" is "00.5".
        return self.at[:-1] if len(self.at) == 20 else self.at[:-1].rstrip("0").rstrip(".")

    def line(self) -> str:
        """The entry as its line of the file, without the line's end."""
        said: dict[str, Any] = {"latent": self.latent, "by": self.by, "at": self.at}
        for field in ("name", "note", "star"):
            if (value := getattr(self, field)) is not None:
                said[field] = value
        if self.score is not None:
            said["score"] = {"auroc": self.score.auroc, "images": self.score.images}
        return json.dumps(said, ensure_ascii=False)

    def only(self, field: str) -> Entry:
        """The entry with one of its fields, ``name`` (with its score), ``note`` or ``star``, alone."""
        if (self.name is not None) + (self.note is not None) + (self.star is not None) == 1:
            return self
        score = self.score if field == "name" else None
        return Entry(self.latent, self.by, self.at, **{field: getattr(self, field)}, score=score)


def now() -> str:
    """The time for an entry that is made now."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


_decode = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


def read_entry(line: str) -> Entry:
    """The entry of a line. Further keys of a newer version are passed over.

    Raises :class:`~tide.errors.TideError` for a line that is none, without saying where it is.
    """
    try:
        said, end = _decode(line, 0)
        if end != len(line):
            said = json.loads(line)  # blanks at the end, or what is no JSON
    except StopIteration:
        said = _loaded(line)
    except (ValueError, RecursionError) as error:
        raise TideError(f"it is not JSON ({_reason(error)})") from None
    if not isinstance(said, dict):
        raise TideError("it is not an object")
    for key in ("latent", "by", "at"):
        if key not in said:
            raise TideError(f"{key} is missing")
    score = said.get("score")
    try:
        return Entry(
            said["latent"],
            said["by"],
            said["at"],
            said.get("name"),
            said.get("note"),
            said.get("star"),
            None if score is None else _read_score(score),
        )
    except TideError as error:
        raise TideError(str(error).removesuffix("; correct the entry")) from None


def _loaded(line: str) -> Any:
    """The value of a line that begins with a blank; raises for one without any."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TideError(f"it is not JSON ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else one_line(error, 100)


def _read_score(said: Any) -> Score:
    if not isinstance(said, dict) or not said.keys() >= {"auroc", "images"}:
        raise TideError("score is not an auroc and a number of images")
    return Score(said["auroc"], said["images"])


def _fault(entry: Entry) -> str | None:
    """What is wrong with an entry, or None. The order is that of a million good ones: the cheap tests first."""
    latent = entry.latent
    if type(latent) is not int or not 0 <= latent < MOST_LATENTS:
        return f"latent is {_shown(latent)} and must be a number from 0"
    if not isinstance(entry.by, str) or not _is_author(entry.by):
        return f"by is {_shown(entry.by)} and must be person:NAME, concepts, captions, clip or model:NAME"
    if not isinstance(entry.at, str) or not _is_time(entry.at):
        return f"at is {_shown(entry.at)} and must be a time such as 2026-11-28T09:00:00Z"
    if entry.name is None and entry.note is None and entry.star is None:
        return "it has no name, no note and no star"
    if entry.name is not None and (wrong := _text_fault(entry.name, MOST_NAME)) is not None:
        return f"name {wrong}"
    if entry.name and not entry.name.isprintable() and any(map(_is_control, entry.name)):
        return f"name is {_shown(entry.name)} and must have no control characters"
    if entry.note is not None and (wrong := _text_fault(entry.note, MOST_NOTE)) is not None:
        return f"note {wrong}"
    if entry.star is not None and entry.star is not True and entry.star is not False:
        return f"star is {_shown(entry.star)} and must be true or false"
    return None if entry.score is None else _score_fault(entry)


def _text_fault(text: Any, most: int) -> str | None:
    if not isinstance(text, str):
        return f"is {_shown(text)} and must be text"
    if len(text) > most:
        return f"has {len(text)} characters and may have {most}"
    if text and text.isspace():
        return "is blank and must be empty to take the former one back"
    return None if text.isascii() or text.isprintable() or not any(map(_is_half, text)) else "holds half a character"


def _score_fault(entry: Entry) -> str | None:
    score = entry.score
    if not isinstance(score, Score) or type(score.images) is not int or score.images < 1:
        return "score must have a number of images of at least 1"
    if type(score.auroc) not in (int, float) or not 0 <= score.auroc <= 1:
        return f"score has the auroc {_shown(score.auroc)} and must have one from 0 to 1"
    return None if entry.name and not entry.by_person else "score must go with a name that was found automatically"


@lru_cache(maxsize=1000)
def _is_author(by: str) -> bool:
    kind, colon, name = by.partition(":")
    if not colon:
        return by in _PROGRAMS
    return kind in ("person", "model") and 0 < len(name) <= MOST_BY and name.isprintable() and name == name.strip()


@lru_cache(maxsize=10_000)
def _is_time(at: str) -> bool:
    try:
        datetime.fromisoformat(at[:10])  # whether the month has such a day
    except ValueError:
        return False
    return _AT.fullmatch(at) is not None


def _is_control(c: str) -> bool:
    return c in _TURNING or unicodedata.category(c) in ("Cc", "Zl", "Zp")


def _is_half(c: str) -> bool:
    return unicodedata.category(c) == "Cs"


def _shown(value: object) -> str:
    return one_line(repr(value), 40)
