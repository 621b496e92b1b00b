"""Whether a pipeline's run is guided, read from the pipeline itself rather than guessed from its batches."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Guidance:
    """``active`` is True while the pipeline runs with classifier-free guidance in one batch."""

    active: bool = False


@contextmanager
def watch_guidance(pipe: Any) -> Iterator[Guidance]:
    """Listens to ``pipe.encode_prompt``, which every run calls first and tells whether it is guided.

    Contexts may be nested: each listens through the one around it, and puts back what it found.
    """
    guidance = Guidance()
    original = getattr(pipe, "encode_prompt", None)
    if original is None or "do_classifier_free_guidance" not in inspect.signature(original).parameters:
        yield guidance
        return
    signature = inspect.signature(original)
    replaced = vars(pipe).get("encode_prompt")  # None where the class's own method shows

    @functools.wraps(original)  # the signature too, for a context inside this one
    def listening(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        guidance.active = bool(bound.arguments["do_classifier_free_guidance"])
        return original(*args, **kwargs)

    pipe.encode_prompt = listening
    try:
        yield guidance
    finally:
        if replaced is None:
            del pipe.encode_prompt
        else:
            pipe.encode_prompt = replaced
