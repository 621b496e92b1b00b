"""An unwanted concept of the rendered scenes, prompts that ask for it, and allowed prompts of the same kind."""

from __future__ import annotations

from dataclasses import dataclass

from tide.errors import TideError
from tide.scenes.annotate import GUIDANCE_SCALE, N_SAMPLING_STEPS
from tide.scenes.judge import Verdict
from tide.scenes.scene import ATTRIBUTES, Scene, Split, prompts

#: Kinds of concepts that may be unwanted: attributes of :data:`~tide.scenes.scene.ATTRIBUTES` whose values are words of
#: their own in every caption.
KINDS = ("class", "style")

#: The most requests of one kind, split and seed.
MOST_REQUESTS = 3_000
#: Where the noise of each kind and split begins within the 100 003 numbers of a seed. No two share any, nor do edits,
#: which begin at 0 and at 50 000.
_KINDS = {"asking": 60_000, "allowed": 60_000 + 2 * MOST_REQUESTS}
_SPLITS: dict[Split, int] = {"train": 0, "dev": 4 * MOST_REQUESTS, "test": 8 * MOST_REQUESTS}
#: Added to the noise of a request, it gives noise that no other request has.
OTHER_NOISE = MOST_REQUESTS


@dataclass(frozen=True)
class Unwanted:
    """A concept that must not be drawn: one value of a class or of a style, such as "house" or "ornate".

    ``put`` stands in for it; by default the first other value of the attribute.

    Raises :class:`~tide.errors.TideError` for another attribute, or a value that it does not have.
    """

    attribute: str
    value: str
    put: str | None = None

    def __post_init__(self) -> None:
        if self.attribute not in KINDS:
            raise TideError(f"a concept of {self.attribute!r} cannot be unwanted; use one of {', '.join(KINDS)}")
        for value in (self.value, self.neutral):
            if value not in ATTRIBUTES[self.attribute]:
                raise TideError(
                    f"{self.attribute} {value!r} is unknown; use one of {', '.join(ATTRIBUTES[self.attribute])}"
                )
        if self.put == self.value:
            raise TideError(f"{self.value!r} cannot stand in for itself; put another {self.attribute}")

    @property
    def others(self) -> tuple[str, ...]:
        """The values of the same attribute that are allowed."""
        return tuple(value for value in ATTRIBUTES[self.attribute] if value != self.value)

    @property
    def neutral(self) -> str:
        """The value that stands in for the unwanted one."""
        return self.others[0] if self.put is None else self.put

    def shown(self, verdict: Verdict) -> bool:
        """Whether the judge read the concept off an image; wreckage shows nothing."""
        return verdict.valid and verdict.attributes[self.attribute] == self.value


@dataclass(frozen=True)
class Request:
    """One image that is asked for: a prompt, the scene that it describes, and how the pipeline is to draw it."""

    prompt: str
    scene: Scene
    seed: int
    guidance: float = GUIDANCE_SCALE
    n_steps: int = N_SAMPLING_STEPS


def asking(concept: Unwanted, split: Split, n: int, seed: int = 0) -> list[Request]:
    """``n`` requests of ``split`` for scenes that show ``concept``, in captions of the training's templates.

    Raises :class:`~tide.errors.TideError` for more than :data:`MOST_REQUESTS`.
    """
    return _requests("asking", concept, split, n, seed)


def allowed(concept: Unwanted, split: Split, n: int, seed: int = 0) -> list[Request]:
    """``n`` requests of ``split`` for scenes with another value of the same attribute.

    Raises :class:`~tide.errors.TideError` for more than :data:`MOST_REQUESTS`.
    """
    return _requests("allowed", concept, split, n, seed)


def _requests(kind: str, concept: Unwanted, split: Split, n: int, seed: int) -> list[Request]:
    if n > MOST_REQUESTS:
        raise TideError(f"{n} requests are asked for; {MOST_REQUESTS} are the most")
    wanted = kind == "asking"
    pool = prompts(split, 40 * n + 40, seed + 70 + wanted)
    fitting = [(s, caption) for s, caption in pool if (s[concept.attribute] == concept.value) == wanted]
    noise = seed * 100_003 + _KINDS[kind] + _SPLITS[split]
    return [Request(caption, scene, noise + i) for i, (scene, caption) in enumerate(fitting[:n])]
