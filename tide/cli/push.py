"""``tide push``: a checkpoint to the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from tide.cli.command import Command
from tide.cli.usage import Aspect, with_option
from tide.cli.values import Flag, MaybeNames, MaybeText, read_by

_WHAT = "folder that `tide train` wrote: a checkpoint, or those of several blocks"
_NAME = "repository on the Hub, owner/name; it is made if it does not exist"


@dataclass(frozen=True, kw_only=True)
class Push(Command):
    """Send a checkpoint to the Hugging Face Hub, with a model card that is written from its run.

    Sent are weights, configuration, names of latents, curves, the figures of --results with their commands, and their
    first pictures. Optimiser states, logs and absolute paths stay here. A card that a person wrote there is kept. A
    token is needed: `hf auth login`, or HF_TOKEN.
    """

    interrupted = "nothing was sent, or the whole commit"
    usage: ClassVar[tuple[Aspect, ...]] = (with_option("dry_run", leaves_out="private message"),)

    folder: Annotated[str, read_by(str, "RUN"), tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help=_WHAT)]
    repository: Annotated[str, read_by(str, "REPO"), tyro.conf.Positional, tyro.conf.arg(metavar="REPO", help=_NAME)]
    subfolder: MaybeText = None
    """folder in the repository, such as block-26"""
    revision: MaybeText = None
    """branch, made if it does not exist (default main)"""
    results: MaybeNames = None
    """folders of `tide evaluate`, `concepts`, `atlas` and others of this checkpoint, for the card"""
    license: MaybeText = None
    """licence of the weights, as the Hub abbreviates it, such as apache-2.0"""
    private: Flag = False
    """make a private repository; a public one is refused"""
    message: MaybeText = None
    """message of the commit"""
    dry_run: Flag = False
    """send nothing: print the files and the card"""

    def run(self) -> None:
        from tide.hub import upload
        from tide.sharing import prepared

        shared = prepared(
            self.folder,
            self.repository,
            subfolder=self.subfolder,
            revision=self.revision,
            results=self.results or (),
            license=self.license,
        )
        if self.dry_run:
            print(f"{shared}\n\n{shared.card}")
            return
        address = upload(shared.repository, shared.files, shared.cards, private=self.private, message=self.message)
        print(f"{shared}\n\nIt is at {address}.")
