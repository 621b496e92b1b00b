"""Whether a pipeline's run is guided, and by which texts, read from the pipeline itself rather than guessed from its
batches."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Guidance:
    """What the pipeline said of its run when it encoded its prompts.

    ``active`` is True while it runs with classifier-free guidance in one batch. ``texts`` are the results of
    ``encode_prompt`` for this run, in order, for pipelines that call the transformer once for the prompt and once for
    the negative prompt. ``started`` is True once the transformer has run: what is encoded then belongs to a new run.
    """

    active: bool = False
    texts: list[Any] = field(default_factory=list)
    started: bool = False


@contextmanager
def watch_guidance(pipe: Any) -> Iterator[Guidance]:
    """Listens to ``pipe.encode_prompt``, which every run calls first and tells whether it is guided.

    Contexts may be nested: each listens through the one around it, and puts back what it found. A pipeline without
    the method, or one that does not say, is taken as unguided.
    """
    guidance = Guidance()
    original = getattr(pipe, "encode_prompt", None)
    if original is None:
        yield guidance
        return
    signature = inspect.signature(original)
    says = "do_classifier_free_guidance" in signature.parameters
    replaced = vars(pipe).get("encode_prompt")  # None where the class's own method shows

    @functools.wraps(original)  # the signature too, for a context inside this one
    def listening(*args: Any, **kwargs: Any) -> Any:
        if guidance.started:
            guidance.texts, guidance.started = [], False
        if says:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            guidance.active = bool(bound.arguments["do_classifier_free_guidance"])
        text = original(*args, **kwargs)
        guidance.texts.append(text)
        return text

    pipe.encode_prompt = listening
    try:
        yield guidance
    finally:
        if replaced is None:
            del pipe.encode_prompt
        else:
            pipe.encode_prompt = replaced
