"""Whether a call of the transformer is guided, and by which texts, read from what the pipeline does in this run
rather than guessed from the sizes of its batches."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tide.adapters.standins import listened
from tide.errors import TideError


@dataclass
class Guidance:
    """What is known about the current run of ``pipe``.

    Attributes:
        active: the prompts were encoded for classifier-free guidance in one batch.
        texts: the results of ``encode_prompt`` in this run, in order.
        started: the transformer has run; a text encoded afterwards belongs to a new run.
        in_run: the pipeline, and not a caller, encoded the texts.
        context: what the pipeline said last of its calls of the transformer (``cache_context`` of diffusers).
        ran: the pipeline has made a run.
    """

    pipe: Any
    active: bool = False
    texts: list[Any] = field(default_factory=list)
    started: bool = False
    in_run: bool = False
    context: str = ""
    ran: bool = False

    def new_run(self, *_: Any, **__: Any) -> None:
        self.texts, self.active, self.started, self.context = [], False, False, ""

    def encoding(self, bound: inspect.BoundArguments) -> None:
        if self.started:
            self.new_run()
        self.in_run = is_running(self.pipe)
        bound.apply_defaults()
        given = bound.arguments
        # Some say it by the scale.
        self.active = bool(given.get("do_classifier_free_guidance", (given.get("guidance_scale") or 0) > 1))

    def encoded(self, text: Any) -> None:
        self.texts.append(text)
        self.ran |= self.in_run

    def holds_both(self, n_rows: int) -> bool:
        """Whether a call of ``n_rows`` holds both kinds of rows, those of the prompts and those of the negative
        prompts. Outside of the pipeline's runs it does only if the caller encoded for guidance.

        Raises :class:`~tide.errors.TideError` if the pipeline's run does not determine it.
        """
        if not is_running(self.pipe):
            n_prompts = 0 if self.in_run or not self.active else self.n_prompts or 1
            return n_prompts > 0 and n_rows % (2 * n_prompts) == 0
        if not hasattr(self.pipe, "encode_prompt"):
            return False
        now = getattr(self.pipe, "do_classifier_free_guidance", None)  # callbacks may change it
        if not self.texts and now is not False:
            raise TideError(
                "this run of the pipeline was not heard from its beginning, so which rows are the prompts' is not "
                "known; open the context before the pipeline is called"
            )
        guided = self.active if now is None else bool(now)
        return guided if self.n_prompts is None else self._by_count(n_rows, self.n_prompts, guided, now is None)

    def _by_count(self, n_rows: int, n_prompts: int, guided: bool, only_said: bool) -> bool:
        if n_rows == 2 * n_prompts and (guided or self.active):
            return True
        if n_rows == n_prompts and (not guided or only_said):
            return guided
        raise TideError(
            f"a call with {n_rows} rows in a run {'with' if guided else 'without'} guidance that encoded {n_prompts} "
            "prompts leaves open which rows are the prompts'; let it hold a row for each prompt, or two under guidance"
        )

    def entered(self, name: str, *_: Any, **__: Any) -> None:
        self.context = name

    def is_prompt(self, text: Any, place: int, negative: int | None) -> bool:
        """Whether a call on ``text`` is the prompt's, in pipelines that call the transformer for the negative prompt on
        its own: by what the pipeline says, else by which of the texts of this run it is. A text that the run did not
        encode is the prompt's, because callbacks can replace only that one.

        Args:
            text: the argument of the transformer.
            place: where it is in the results of ``encode_prompt``.
            negative: where those of the negative prompt are; None if they are the second result.

        Raises :class:`~tide.errors.TideError` if both texts are one.
        """
        if self.context in _CONTEXTS and is_running(self.pipe):
            return _CONTEXTS[self.context]
        prompts: list[Any] = []
        negatives: list[Any] = []
        for i, found in enumerate(self.texts):
            parts = found if isinstance(found, tuple | list) else (found,)
            (prompts if negative is not None or i == 0 else negatives).append(parts[place])
            if negative is not None:
                negatives.append(parts[negative])
        for same in (_is, _equals):
            of_prompt, of_negative = (any(same(text, each) for each in texts) for texts in (prompts, negatives))
            if of_prompt and of_negative:
                raise TideError(
                    "prompt_embeds and negative_prompt_embeds are one and the same tensor, so which call is the "
                    "prompt's is not known; pass a clone of one of them, or another negative prompt"
                )
            if of_prompt or of_negative:
                return of_prompt
        return True

    def drawing(self, *_: Any, **__: Any) -> None:
        self.ran |= is_running(self.pipe)

    @property
    def n_prompts(self) -> int | None:
        """Number of images of the run: the rows of the prompts' embeddings, which pipelines of diffusers return
        first."""
        text = self.texts[-1] if self.texts else None
        return len(text[0]) if isinstance(text, tuple | list) and isinstance(text[0], Tensor) else None


#: How pipelines name their calls of the transformer -> whether those are the prompt's.
_CONTEXTS = {"cond": True, "pred_cond": True, "uncond": False, "pred_uncond": False}


def _is(text: Any, other: Any) -> bool:
    return text is other and text is not None


def _equals(text: Any, other: Any) -> bool:
    """Equal but for a change of dtype or device, as by pipelines that cast what they encoded."""
    tensors = isinstance(text, Tensor) and isinstance(other, Tensor)
    return tensors and text.shape == other.shape and bool((text == other.to(text)).all())


def is_running(pipe: Any) -> bool:
    """Whether this is called from inside a run of a pipeline of this class, as from its callbacks and hooks."""
    calls = {
        getattr(inspect.unwrap(vars(cls)["__call__"]), "__code__", None)
        for cls in type(pipe).__mro__
        if "__call__" in vars(cls)
    }
    frame = sys._getframe(1)
    while frame is not None and frame.f_code not in calls:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None


@contextmanager
def watch_guidance(pipe: Any, transformer: Any = None) -> Iterator[Guidance]:
    """Listens to the pipeline's ``check_inputs``, with which a run begins, and to ``encode_prompt``, which every run
    calls, and whose arguments say whether the run is guided (except for families that guide by separate calls), and to
    what it says of its calls of ``transformer``.

    Any number of contexts may listen, and end in any order. A pipeline without ``encode_prompt``, or whose
    ``encode_prompt`` does not say, counts as unguided; without ``encode_prompt``, ``progress_bar`` shows that a run was
    made.
    """
    guidance = Guidance(pipe)
    with ExitStack() as stack:
        if hasattr(pipe, "check_inputs"):
            stack.enter_context(listened(pipe, "check_inputs", before=guidance.new_run))
        if hasattr(transformer, "cache_context"):
            stack.enter_context(listened(transformer, "cache_context", before=guidance.entered))
        if hasattr(pipe, "encode_prompt"):
            signature = inspect.signature(pipe.encode_prompt)

            def encoding(*args: Any, **kwargs: Any) -> None:
                guidance.encoding(signature.bind(*args, **kwargs))

            stack.enter_context(listened(pipe, "encode_prompt", before=encoding, after=guidance.encoded))
        elif hasattr(pipe, "progress_bar"):  # which the loops of diffusers' pipelines call, DiT's too
            stack.enter_context(listened(pipe, "progress_bar", before=guidance.drawing))
        yield guidance
