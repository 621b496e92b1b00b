"""``tide edit --clip --lpips``: scores of the drawn images, by models whose weights are local files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from tide.evaluation.scorers import CLIPScorer, LPIPSScorer


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scores, by local weights (nothing is downloaded)")
    group.add_argument("--clip", metavar="DIR", help="a CLIP model: similarity with --prompt and --towards")
    group.add_argument(
        "--lpips", metavar="FILE", help="torchvision's AlexNet, VGG-16 or SqueezeNet: LPIPS to the unedited image"
    )


@dataclass(frozen=True)
class Scores:
    """``rows``: what each edited image adds to its row of edit.json; ``report``: what all add to the file; ``line``:
    the same in words."""

    rows: list[dict[str, Any]]
    report: dict[str, Any]
    line: str


@dataclass(frozen=True)
class Scorers:
    """What ``--clip`` and ``--lpips`` name. ``texts``: what CLIP compares images with, by the option that gave it."""

    clip: CLIPScorer | None
    lpips: LPIPSScorer | None
    texts: dict[str, str]

    def score(self, before: Image, after: Sequence[Image]) -> Scores:
        """Scores of the unedited image and, in the order of the strengths, of the edited ones."""
        rows: list[dict[str, Any]] = [{} for _ in (before, *after)]
        scorers, words = {}, []
        if self.clip is not None:
            scorers["clip"] = self.clip.provenance
            for row, values in zip(rows, self._similarities([before, *after]), strict=True):
                row["clip"] = dict(zip(self.texts, values, strict=True))
            for name in self.texts:
                first, *rest = (f"{row['clip'][name]:.3f}" for row in rows)
                words.append(f"CLIP with --{name} {first} -> {', '.join(rest)}")
        if self.lpips is not None:
            scorers["lpips"] = self.lpips.provenance
            reference = _tensor(before)
            for row, image in zip(rows[1:], after, strict=True):  # one at a time: VGG's features are large
                row["lpips"] = float(self.lpips.distance(_tensor(image), reference))
            words.append("LPIPS " + ", ".join(f"{row['lpips']:.3f}" for row in rows[1:]))
        report = {"scores": {"before": rows[0], "scorers": scorers}} if scorers else {}
        return Scores(rows[1:], report, "".join(f"; {each}" for each in words))

    def _similarities(self, images: Sequence[Image]) -> list[list[float]]:
        """Of each image with each of the texts."""
        from torch.nn.functional import cosine_similarity

        assert self.clip is not None
        texts = self.clip.embed_texts(list(self.texts.values()))
        return [cosine_similarity(self.clip.embed_images(_tensor(image)), texts, dim=1).tolist() for image in images]


def load(args: argparse.Namespace) -> Scorers:
    """The scorers asked for, on the CPU, where a few images take seconds and no memory of the pipeline's.

    Raises :class:`~tide.errors.TideError` for a path or a library that is missing.
    """
    clip = lpips = None
    if args.clip is not None or args.lpips is not None:
        from tide.cli import common
        from tide.evaluation import scorers

        with common.quiet():
            clip = None if args.clip is None else scorers.CLIPScorer(args.clip)
            lpips = None if args.lpips is None else scorers.LPIPSScorer(args.lpips)
    texts = {name: text for name in ("prompt", "towards") if (text := getattr(args, name)) is not None}
    return Scorers(clip, lpips, texts)


def _tensor(image: Image) -> Any:
    """``[1, 3, H, W]`` in [-1, 1]."""
    from tide.activations.data import to_tensor

    return to_tensor(image, (image.height, image.width))[None]
