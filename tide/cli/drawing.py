"""What the commands have in common that draw a prompt with a checkpoint beside it: ``edit`` and ``trajectory``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tide.cli.command import Command
from tide.cli.options import Autoencoder, Model
from tide.cli.values import Flag, Folder, MaybeCount, MaybeReplacement, MaybeSize, Number, Seed, Text, option

_TARGET = tyro.conf.create_mutex_group(required=False, title="target (at most one of)")

Prompt = Annotated[str | None, option("PROMPT")]


@dataclass(frozen=True, kw_only=True)
class Drawing(Command):
    """How a prompt is drawn."""

    out: Folder
    """folder of the results"""
    prompt: Text
    """what to draw"""
    seed: Seed = 0
    """of the noise"""
    size: MaybeSize = None
    """of the image in pixels, 1024 or 768x1024 (default: the pipeline's own)"""
    n_steps: MaybeCount = None
    """sampling steps (default: 20; 8 with --fast)"""
    guidance: Number = 4.5
    """guidance scale"""
    fast: Flag = False
    """8 sampling steps"""
    towards: Annotated[Prompt, _TARGET] = None
    """another prompt, drawn from the same seed"""
    change: Annotated[MaybeReplacement, _TARGET] = None
    """this prompt with a word replaced, such as red=blue"""
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
