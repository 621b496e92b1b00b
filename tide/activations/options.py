"""Which activations of each image to keep, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from tide.adapters.base import check_tensor
from tide.checks import check_count
from tide.errors import TideError
from tide.sae.config import check_target


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """Which activations of each image to keep.

    Attributes:
        tensor: "output", "attention" or "feed_forward" of a block; with a ``target`` the input of that module,
            "attention_input" or "feed_forward_input".
        target: what a transcoder is to make of ``tensor``, "attention" or "feed_forward"; of the same tokens.
        n_timesteps: steps of the grid that timesteps are drawn from, or of the sampling run.
        token_fraction: share of an image's tokens, in (0, 1]; at least one token.
        paired: take neighbouring timesteps of the same image, noise and tokens, rather than single ones.
        batch_size: images per pass.

    Raises :class:`~tide.errors.TideError` for values that are not valid.
    """

    tensor: str = "output"
    n_timesteps: int = 20
    token_fraction: float = 1 / 16
    paired: bool = True
    batch_size: int = 8
    target: str | None = None

    def __post_init__(self) -> None:
        if self.target is None:
            check_tensor(self.tensor)
        else:
            check_target(self.target, self.tensor)
        check_fraction(self.token_fraction)
        check_count("n_timesteps", self.n_timesteps)
        check_count("batch_size", self.batch_size)

    def rows_per_image(self, n_tokens: int) -> int:
        """Rows that Algorithm 1 takes of an image of ``n_tokens`` tokens."""
        return (1 + self.paired) * max(1, round(n_tokens * self.token_fraction))


def check_fraction(token_fraction: float) -> None:
    """Raises :class:`~tide.errors.TideError` for a share of tokens that is not valid."""
    if not 0 < token_fraction <= 1:
        raise TideError(f"token_fraction {token_fraction} is not in (0, 1]; 1/16 is usual")
