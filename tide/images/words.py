"""Whole words in captions, in any script: which captions hold a concept, and which words a caption has."""

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


def words_of(caption: str) -> frozenset[str]:
    """Words of a :func:`folded` caption, each of which it :func:`holds`: runs of letters and digits, also with an
    apostrophe between two of them ("don't"). Of scripts without spaces only Chinese characters, each by itself; where
    other words end there, nothing tells."""
    found: list[str] = []
    for i, c in enumerate(caption):
        if _goes_on(caption, i):
            found[-1] += c
        else:
            found.append(c)
    return frozenset(each for each in found if _is_word(each))


def _goes_on(caption: str, i: int) -> bool:
    """Whether the character at ``i`` continues the word of the one before."""
    before, c, after = caption[max(0, i - 1) : i], caption[i], caption[i + 1 : i + 2]
    if c == "'":
        return bool(after) and _joined(before, after)
    return _joined(caption[max(0, i - 2) : i - 1] if before == "'" else before, c)


def _is_word(found: str) -> bool:
    name = unicodedata.name(found[0], "")
    return unicodedata.category(found[0])[0] in "LN" and (name.startswith("CJK ") or not name.startswith(UNSPACED))


def _joined(neighbour: str, edge: str) -> bool:
    """Whether a neighbouring character, "" beyond the text, continues the word that ``edge`` ends or begins."""
    return bool(neighbour) and all(
        unicodedata.category(c)[0] in "LMN" and not unicodedata.name(c, "").startswith(UNSPACED)
        for c in (neighbour, edge)
    )
