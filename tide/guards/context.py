"""Guards at work in a pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tide.adapters import adapter_for, tap
from tide.adapters.starts import each_start
from tide.errors import TideError, TideWarning
from tide.guards.definition import Guard
from tide.guards.guard_file import load_guard
from tide.guards.guard_run import GuardRun
from tide.guards.log import GuardLog
from tide.guards.words import BESIDE


@contextmanager
def guard(pipe: Any, *guards: Guard | str | Path) -> Iterator[GuardLog]:
    """Every image that ``pipe`` draws inside the ``with`` block is guarded; ``as`` gives the log of what was met.

    Args:
        pipe: a pipeline of diffusers.
        guards: guards, or folders of guards (:func:`~tide.guards.load_guard`), each of another concept. Their maps of
            words are applied in this order.

    An image that no guard flags keeps its bits. Contexts nest with each other and with :func:`tide.edit`; what an edit
    outside of the context changes at the block, the guard sees.

    Raises:
        TideError: there is no guard, or two of one concept; a folder holds none, or is damaged; a guard was made for
            another family, width or number of blocks; while images are drawn, text states of another width.

    Warns (:class:`~tide.errors.TideWarning`) of a folder's guard that was made with other weights of the transformer,
    as after a fine-tuning or with a LoRA: it may work, and was validated with others; and of one that was made with
    another text encoder, as far as the states of its neutral caption tell. Warns as well where the transformer is told
    of the prompt in ways that words are not mapped in (pooled prompts, a second text encoder), and at the end if an
    image still showed its concept in its last call (:attr:`Sighting.let_through`): what is met in one call is acted on
    from the next on, so a run of one step is watched and not guarded.
    """
    adapter = adapter_for(pipe)
    loaded = [each if isinstance(each, Guard) else load_guard(each, adapter.device) for each in guards]
    if not loaded:
        raise TideError("there is no guard; give at least one, or its folder")
    concepts = [each.concept for each in loaded]
    if repeated := [concept for concept in concepts if concepts.count(concept) > 1]:
        raise TideError(f"two guards are of {repeated[0]!r}; give one of each concept")
    for each, given in zip(loaded, guards, strict=True):
        each.made_for.check(adapter, each.concept)
        if given is not each and each.made_for.weights_differ(adapter):
            message = f"{given} was made with other weights of the transformer; validate it with these"
            warnings.warn(message, TideWarning, stacklevel=3)
        if given is not each and each.text_differs(adapter):
            message = (
                f"this pipeline's text encoder writes the neutral caption of {given} differently from the one it was "
                "made with; make it with this pipeline"
            )
            warnings.warn(message, TideWarning, stacklevel=3)
    if unmapped := [name for name in BESIDE if adapter.takes(name)]:
        message = (
            f"this transformer is also told of the prompt by {' and '.join(unmapped)}, which guards leave as it is; "
            "look at what it draws"
        )
        warnings.warn(message, TideWarning, stacklevel=3)
    log = GuardLog()
    with ExitStack() as stack:
        for each in loaded:
            run, made_for = GuardRun(each, log), each.made_for
            stack.enter_context(tap(adapter, {made_for.block: run.on_call}, made_for.tensor, before=run.before))
            stack.enter_context(each_start(pipe, run.start))
        yield log
    if log.let_through:
        warnings.warn(f"guards met what they could not change: {log.summary}", TideWarning, stacklevel=3)
