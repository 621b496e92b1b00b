"""Options shared by ``edit``, ``effect`` and ``trajectory``, which draw a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from tide.cli.command import Command
from tide.cli.options import Autoencoder, Model
from tide.cli.values import Flag, Folder, MaybeCount, MaybeReplacement, MaybeSize, Number, Seed, Text, option, read_by

_TARGET = tyro.conf.create_mutex_group(required=False, title="target (at most one of)")

Prompt = Annotated[str | None, read_by(str, "PROMPT"), option()]


@dataclass(frozen=True, kw_only=True)
class Drawing(Command):
    """How a prompt is drawn."""

    out: Folder
    """folder for the results"""
    prompt: Text
    """prompt to draw"""
    seed: Seed = 0
    """random seed"""
    size: MaybeSize = None
    """image size in pixels, 1024 or 768x1024; of clips 9x768x1024 (default: the pipeline's own)"""
    n_steps: MaybeCount = None
    """sampling steps (default 20, 8 with --fast)"""
    guidance: Number = 4.5
    """guidance scale"""
    fast: Flag = False
    """take 8 sampling steps"""
    towards: Annotated[Prompt, _TARGET] = None
    """another prompt to compare with, drawn from the same seed"""
    change: Annotated[MaybeReplacement, _TARGET] = None
    """compare with this prompt with a word replaced, such as red=blue"""
    model: Model = field(default_factory=Model)
    autoencoder: Autoencoder

    @property
    def steps_drawn(self) -> int:
        return self.n_steps or (8 if self.fast else 20)

    @property
    def target_prompt(self) -> str | None:
        """That of ``--towards`` or ``--change``."""
        from tide.editing import changed_prompt

        return self.towards if self.change is None else changed_prompt(self.prompt, *self.change)

    @property
    def texts(self) -> dict[str, str]:
        """The prompt and, if there is one, the target's, by the option that gives it."""
        target = self.target_prompt
        return {"prompt": self.prompt, **({} if target is None else {"towards": target})}

    @property
    def sampling(self) -> dict[str, Any]:
        """How the prompt is drawn, as the library takes it."""
        return {"n_steps": self.steps_drawn, "guidance_scale": self.guidance, "seed": self.seed, "size": self.size}
