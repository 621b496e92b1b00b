"""``tide score``: FID, CMMD, CLIP and LPIPS of two folders of pictures, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tide.cli.command import Command
from tide.cli.usage import Aspect, with_option
from tide.cli.values import Count, Flag, Folder, MaybeFile, MaybeFolder, MaybeText
from tide.errors import TideError

if TYPE_CHECKING:
    import torch

    from tide.evaluation.scorers import SetScorers
    from tide.runs import Contents


@dataclass(frozen=True, kw_only=True)
class Score(Command):
    """Score a folder of pictures beside another one: FID, CMMD, CLIP and LPIPS in one table.

    Pictures of one file name in both folders are pairs, which LPIPS and the similarity of images need; FID, CMMD and
    prompts need none. Each measure takes the weights of its model from a local file; nothing is downloaded.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (with_option("clip", uses="prompts"),)

    before: Folder
    """folder of pictures: the references, or those before an edit"""
    after: Folder
    """folder of pictures that are compared with them"""
    prompts: MaybeFile = None
    """prompts of the pictures: one a line in the order of their names, or a list by name as metadata.jsonl, .csv or
    .parquet hold them"""
    clip: MaybeFolder = None
    """folder of a CLIP model, for CMMD and the similarity of images with prompts and with each other"""
    lpips: MaybeFile = None
    """weights of AlexNet, VGG-16 or SqueezeNet as safetensors, for LPIPS"""
    inception: MaybeFile = None
    """weights of Inception v3 as safetensors, for FID"""
    judge: Flag = False
    """for pictures of the bundled pipeline's scenes: FID and CMMD in the space of its judge, and whether attributes are
    read as before"""
    batch_size: Count = 16
    """pictures of each folder that are scored at once"""
    device: MaybeText = None
    """device: cpu, cuda, cuda:1, mps, xpu ... (default: the CUDA GPU if there is one, else the CPU)"""
    out: Folder
    """folder for score.json"""

    def run(self) -> None:
        if not (self.clip or self.lpips or self.inception or self.judge):
            raise TideError("nothing scores the pictures; give --clip, --lpips, --inception or --judge")
        from tide.cli.common import output_folder
        from tide.cli.score_table import score_sentence, score_text
        from tide.devices import device_of

        device = device_of(self.device)
        with output_folder(Path(self.out)):
            found = self._score(device)
            self._write(found, self._contents(found, device))
        print(score_text(found))
        print(f"\n{score_sentence(found)}; see {Path(self.out) / 'score.json'}.")

    def _score(self, device: torch.device) -> dict[str, Any]:
        from tide.evaluation.scorers import FolderPair

        folders = FolderPair.opened(self.before, self.after, self.prompts)
        folders.check(fid=self.judge or self.inception is not None, lpips=self.lpips is not None)  # before models load
        return folders.score(self._scorers(device), batch_size=self.batch_size, progress=True)

    def _scorers(self, device: torch.device) -> SetScorers:
        """Raises :class:`~tide.errors.TideError` for a path or a library that is missing."""
        from tide.evaluation import scorers
        from tide.loading import quiet
        from tide.scenes.judge_scorer import JudgeScorer

        with quiet():
            return scorers.SetScorers(
                inception=None if self.inception is None else scorers.FIDScorer(self.inception, device=device),
                clip=None if self.clip is None else scorers.CLIPScorer(self.clip, device=device),
                lpips=None if self.lpips is None else scorers.LPIPSScorer(self.lpips, device=device),
                judge=JudgeScorer(device=device) if self.judge else None,
            )

    def _contents(self, found: dict[str, Any], device: torch.device) -> Contents:
        from tide.runs import Contents

        folders = {name: str(Path(getattr(self, name)).resolve()) for name in ("before", "after")}
        return Contents(
            kind="score",
            data={**folders, "images": found["images"]},
            configuration={"device": str(device)},
            measured={name: value for name, value in found.items() if name not in ("images", "scorers")},
            files={"score.json": "figures"},
        )

    def _write(self, found: dict[str, Any], holds: Contents) -> None:
        from tide.cli.common import writing
        from tide.files import write_json
        from tide.runs import write_run

        out = Path(self.out)
        with writing(out):
            write_json(out / "score.json", found)
            write_run(out, holds, self.made_by())
