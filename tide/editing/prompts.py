"""A prompt with one of its words replaced."""

from __future__ import annotations

import re

from tide.errors import TideError


def changed_prompt(prompt: str, word: str, by: str) -> str:
    """``prompt`` with ``word`` replaced by ``by`` wherever it stands, and the article before it with it: "an orange
    house" becomes "a red house".

    Raises :class:`~tide.errors.TideError` if the prompt does not say ``word``.
    """
    said = rf"(?<!\w)(?:([Aa])n? )?{re.escape(word)}(?!\w)"
    changed, n = re.subn(said, lambda found: _in_place(found[1], by), prompt)
    if not n:
        raise TideError(f"the prompt {prompt!r} does not say {word!r}; name a word that it says")
    return changed


def _in_place(article: str | None, word: str) -> str:
    """The word, after the article that goes with it if there was one."""
    if article is None:
        return word
    vowel = re.match(r"(?!uni|us[aeiu]|eu|one)[aeiou]", word, re.IGNORECASE)
    return f"{article}{'n' if vowel else ''} {word}"
