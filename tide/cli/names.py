"""``tide names``: what people and programs call the latents of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tide.cli.command import Command
from tide.cli.values import Flag, MaybeFile, read_by
from tide.errors import TideError

if TYPE_CHECKING:
    from tide.interpretation.names import LatentNames

_CHECKPOINT = "checkpoint folder that `tide train` wrote; its names are in names.jsonl"


@dataclass(frozen=True, kw_only=True)
class Names(Command):
    """Show the names of a checkpoint's latents, or add those of somebody else."""

    interrupted = "the names are whole; add them again if they are missing"

    checkpoint: Annotated[
        str, read_by(str, "CHECKPOINT"), tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT", help=_CHECKPOINT)
    ]
    merge: MaybeFile = None
    """a names.jsonl whose entries to add; what is there already is not added again"""
    list: Flag = False
    """print the latents with a name, a note or a star"""

    def run(self) -> None:
        if self.merge is None and not self.list:
            raise TideError("nothing is asked; give --list or --merge")
        from tide.interpretation.names import NAMES
        from tide.interpretation.names import Names as File
        from tide.messages import counted
        from tide.sae.checkpoint import load_config
        from tide.sae.sets import check_single

        check_single(self.checkpoint)
        folder = Path(self.checkpoint)
        file = File(folder / NAMES, load_config(folder).n_latents)
        if self.merge is not None:
            n = file.merge(self.merge)
            print(f"{n} {'entry' if n == 1 else 'entries'} of {self.merge} added to {file.path}.")
        if self.list:
            found = file.read()
            print("\n".join([*_rows(found), f"{counted(len(found), 'latent')} in {file.path}."]))


def _rows(found: Mapping[int, LatentNames]) -> list[str]:
    """A line for each latent: its number, a star, its name, who gave it and its score; notes below."""
    from tide.messages import one_line

    rows = []
    for latent, each in found.items():
        score = "" if each.score is None else f", AUROC {each.score.auroc:.2f} on {each.score.images} images"
        named = "" if each.name is None else f"{each.name} ({each.by}{score})"
        rows.append(f"{latent:7} {'*' if each.starred else ' '} {named}".rstrip())
        rows += [f"{'':10}{one_line(entry.note)} ({entry.by})" for entry in each.notes]
    return rows
