"""Rows of activations with what is known of each: what collection, store, stream and training exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from tide.errors import TideError
from tide.sae.position import Position


@dataclass
class ActivationBatch:
    """Activations of image tokens.

    Attributes:
        x: activations ``[N, d_model]``.
        timestep: ``[groups]`` float32. A group is one row of one call of the transformer.
        group: the group of each row of x, ``[N]`` int32.
        conditioning: what the model adds to its timestep embedding, ``[groups, d_embedding]``, or None.
        sample: the image each row belongs to, ``[N]`` int64; -1 - i for an unconditional row of sample i.
        token: the place of each row in the token grid (row-major), ``[N]`` int32.
        paired: rows 2i and 2i + 1 are the same token of the same image and noise at neighbouring timesteps.
        target: what a transcoder makes of x, ``[N, d_model]``; None for an autoencoder.
    """

    x: Tensor
    timestep: Tensor
    group: Tensor
    conditioning: Tensor | None
    sample: Tensor
    token: Tensor
    paired: bool = False
    target: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.x)
        for name in ("group", "sample", "token"):
            shape = list(getattr(self, name).shape)
            if shape != [n]:
                raise TideError(f"{name} has shape {shape}; {n} rows of activations need [{n}]")
        if self.target is not None and self.target.shape != self.x.shape:
            raise TideError(f"targets have shape {list(self.target.shape)} and x {list(self.x.shape)}; give x's shape")
        if self.conditioning is not None and len(self.conditioning) != len(self.timestep):
            raise TideError(f"{len(self.conditioning)} conditionings, {len(self.timestep)} timesteps; give one a group")
        if self.paired and n % 2:
            raise TideError(f"paired activations come in pairs and these are {n} rows; keep pairs together")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.x)

    @property
    def d_model(self) -> int:
        """The width of the activations."""
        return self.x.shape[1]

    @property
    def wanted(self) -> Tensor:
        """What is to be reconstructed: the target, or x itself."""
        return self.x if self.target is None else self.target

    @property
    def position(self) -> Position:
        """Where the rows stand in the diffusion, as the autoencoder takes it."""
        return Position(self.timestep, self.conditioning, self.group)

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> ActivationBatch:
        """On ``device``, with ``x`` and ``target`` (and only these) in ``dtype``; ``non_blocking`` as in
        :meth:`torch.Tensor.to`."""
        moved = self.mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if dtype is None:
            return moved
        return replace(moved, x=moved.x.to(dtype), target=None if moved.target is None else moved.target.to(dtype))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> ActivationBatch:
        """The same rows, with every tensor changed by ``change``."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        changed: dict[str, Any] = {name: change(value) for name, value in values if isinstance(value, Tensor)}
        return replace(self, **changed)

    def take(self, rows: Tensor | slice) -> ActivationBatch:
        """The given rows: indices, a bool mask or a slice. Groups stay as they are (see :meth:`compacted`).

        Of a paired batch the result is paired too if the rows keep its pairs whole and in order.
        """
        if isinstance(rows, Tensor):
            rows = rows.to(self.x.device)
        paired = self.paired
        if paired:
            chosen = torch.arange(len(self), device=self.x.device)[rows]
            first, second = chosen[::2], chosen[1::2]
            paired = len(first) == len(second) and bool(((first % 2 == 0) & (second == first + 1)).all())
        return replace(
            self,
            x=self.x[rows],
            group=self.group[rows],
            sample=self.sample[rows],
            token=self.token[rows],
            paired=paired,
            target=None if self.target is None else self.target[rows],
        )

    def compacted(self) -> ActivationBatch:
        """The same rows with only the groups that they use."""
        used, group = torch.unique(self.group, return_inverse=True)
        used = used.long()
        return replace(
            self,
            timestep=self.timestep[used],
            group=group.to(torch.int32),
            conditioning=None if self.conditioning is None else self.conditioning[used],
        )

    def merged(self) -> ActivationBatch:
        """The same rows with one group for each timestep, where nothing else tells the groups apart. On a GPU, which
        would be waited for, the groups stay."""
        if self.conditioning is not None or self.timestep.device.type != "cpu":
            return self
        timestep, merged = torch.unique(self.timestep, return_inverse=True)
        return replace(self, timestep=timestep, group=merged.to(torch.int32)[self.group.long()])

    @staticmethod
    def cat(batches: Sequence[ActivationBatch]) -> ActivationBatch:
        """The rows of all batches in order, each keeping its own groups; paired if every batch is."""
        if not batches:
            raise TideError("no activations to join; give at least one batch")
        if len({batch.conditioning is None for batch in batches}) > 1:
            raise TideError("some activations have conditioning and some have none; do not mix models")
        if len({batch.target is None for batch in batches}) > 1:
            raise TideError("some activations have targets and some have none; collect all in one way")
        groups, offset = [], 0
        for batch in batches:
            groups.append(batch.group + offset)
            offset += len(batch.timestep)
        conditioning = [batch.conditioning for batch in batches if batch.conditioning is not None]
        target = [batch.target for batch in batches if batch.target is not None]
        return ActivationBatch(
            x=torch.cat([batch.x for batch in batches]),
            timestep=torch.cat([batch.timestep for batch in batches]),
            group=torch.cat(groups),
            conditioning=torch.cat(conditioning) if conditioning else None,
            sample=torch.cat([batch.sample for batch in batches]),
            token=torch.cat([batch.token for batch in batches]),
            paired=all(batch.paired for batch in batches),
            target=torch.cat(target) if target else None,
        )

    def check_finite(self, name: str) -> None:
        """Raises :class:`~tide.errors.TideError` if x or the target holds NaN or inf; waits for the device x is on."""
        for rows in (self.x, self.target):
            if rows is not None:
                self._check_rows(rows, name)

    def _check_rows(self, x: Tensor, name: str) -> None:
        if bool(torch.isfinite(x.sum(dtype=torch.float32))):
            return
        bad = ~torch.isfinite(x).all(dim=1)
        if not bool(bad.any()):  # finite values whose sum overflowed
            return
        row = int(bad.nonzero()[0])
        kind = "NaN" if bool(x[row].isnan().any()) else "inf"
        timestep = float(self.timestep[self.group[row].long()])
        raise TideError(
            f"activations of {name} hold {kind} at timestep {timestep:g}; "
            "use a wider dtype (bf16 instead of fp16) or another block"
        )
