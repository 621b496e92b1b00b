"""``tide edit --clip --lpips``: scores of the drawn images, by models whose weights are local files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL.Image import Image

from tide.evaluation import scorers
from tide.loading import quiet


class Scores(NamedTuple):
    """``rows``: what each edited image adds to its row of edit.json; ``report``: what all of them add to the file;
    ``line``: the same in words."""

    rows: list[dict[str, Any]]
    report: dict[str, Any]
    line: str


class Scorers(NamedTuple):
    """The models that ``--clip`` and ``--lpips`` name. They run on the CPU, where a few images take seconds and none of
    the pipeline's memory. ``texts``: the texts that CLIP compares images with, by the option that gave them."""

    clip: scorers.CLIPScorer | None
    lpips: scorers.LPIPSScorer | None
    texts: Mapping[str, str]

    def score(self, before: Image, after: Sequence[Image]) -> Scores:
        rows = scorers.score_edits(before, after, clip=self.clip, lpips=self.lpips, texts=self.texts)
        used = {
            name: each.provenance for name, each in {"clip": self.clip, "lpips": self.lpips}.items() if each is not None
        }
        report = {"scores": {"before": rows[0], "scorers": used}} if used else {}
        return Scores(rows[1:], report, "".join(f"; {each}" for each in self._in_words(rows)))

    def _in_words(self, rows: list[dict[str, Any]]) -> list[str]:
        words = []
        for name in self.texts if self.clip is not None else ():
            first, *rest = (f"{row['clip'][name]:.3f}" for row in rows)
            words.append(f"CLIP with --{name} {first} -> {', '.join(rest)}")
        if self.lpips is not None:
            words.append("LPIPS " + ", ".join(f"{row['lpips']:.3f}" for row in rows[1:]))
        return words


def load(clip: str | None, lpips: str | None, texts: Mapping[str, str]) -> Scorers:
    """Raises :class:`~tide.errors.TideError` for a path or a library that is missing."""
    with quiet():
        return Scorers(
            None if clip is None else scorers.CLIPScorer(clip),
            None if lpips is None else scorers.LPIPSScorer(lpips),
            texts,
        )
