"""What an edit met while a pipeline ran, and what there is to say of one that changed nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from tide.editing.beside import Beside
from tide.editing.edits import Branch, Edit
from tide.editing.named import LISTED, aimed_at, in_words, named, why_idle
from tide.editing.steer import RawEdit
from tide.editing.where_run import WhereRun, WhereRuns
from tide.messages import counted

#: An edit that names more latents than this is not about any one of them.
FEW = 32


@dataclass
class Met:
    """What ``change`` met, over all calls and images of its context.

    Attributes:
        rows: rows of the transformer's calls that belonged to the edit's ``steps`` and ``branch``; with 0, nothing was
            edited.
        calls: calls in which the block ran.
        in_steps: those of them within the steps.
        tokens: tokens of these rows that the mask lets through.
        changed: those of them whose latents the edit changed, before any renormalising.
        moved: those of them whose activations changed.
        fired: ``[n_latents]`` int64, on how many of the tokens each latent was active before the edit; empty without
            an SAE.
        dtype: of the activations.
        drawn: what a :class:`~tide.editing.where.Where` drew; None for other masks.
    """

    change: Edit | RawEdit | Beside
    steps: tuple[float, float] = (0.0, 1.0)
    branch: Branch = "conditional"
    rows: int = 0
    calls: int = 0
    in_steps: int = 0
    tokens: int = 0
    changed: int = 0
    moved: int = 0
    fired: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    dtype: torch.dtype = torch.float32
    drawn: WhereRun | WhereRuns | None = None
    _energy: tuple[float, float] = (0.0, 0.0)

    def count(self, before: Tensor, after: Tensor, z: Tensor | None = None, changed: Tensor | None = None) -> None:
        """Adds tokens: their activations ``before`` and ``after`` ``[N, d_model]``, and with an SAE their latents ``z``
        and the ``changed`` ones ``[N, n_latents]``."""
        self.tokens += len(before)
        self.dtype = before.dtype
        moved = int((after != before).any(1).sum())
        self.moved += moved
        self.changed += moved if z is None or changed is None else int((changed != z).any(1).sum())
        if z is not None:
            fired = z.count_nonzero(0).cpu()
            self.fired = self.fired + fired if len(self.fired) else fired
        apart, whole = (float(each.float().square().sum()) for each in (after.float() - before.float(), before))
        self._energy = self._energy[0] + apart, self._energy[1] + whole

    @property
    def change_of_norm(self) -> float:
        """``|after - before| / |before|`` over the activations of all edited tokens; 0 without any."""
        apart, whole = self._energy
        return sqrt(apart / whole) if whole else 0.0

    @property
    def masks(self) -> list[tuple[float, Tensor]]:
        """Of the latest run, what a :class:`~tide.editing.where.Where` drew at each edited step: the timestep, and the
        tokens of each image, bool ``[images, tokens]`` on the CPU."""
        return [] if self.drawn is None else self.drawn.masks

    @property
    def active(self) -> dict[int, int]:
        """Each latent that the edit names by number, and on how many of the tokens it was active."""
        return self._counts(named(self.change))

    @property
    def target_active(self) -> dict[int, int]:
        """The same of the latents that a target points at, for edits that scale or swap those that the image has."""
        return self._counts(aimed_at(self.change))

    @property
    def inactive(self) -> list[int]:
        """The latents named by number that were active on none of the tokens."""
        return [latent for latent, count in self.active.items() if not count]

    @property
    def fired_most(self) -> dict[int, float]:
        """The latents that were active on most of the tokens, and on what share of them."""
        counts, latents = self.fired.sort(descending=True, stable=True)
        pairs = zip(latents[:LISTED].tolist(), counts[:LISTED].tolist(), strict=True)
        return {latent: count / self.tokens for latent, count in pairs if count}

    @property
    def nothing(self) -> str | None:
        """Why the runs left every activation as it was, in words; None if they did not, or if none was made."""
        if not self.calls or self.moved:
            return None
        if not self.rows:
            return self._no_rows()
        if not self.tokens and self.drawn is not None:
            return self.drawn.nothing
        if not self.tokens:
            return "the mask covers none of the image's tokens"
        if self.changed:
            return self._undone()
        return why_idle(self.change, self.fired) or "the edit leaves the latents of this run as they are"

    @property
    def remark(self) -> str | None:
        """What to tell whoever made the edit: why nothing changed, or which of the few latents that it names were
        inactive."""
        if self.nothing is not None:
            return f"the pipeline ran and nothing was edited: {self.nothing}{self.candidates}"
        if self.inactive and self.tokens and len(self.active) <= FEW:
            return f"{in_words(self.inactive)} inactive on all edited tokens{self.candidates}"
        return None

    @property
    def candidates(self) -> str:
        """After a remark on inactive latents: those that an edit could name instead."""
        if not self.inactive or not self.fired_most:
            return ""
        return f"; most often active there: {shares(self.fired_most)}"

    def _counts(self, latents: frozenset[int]) -> dict[int, int]:
        return {latent: int(self.fired[latent]) for latent in sorted(latents)} if len(self.fired) else {}

    def _no_rows(self) -> str:
        calls = counted(self.calls, "call")
        if not self.in_steps:
            return f"none of its {calls} of the block was of the steps {self.steps[0]:g} to {self.steps[1]:g}"
        hint = "; a run without guidance has none" if self.branch == "unconditional" else ""
        return f"its {calls} of the block had no {self.branch} rows{hint}"

    def _undone(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"its change is undone by renormalising, or too small for activations in {dtype}"


def shares(latents: dict[int, float]) -> str:
    """``12 (98%), 7 (<1%)``: latents, and on what share of the tokens each is active."""
    return ", ".join(f"{latent} ({'<1%' if share < 0.005 else f'{share:.0%}'})" for latent, share in latents.items())
