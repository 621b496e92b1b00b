"""``tide names``: what people and programs call the latents of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from tide.cli.command import Command
from tide.cli.usage import Aspect, with_option
from tide.cli.values import (
    Flag,
    MaybeFile,
    MaybeFolder,
    MaybeText,
    Seed,
    features,
    option,
    positive,
    read_by,
)
from tide.errors import TideError

if TYPE_CHECKING:
    from tide.interpretation.names import LatentNames
    from tide.interpretation.names import Names as File

#: Latents that a vision-language model is asked of unless told otherwise: each costs two requests with pictures.
TOP = 64

_WHICH = tyro.conf.create_mutex_group(required=False, title="latents for --vision (at most one of)")
_CHECKPOINT = "checkpoint folder that `tide train` wrote; its names are in names.jsonl"


@dataclass(frozen=True, kw_only=True)
class Names(Command):
    """Show the names of a checkpoint's latents, add those of somebody else, or find names.

    Names are found in the checkpoint's index, which `tide browse` makes. Those by captions, by CLIP and by a model are
    chosen on every second image, and their AUROC is of the others. What captions, concepts or CLIP named before is
    replaced. No request leaves the machine, unless --vision gives an address: pictures are sent there, and the key in
    the environment variable TIDE_VISION_KEY.
    """

    interrupted = "the names are whole; what is missing is added by the same command"
    usage: ClassVar[tuple[Aspect, ...]] = (
        with_option("clip", uses="words"),
        with_option("vision", uses="vision_model latents top vision_seed"),
    )

    checkpoint: Annotated[
        str, read_by(str, "CHECKPOINT"), tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT", help=_CHECKPOINT)
    ]
    merge: MaybeFile = None
    """a names.jsonl whose entries to add; what is there already is not added again"""
    concepts: Flag = False
    """name latents by their labels, where these are of masks (rendered scenes)"""
    captions: Flag = False
    """name latents by the words of captions that they tell best"""
    clip: MaybeFolder = None
    """name latents by the words that CLIP, in this local folder, finds most similar to their images"""
    words: MaybeFile = None
    """a file of words for CLIP, one a line, beside those of the captions"""
    vision: Annotated[str | None, read_by(str, "URL"), option()] = None
    """name latents by a vision-language model at this address, such as http://localhost:8000/v1; it gets pictures"""
    vision_model: MaybeText = None
    """the model's name there"""
    latents: Annotated[tuple[int, ...] | None, read_by(features, "N,N"), option(), _WHICH] = None
    """the latents to ask it of; those that it has named already are left out"""
    top: Annotated[int | None, read_by(positive, "N"), option(), _WHICH] = None
    """ask it of so many latents, the most active ones (default 64)"""
    vision_seed: Seed = 0
    """random seed of the images that it is shown"""
    list: Flag = False
    """print the latents with a name, a note or a star"""

    def run(self) -> None:
        finds = self.concepts or self.captions or self.clip is not None or self.vision is not None
        if self.merge is None and not self.list and not finds:
            raise TideError("nothing is asked; give --list, --merge, --captions, --concepts, --clip or --vision")
        if self.vision is not None and self.vision_model is None:
            raise TideError("the model at --vision is not named; give --vision-model")
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
        if finds:
            self._find(folder, file)
        if self.list:
            found = file.read()
            print("\n".join([*_rows(found), f"{counted(len(found), 'latent')} in {file.path}."]))

    def _find(self, folder: Path, file: File) -> None:
        """Everything that is given is opened before the first name is looked for."""
        from tide.cli import names_found
        from tide.interpretation.naming import VisionModel

        index = names_found.index_of(folder)
        clip = None if self.clip is None else names_found.clip_of(self.clip)
        words = names_found.words_of(self.words)
        model = None if self.vision is None else VisionModel(self.vision, self.vision_model or "")
        if self.concepts:
            print(names_found.by_concepts(index, file))
        if self.captions:
            print(names_found.by_captions(index, file))
        if clip is not None:
            print(names_found.by_clip(index, file, clip, words))
        if model is not None:
            asked = self.latents if self.latents is not None else names_found.most_active(index, self.top or TOP)
            print(names_found.by_model(index, file, model, asked, self.vision_seed))


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
