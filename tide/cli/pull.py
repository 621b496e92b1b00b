"""``tide pull``: a checkpoint from the Hugging Face Hub."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tide.cli.command import Command
from tide.cli.values import Flag, Folder, MaybeText, read_by

_NAME = "repository on the Hub, owner/name"


@dataclass(frozen=True, kw_only=True)
class Pull(Command):
    """Fetch a checkpoint from the Hugging Face Hub into a folder, for --sae.

    Only weights as safetensors, JSON files, the card and the curves are fetched: no code, no pickle. What the Hub's
    cache has is not fetched again. A private repository needs a token: `hf auth login`, or HF_TOKEN.
    """

    repository: Annotated[str, read_by(str, "REPO"), tyro.conf.Positional, tyro.conf.arg(metavar="REPO", help=_NAME)]
    out: Folder
    """new folder for the checkpoint"""
    subfolder: MaybeText = None
    """folder in the repository, such as block-26"""
    revision: MaybeText = None
    """branch, tag or commit (default main)"""
    offline: Flag = False
    """ask nobody: take what the cache has"""

    def run(self) -> None:
        from tide.hub import checkpoints
        from tide.sae.checkpoint import load_config
        from tide.sharing import pull

        out = pull(
            self.repository, self.out, subfolder=self.subfolder, revision=self.revision, local_files_only=self.offline
        )
        configs = [load_config(path) for path in checkpoints(Path(out)).values()]
        first, blocks = configs[0], [str(each.block) for each in configs if each.block is not None]
        block = f"block {', '.join(blocks)}" if blocks else "a block that it does not name"
        print(
            f"In {out}: {first.n_latents} latents of width {first.d_model}, {block} of "
            f"{first.pipeline or 'a pipeline that it does not name'}. "
            f"`tide evaluate --sae {shlex.quote(str(out))}` measures it on your images."
        )
