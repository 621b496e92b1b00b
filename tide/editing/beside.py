"""Edits towards what another prompt makes of the very same noisy latents, at every step of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tide.adapters import Adapter, Call
from tide.adapters.aside import Heard, hear
from tide.adapters.base import Text
from tide.adapters.sizes import caption_length
from tide.editing.edits import Branch
from tide.editing.reading import latents_of_call
from tide.editing.steer import SteerTowards
from tide.errors import TideError
from tide.sae.model import TIDE


@dataclass(frozen=True, eq=False)
class Beside:
    """Moves raw activations towards those that ``prompts`` give to the same noisy latents at the same step::

        x' = x + factor * (x_target - x)

    or, with ``latents`` of a TIDE, by what its latents write of the difference (eq. 3 without bias)::

        x' = x + factor * (z_target - z) W_dec

    Each edited call runs the transformer once more, up to the block, on the prompt's rows with the target's text, so
    an edit of all steps takes up to one more conditional pass a step. No tap and no other edit sees that pass. The
    target follows the image that is drawn: :class:`~tide.editing.SteerTowards` holds activations of another run, whose
    image lies elsewhere. With ``factor`` 1, on all tokens of the last block and at all steps, the pipeline draws the
    target's prompt.

    Attributes:
        adapter: of the pipeline that is edited, without an SAE: ``edit(pipe, None, Beside(...), block=6)``.
        prompts: one for all images, or one for each prompt that is drawn, in their order.
        factor: 0 is no edit, 1 the whole.
        max_sequence_length: tokens of a prompt; by default those that the pipeline's own run takes.
        share: 0 to 1; only tokens are moved that differ under the two prompts by at least this share of what the
            image's most different token does, in Euclidean distance. None moves all.
        differing: a TIDE of the edited block whose latents say how much a token differs; None: the activations.
        latents: a TIDE of the edited block whose latents are moved, not the activations.

    Raises:
        TideError: there is no prompt, the pipeline has no text encoder, or ``differing`` is given without a share.
    """

    adapter: Adapter
    prompts: str | Sequence[str]
    factor: float = 1.0
    max_sequence_length: int | None = None
    share: float | None = None
    differing: TIDE | None = None
    latents: TIDE | None = None
    #: Encoded here and not while the pipeline runs, whose own texts tell whether a call is guided.
    text: Text = field(init=False, repr=False)

    def __post_init__(self) -> None:
        prompts = [self.prompts] if isinstance(self.prompts, str) else list(self.prompts)
        if not prompts:
            raise TideError("there is no prompt to edit towards; give one for all images or one an image")
        if self.share is None and self.differing is not None:
            raise TideError("differing says which tokens differ by a share; give share=, such as 0.3")
        if self.share is not None and not 0 <= self.share <= 1:
            raise TideError(f"share = {self.share} must lie between 0 and 1")
        length = self.max_sequence_length
        with torch.no_grad():
            text = self.adapter.encode_prompts(prompts, caption_length(self.adapter) if length is None else length)
        object.__setattr__(self, "text", text)

    @property
    def models(self) -> dict[str, TIDE]:
        """The SAEs that it reads with, by their parameters' names."""
        found = {"differing": self.differing, "latents": self.latents}
        return {name: model for name, model in found.items() if model is not None}

    def check(self, adapter: Adapter, branch: Branch) -> None:
        """Raises :class:`~tide.errors.TideError` for another pipeline, and for rows that have no target."""
        for name, model in self.models.items():
            if model.d_model != adapter.d_model:
                raise TideError(
                    f"{name} is an SAE of width {model.d_model} and the transformer has {adapter.d_model}; give one of "
                    "the edited block"
                )
        if self.adapter.transformer is not adapter.transformer:
            raise TideError("the target is encoded for another pipeline; give Beside the adapter of the one edited")
        if branch != "conditional":
            raise TideError(f"the {branch} rows have no target beside them; leave branch at 'conditional'")

    def moved(self, x: Tensor, target: Tensor, call: Call) -> Tensor:
        """bool ``[images, tokens]``: which tokens of the prompt's rows ``x [images, tokens, d_model]`` move towards
        ``target``, which has its shape."""
        if self.share is None:
            return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        model = self.differing
        told = [each.float() if model is None else latents_of_call(model, each.float(), call) for each in (x, target)]
        apart = torch.linalg.vector_norm(told[0] - told[1], dim=2)
        return apart >= self.share * apart.amax(1, keepdim=True).clamp(min=torch.finfo(apart.dtype).tiny)

    def written(self, x: Tensor, target: Tensor, call: Call) -> Tensor:
        """``target``, or what ``x`` becomes when its latents are the target's; both are ``[images, tokens,
        d_model]``."""
        if self.latents is None:
            return target
        ours, theirs = (latents_of_call(self.latents, each.float(), call) for each in (x, target))
        return (x.float() + self.latents.decode_dense(theirs - ours)).to(x.dtype)

    @contextmanager
    def listening(self, block: int, tensor: str) -> Iterator[BesideRun]:
        """While the pipeline runs: what to edit at each of its calls."""
        with hear(self.adapter) as heard:
            yield BesideRun(self, heard, block, tensor)


@dataclass(frozen=True)
class BesideRun:
    """``beside`` in a running pipeline."""

    beside: Beside
    heard: Heard
    block: int
    tensor: str

    @torch.no_grad()
    def at(self, x: Tensor, call: Call) -> SteerTowards:
        """The edit of the prompt's rows of the current call, whose activations are ``x [B, tokens, d_model]``."""
        rows = call.conditional
        target = self.heard.with_text(self.beside.text, rows, self.block, self.tensor)
        own = x[rows.to(x.device)]
        here = call.take(rows)
        moved = self.beside.moved(own, target, here)[..., None]
        # Towards itself a token keeps its bits.
        target = torch.where(moved, self.beside.written(own, target, here), own)
        return SteerTowards(here.timestep[:1].cpu(), target[None], self.beside.factor)
