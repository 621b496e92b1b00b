"""What a scene is: its attributes, its caption, and its split (train, dev or test).

A scene holds one object on a ground. Eight attributes are named in its caption; position, size, the exact tint and
the pattern of wear are not, so two scenes with the same caption differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np

from tide.errors import TideError

Split = Literal["train", "dev", "test"]

#: Attribute -> its values, in the order the judge's heads use.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "class": ("sphere", "cube", "cone", "house", "tree"),
    "colour": ("red", "yellow", "green", "blue", "purple", "white"),
    "depth": ("near", "far"),
    "shadow": ("with", "without"),
    "ground": ("grass", "sand", "snow"),
    "style": ("plain", "ornate", "sketched"),
    "age": ("new", "old"),
    "orientation": ("left", "right"),
}

#: The paper's three levels (section 5.4), then the other attributes: level -> concepts that have a pixel mask.
CONCEPTS: dict[str, tuple[str, ...]] = {
    "3d": ("near", "far", "shadow"),
    "class": ATTRIBUTES["class"],
    "part": ("door", "roof", "window", "trunk", "crown"),
    "colour": ATTRIBUTES["colour"],
    "ground": ATTRIBUTES["ground"],
    "style": ATTRIBUTES["style"],
    "age": ATTRIBUTES["age"],
    "orientation": ATTRIBUTES["orientation"],
}

#: Concept -> its level.
LEVEL_OF: dict[str, str] = {concept: level for level, names in CONCEPTS.items() for concept in names}

#: Caption templates. Each names every attribute, in an order of its own.
TEMPLATES: tuple[str, ...] = (
    "a {style} {age} {colour} {cls}, facing {orientation}, {depth}, on {ground}, {shadow} a shadow",
    "a {depth} {colour} {cls}, {age}, {style}, {shadow} a shadow on {ground}, facing {orientation}",
    "on {ground}, a {style} {colour} {cls}, {depth}, {age}, {shadow} shadow, facing {orientation}",
    "{depth} {cls} facing {orientation}, {colour}, {style}, {age}, {shadow} a shadow, {ground}",
    "a picture of a {age} {colour} {cls} on {ground}, {style}, facing {orientation}, {depth}, {shadow} shadow",
    "{ground}, {style}, {depth}, a {age} {cls} in {colour}, facing {orientation}, {shadow} a shadow",
)

#: Captions that leave attributes open, for prompts such as "a red house, far". Used in training only.
SHORT_TEMPLATES: tuple[str, ...] = (
    "a {colour} {cls}",
    "a {colour} {cls}, {depth}",
    "a {colour} {cls} on {ground}",
    "a {cls}",
    "a {cls}, {depth}, {shadow} a shadow",
    "a {colour} {cls}, {depth}, on {ground}, {shadow} a shadow",
    "a {style} {colour} {cls}, {depth}, on {ground}, {shadow} a shadow",
    "a {age} {colour} {cls}, {depth}, on {ground}, {shadow} a shadow",
    "a {colour} {cls}, facing {orientation}, {depth}, on {ground}, {shadow} a shadow",
    "a {style} {age} {cls}, facing {orientation}",
)

VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {word for values in ATTRIBUTES.values() for word in values}
        | {"a", "of", "on", "in", "picture", "shadow", "facing", "an", ",", "."}
    )
)


def with_articles(caption: str) -> str:
    """ "an" before a vowel and "a" elsewhere."""
    return re.sub(r"\ban? (\w)", lambda m: ("an " if m[1] in "aeiou" else "a ") + m[1], caption)


@dataclass(frozen=True)
class Scene:
    """The named attributes of a scene, and the unnamed ones drawn from ``seed`` when it is rendered.

    Attributes:
        cls: the object, of ``ATTRIBUTES["class"]``.
        colour: of the object.
        depth: "near" or "far".
        shadow: "with" or "without" one.
        ground: what it stands on.
        style: "plain", "ornate" or "sketched".
        age: "new" or "old".
        orientation: the side that it faces, "left" or "right".
        seed: of the attributes without names.
    """

    cls: str
    colour: str
    depth: str
    shadow: str
    ground: str
    style: str = "plain"
    age: str = "new"
    orientation: str = "left"
    seed: int = 0

    def __post_init__(self) -> None:
        for attribute, values in ATTRIBUTES.items():
            if self[attribute] not in values:
                raise TideError(
                    f"scene attribute {attribute}={self[attribute]!r} is unknown; use one of {', '.join(values)}"
                )

    def __getitem__(self, attribute: str) -> str:
        return str(getattr(self, "cls" if attribute == "class" else attribute))

    def changed(self, attribute: str, value: str) -> Scene:
        """The same scene, same seed, with one attribute set to another value."""
        changes: dict[str, Any] = {"cls" if attribute == "class" else attribute: value}
        return replace(self, **changes)

    def caption(self, template: str = TEMPLATES[0]) -> str:
        """The scene in words, by one of :data:`TEMPLATES` or :data:`SHORT_TEMPLATES`."""
        words = {name: self[name] for name in ATTRIBUTES if name != "class"}
        return with_articles(template.format(cls=self.cls, **words))

    @property
    def split(self) -> Split:
        """The split that the scene's combination belongs to."""
        return split_of(self.cls, self.colour, self.depth, self.shadow)


def split_of(cls: str, colour: str, depth: str, shadow: str) -> Split:
    """The split of a combination of class, colour, depth and shadow, for any ground, style, age and orientation.

    Of the 120 combinations, 10 are kept for development and 14 for the test: one (depth, shadow) cell of
    24 of the 30 (class, colour) pairs. So training sees every pair of attribute values, and every held-out prompt
    asks for a combination that it never saw.
    """
    i_class = ATTRIBUTES["class"].index(cls)
    i_colour = ATTRIBUTES["colour"].index(colour)
    cell = 2 * ATTRIBUTES["depth"].index(depth) + ATTRIBUTES["shadow"].index(shadow)
    slot = (i_colour + i_class) % 5  # slot 4 of every class keeps all four cells for training
    if slot == 4 or cell != (i_class + 2 * i_colour + i_colour // 2) % 4:
        return "train"
    return "dev" if (i_class + i_colour) % 2 == 0 else "test"


#: The most scenes of one call: every combination of the training split some hundred times.
MOST_SCENES = 10**6


def combinations(split: Split) -> list[Scene]:
    """Every combination of the attributes in ``split``, seed 0, in a fixed order."""
    return [
        Scene(cls, colour, depth, shadow, ground, style, age, orientation)
        for cls, colour, depth, shadow, ground, style, age, orientation in product(*ATTRIBUTES.values())
        if split_of(cls, colour, depth, shadow) == split
    ]


def scenes(split: Split, n: int, seed: int = 0) -> Iterator[Scene]:
    """``n`` scenes of ``split`` in a random order; every combination comes equally often.

    ``seed`` is that of their order.

    Raises :class:`~tide.errors.TideError` for more than :data:`MOST_SCENES`.
    """
    if n > MOST_SCENES:
        raise TideError(f"{n} scenes are asked for; {MOST_SCENES} are the most")
    pool = combinations(split)
    rng = np.random.default_rng([seed, ("train", "dev", "test").index(split)])
    order: list[int] = []
    for _ in range(n):
        if not order:
            order = list(rng.permutation(len(pool)))
        yield replace(pool[order.pop()], seed=int(rng.integers(2**31)))


def prompts(split: Split, n: int, seed: int = 0) -> list[tuple[Scene, str]]:
    """``n`` scenes of ``split`` with a caption each, the templates taken in a random order.

    ``seed`` is that of scenes and templates.
    """
    rng = np.random.default_rng([seed, 7])
    return [(scene, scene.caption(TEMPLATES[rng.integers(len(TEMPLATES))])) for scene in scenes(split, n, seed)]
