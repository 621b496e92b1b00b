"""Whole words in captions, in any script: which captions hold a concept."""

from __future__ import annotations

import unicodedata

from tide.errors import TideError

#: Scripts that put no spaces between words, as their letters' Unicode names begin.
UNSPACED = ("CJK ", "HIRAGANA ", "KATAKANA ", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ", "BOPOMOFO ")


def folded(text: str) -> str:
    """The text as captions and concepts are compared: compatible forms as one (NFKC: accents composed, full-width
    letters), without case, every dash, underscore and run of blanks a single space, curly apostrophes straight."""
    one = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(map(_kept, one)).split())


def _kept(c: str) -> str:
    if c in "_\u200b" or unicodedata.category(c) == "Pd":
        return " "
    if unicodedata.category(c) == "Cf":  # soft hyphens and joiners, which are not seen
        return ""
    return "'" if c == "\u2019" else c


def concept_of(word: str) -> str:
    """A concept as :func:`holds` takes it. Raises :class:`~tide.errors.TideError` if nothing of it is left."""
    found = folded(word)
    if not found:
        raise TideError(f"the concept {word!r} holds no letter; give a word of the captions")
    return found


def holds(caption: str, concept: str) -> bool:
    """Whether a caption holds a concept as whole words, both :func:`folded`: "fire truck" is in "two fire trucks" no
    more than "cat" is in "category". In scripts without spaces it may stand anywhere."""
    start = caption.find(concept)
    while start >= 0:
        end = start + len(concept)
        if not (_joined(caption[start - 1 : start], concept[0]) or _joined(caption[end : end + 1], concept[-1])):
            return True
        start = caption.find(concept, start + 1)
    return False


def _joined(neighbour: str, edge: str) -> bool:
    """Whether a neighbouring character, "" beyond the text, continues the word that ``edge`` ends or begins."""
    return bool(neighbour) and all(
        unicodedata.category(c)[0] in "LMN" and not unicodedata.name(c, "").startswith(UNSPACED)
        for c in (neighbour, edge)
    )
