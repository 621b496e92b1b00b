"""Where the words of an image are sent that still shows the unwanted concept when they are mapped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.adapters import Adapter
from tide.adapters.sizes import caption_length
from tide.errors import TideError
from tide.guards.words import STATES, mask_name

#: How far, as a share, the states of a caption may lie from those that were recorded before the text encoder is another
#: one: bfloat16 has 8 bits, and errors of a dozen layers add up.
_NEAR = 0.05
#: What diffusers adds to the attention of padding where a mask is a bias.
_PADDING = -10000.0


@dataclass(frozen=True, eq=False)
class Refuge:
    """The text states of a neutral caption, in place of those of a prompt that was made to pass the map of words.

    Attributes:
        states: ``[L, d_text]``.
        mask: bool ``[L]``, the tokens that are no padding.

    Raises:
        TideError: the shapes do not go together, or every token is padding.
    """

    states: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.states.ndim != 2 or self.mask.shape != self.states.shape[:1] or self.mask.dtype != torch.bool:
            raise TideError(
                f"a refuge's states are {list(self.states.shape)} and its mask {self.mask.dtype} "
                f"{list(self.mask.shape)}; give [L, d_text] and bool [L]"
            )
        if not bool(self.mask.any()):
            raise TideError("every token of a refuge's caption is padding; give a caption with words")

    def differs(self, adapter: Adapter, caption: str) -> bool:
        """Whether the pipeline's text encoder makes other states of ``caption`` than these, which were once made of it.
        Never where the pipeline has none, since then the states come from elsewhere."""
        if any(getattr(adapter.pipe, part, None) is None for part in ("text_encoder", "tokenizer")):
            return False
        now = refuge_of(adapter, caption)
        own, found = self.states[self.mask], now.states[now.mask]
        return own.shape != found.shape or bool((found - own).norm() > _NEAR * own.norm())

    def fitted(self, like: Tensor) -> Tensor:
        """The states for calls with text ``like [..., L', d_text]``: cut, or padded with zeros."""
        n = like.shape[-2]
        own = self.states[:n].to(like)
        return F.pad(own, (0, 0, 0, n - len(own)))

    def fitted_mask(self, like: Tensor) -> Tensor:
        """The mask of :meth:`fitted` in the form of a call's ``like [..., L']``: bool or 0 and 1, or, where it is a
        bias with large negative numbers for padding and 0 for words, 0 and those."""
        n = like.shape[-1]
        own = F.pad(self.mask[:n].to(like.device), (0, max(0, n - len(self.mask))))
        if like.is_floating_point() and not bool((like == 1).any()):
            padding = like.min() if bool((like < 0).any()) else torch.tensor(_PADDING, device=like.device)
            return torch.where(own, 0.0, padding).to(like.dtype)
        return own.to(like.dtype)


@torch.no_grad()
def refuge_of(adapter: Adapter, caption: str) -> Refuge:
    """The text states of ``caption``."""
    text = adapter.encode_prompts([caption], caption_length(adapter))
    states = text[STATES][0].float().cpu()
    named = mask_name(text)
    mask = None if named is None else text[named]
    return Refuge(states, torch.ones(len(states), dtype=torch.bool) if mask is None else mask[0].bool().cpu())
