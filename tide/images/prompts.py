"""A caption as a file or a row holds it, as the text of a prompt."""

from __future__ import annotations

import math
import numbers
from typing import Any

from tide.errors import TideError

#: Columns that are taken for captions where none is named, in this order.
CAPTIONS = ("text", "caption", "prompt", "captions", "description", "label_name", "class_name", "label", "class")


def prompt_of(value: Any, where: str) -> str:
    """The prompt that ``value`` states: a text; a class's number; the first of a list of captions; "" for nothing.

    Raises :class:`~tide.errors.TideError`, which calls the value's place ``where``, for anything else.
    """
    if isinstance(value, list | tuple):
        value = next((each for each in value if each not in (None, "")), None)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, str):
        raise TideError(f"{where} holds no text; name the captions' column with caption_column")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TideError(f"{where} holds half a character (a surrogate); correct it") from None
    return value


def is_several(value: Any) -> bool:
    """Whether ``value`` is a list of more than one caption, of which :func:`prompt_of` takes the first."""
    return isinstance(value, list | tuple) and len(value) > 1
