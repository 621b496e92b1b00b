"""Where rows of activations stand in the diffusion: the timestep, and what else their modulation depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tide.errors import TideError


@dataclass(frozen=True)
class Position:
    """Where the rows of activations ``x [..., d_model]`` stand in the diffusion.

    Rows of one group share timestep and conditioning, as the tokens of one row of a call of the transformer do.

    Attributes:
        timestep: the scheduler's (0 to 1000), ``[groups]`` float32, or one number for all groups; None only for a
            model without modulation.
        conditioning: what the diffusion model adds to its timestep embedding, ``[groups, d_embedding]``, or None.
        group: the group of each row, ``[N]`` int32. None shares the rows evenly in order, so that
            ``x [B, T, d_model]`` with ``timestep [B]`` needs none.
    """

    timestep: Tensor | float | None = None
    conditioning: Tensor | None = None
    group: Tensor | None = None

    @classmethod
    def of(cls, position: At) -> Position:
        """``position`` itself, or the position of rows at this timestep."""
        return position if isinstance(position, Position) else cls(position)

    def timesteps(self, device: torch.device) -> Tensor:
        """One timestep per group, ``[groups]`` float32 on ``device``.

        Raises :class:`~tide.errors.TideError` if there is none.
        """
        if self.timestep is None:
            raise TideError("this TIDE is modulated by the timestep; pass a timestep, or a Position")
        steps = torch.as_tensor(self.timestep, dtype=torch.float32, device=device).reshape(-1)
        n_groups = 1 if self.conditioning is None else len(self.conditioning)
        return steps.expand(n_groups) if len(steps) == 1 else steps

    def groups(self, n_rows: int, n_groups: int, device: torch.device) -> Tensor | None:
        """The group of each of ``n_rows``, ``[n_rows]`` int32; None if all are of a single one.

        Raises :class:`~tide.errors.TideError` for rows that cannot be shared evenly.
        """
        if self.group is not None or n_groups <= 1:
            return self.group
        if n_rows % n_groups:
            raise TideError(
                f"{n_rows} rows cannot be shared by {n_groups} timesteps; pass Position(timestep, group=...)"
            )
        return torch.arange(n_groups, device=device, dtype=torch.int32).repeat_interleave(n_rows // n_groups)


def of_steps(found: Sequence[Tensor | None]) -> Tensor | None:
    """The conditioning of the same images at several timesteps, ``[timesteps, images, d_embedding]``, or None."""
    given = [each for each in found if each is not None]
    return torch.stack(given) if given else None


def at_step(conditioning: Tensor | None, step: int) -> Tensor | None:
    """``[images, d_embedding]`` at one of several timesteps: of a conditioning ``[timesteps, images, d_embedding]``, or
    of one that all timesteps share, ``[images, d_embedding]``."""
    return conditioning if conditioning is None or conditioning.ndim == 2 else conditioning[step]


#: A position, or the timestep alone.
At = Position | Tensor | float | None
