"""What guards met: for audits, image by image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tide.files import append_lines, finite, lock_file
from tide.messages import counted


def is_above(score: float, threshold: float) -> bool:
    """Whether an image with this score is flagged. One whose activations are not numbers is: nothing else is known."""
    return not score <= threshold


@dataclass
class Sighting:
    """One guard and one image of one run.

    Attributes:
        concept: the guard's.
        run: the number of the pipeline's run in this context, from 0; calls outside of runs count as one.
        image: its number within the run's batch.
        timesteps: of the calls that drew it.
        scores: the image's score in each call.
        thresholds: what it has to stay below.
        words: the calls in which its words were mapped, by their number from 0.
        refuge: the calls in which its words were the refuge's.
        moved: call -> how many of its tokens were moved.
    """

    concept: str
    run: int
    image: int
    timesteps: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    refuge: list[int] = field(default_factory=list)
    moved: dict[int, int] = field(default_factory=dict)

    @property
    def first(self) -> int | None:
        """The call in which it was flagged; None if it never was."""
        pairs = zip(self.scores, self.thresholds, strict=True)
        return next((i for i, (score, threshold) in enumerate(pairs) if is_above(score, threshold)), None)

    @property
    def flagged(self) -> bool:
        """Whether a score was above its threshold in any call."""
        return self.first is not None

    @property
    def let_through(self) -> bool:
        """Whether its last call still showed the concept: it was met too late, or what the guard did was not enough."""
        return bool(self.scores) and is_above(self.scores[-1], self.thresholds[-1])

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        own = asdict(self) | {"moved": {str(call): n for call, n in self.moved.items()}}
        return {**own, "flagged": self.flagged, "first": self.first, "let_through": self.let_through}

    def __str__(self) -> str:
        who = f"run {self.run}, image {self.image}: {self.concept}"
        if self.first is None:
            return f"{who} not met"
        acts = [f"met at call {self.first}"]
        if self.words:
            acts.append(f"words mapped in {counted(len(self.words), 'call')}")
        if self.refuge:
            acts.append(f"sent to the refuge at call {self.refuge[0]}")
        if self.moved:
            acts.append(f"{counted(sum(self.moved.values()), 'token')} moved in {counted(len(self.moved), 'call')}")
        if self.let_through:
            acts.append("still there in the last call")
        return f"{who} {', '.join(acts)}"


@dataclass
class GuardLog:
    """The sightings of all guards of a context, in the order of the runs; those of the run that goes on are growing."""

    sightings: list[Sighting] = field(default_factory=list)

    def __iter__(self) -> Iterator[Sighting]:
        return iter(self.sightings)

    @property
    def flagged(self) -> list[Sighting]:
        """Those of images that a guard flagged."""
        return [each for each in self.sightings if each.flagged]

    @property
    def let_through(self) -> list[Sighting]:
        """Those of images that showed a concept to the end."""
        return [each for each in self.sightings if each.let_through]

    @property
    def summary(self) -> str:
        """A sentence for each guard: in how many images it met its concept, or that it met nothing."""
        sentences = []
        for concept in dict.fromkeys(each.concept for each in self.sightings):
            own = [each for each in self.sightings if each.concept == concept]
            met = sum(each.flagged for each in own)
            images = counted(len(own), "image")
            found = f"met it in {met} of {images}" if met else f"met nothing in {images}"
            if left := sum(each.let_through for each in own):
                found += f", in {left} of them to the last call"
            sentences.append(f"The guard of {concept} {found}.")
        return " ".join(sentences) or "No image was drawn."

    def rows(self) -> list[dict[str, Any]]:
        """As JSON has it."""
        return [each.to_dict() for each in self.sightings]

    def write(self, path: str | Path) -> None:
        """Adds a line of JSON for each sighting to the file ``path``, which several processes may share."""
        path = Path(path)
        with lock_file(path):
            append_lines(path, [json.dumps(finite(row)) for row in self.rows()])

    def __str__(self) -> str:
        return "\n".join([self.summary, *map(str, self.flagged)])
