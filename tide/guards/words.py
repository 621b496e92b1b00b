"""What becomes of the words of an image that a guard has flagged: a linear map of the text encoder's states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tide.adapters import adapter_for, tap
from tide.errors import TideError

#: The transformer's argument that holds the states of the prompt's text.
STATES = "encoder_hidden_states"
#: Arguments of some transformers that tell them of the prompt beside it, and that no map reaches.
BESIDE = ("pooled_projections", "encoder_hidden_states_t5", "text_encoder_layers")
#: Those that say which tokens of it are padding; each family has one or none. The last may be of other tokens.
MASKS = (
    "encoder_attention_mask",
    "encoder_hidden_states_mask",
    "encoder_mask",
    "text_embedding_mask",
    "attention_mask",
)


@dataclass(frozen=True, eq=False)
class Words:
    """The map ``c + (c down) up`` of text states ``c [..., d_text]``, of low rank r: from those of captions with the
    unwanted word to those of the same captions with another.

    Attributes:
        down: ``[d_text, r]`` float32.
        up: ``[r, d_text]`` float32.

    Raises:
        TideError: the shapes do not go together.
    """

    down: Tensor
    up: Tensor

    def __post_init__(self) -> None:
        if self.down.ndim != 2 or self.up.shape != self.down.shape[::-1]:
            raise TideError(
                f"the map of words is {list(self.down.shape)} and {list(self.up.shape)}; give [d_text, r] and "
                "[r, d_text]"
            )

    @property
    def width(self) -> int:
        """Of the states."""
        return self.down.shape[0]

    @property
    def rank(self) -> int:
        """The rank r of the map."""
        return self.down.shape[1]

    def __call__(self, states: Tensor) -> Tensor:
        """``states [..., d_text]``, mapped, in their dtype."""
        self.check(states)
        down, up = self.down.to(states.device), self.up.to(states.device)
        return (states.float() + states.float() @ down @ up).to(states.dtype)

    def check(self, states: Tensor) -> None:
        """Raises :class:`~tide.errors.TideError` for states of another width."""
        if states.shape[-1] != self.width:
            raise TideError(
                f"the text's states have width {states.shape[-1]} and the guard's map of words {self.width}; make the "
                "guard with this pipeline"
            )

    @contextmanager
    def always(self, pipe: Any) -> Iterator[None]:
        """While the context is open, the words of every image that ``pipe`` draws are mapped, whatever it shows."""

        def before(arguments: Mapping[str, Any], conditional: Tensor, timestep: Tensor) -> Mapping[str, Any] | None:
            if not conditional.any():  # a call for the negative prompt, which families know by its very tensor
                return None
            states = states_of(arguments)
            rows = conditional.to(states.device)[:, None, None]
            return {STATES: torch.where(rows, self(states), states)}

        with tap(adapter_for(pipe), {}, before=before):
            yield


def mask_name(arguments: Mapping[str, Any]) -> str | None:
    """The name of the mask of the prompt's text among a transformer's arguments; None where there is none."""
    n_tokens = arguments[STATES].shape[1]
    masks = {name: mask for name in MASKS if isinstance(mask := arguments.get(name), Tensor)}
    return next((name for name, mask in masks.items() if mask.shape[-1] == n_tokens), None)


def states_of(arguments: Mapping[str, Any]) -> Tensor:
    """The states ``[B, L, d_text]`` of the prompt's text among a transformer's arguments. Raises
    :class:`~tide.errors.TideError` where there are none."""
    states = arguments.get(STATES)
    if not isinstance(states, Tensor) or states.ndim != 3:
        raise TideError(f"this transformer is not given {STATES} [rows, tokens, width]; make a guard without words")
    return states
