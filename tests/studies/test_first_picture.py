"""The edit that opens the report: the clearest of all, and the unedited image counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tide.scenes import Scene, Verdict
from tide.scenes.judge import HEADS
from tide.studies.first_picture import first_picture, title_of
from tide.studies.tasks import EditTask
from tide.studies.trial import Setting

FACTORS = (0.5, 1.0, 2.0)
SCENE = Scene("house", "red", "near", "with", "grass", seed=3)
TASKS = [EditTask(SCENE, f"prompt {i}", i, "colour", target) for i, target in enumerate(("blue", "green", "white"))]


class Judge:
    """Reads the margin that each image's first value holds; remembers what was wanted of the images."""

    def __init__(self) -> None:
        self.wanted: list[list[str]] = []

    def margins(self, images: torch.Tensor, wanted: list[Scene]) -> torch.Tensor:
        self.wanted.append([scene.colour for scene in wanted])
        return images[:, 0, 0, 0]

    def read(self, images: torch.Tensor) -> list[Verdict]:
        return [Verdict({name: SCENE[name] for name in HEADS}, {}) for _ in images]


def images_of(margins: list[float]) -> torch.Tensor:
    return torch.tensor(margins)[:, None, None, None].expand(-1, 3, 4, 4)


def trial(before: list[float], edited: dict[float, list[float]]) -> Any:
    def draw(setting: Setting) -> torch.Tensor:
        assert setting == Setting("contrast", setting.factor)
        return images_of(edited[setting.factor])

    return SimpleNamespace(judge=Judge(), tasks=TASKS, images=images_of(before), draw=draw)


def test_the_largest_margin_of_all_prompts_and_strengths_is_chosen():
    made = trial([1.0, 1.0, 1.0], {0.5: [-1, -1, 0.2], 1.0: [-1, 0.6, 0.5], 2.0: [0.1, 0.4, -2]})
    found = first_picture(made, FACTORS)
    assert (found.strip.prompt, found.strip.target, found.chosen) == ("prompt 1", "green", 2)
    assert found.margin == pytest.approx(0.6)
    assert found.tried == 9
    assert found.strip.strengths == [0.0, *FACTORS]
    assert len(found.strip.images) == len(found.strip.verdicts) == 4
    assert found.described() == {
        "edit": "red to green", "prompt": "prompt 1", "strength": 1.0, "margin": found.margin, "tried": 9,
    }  # fmt: skip
    assert made.judge.wanted == [["red"] * 3, *[["blue", "green", "white"]] * 3]


def test_an_unedited_image_that_is_not_clear_is_not_chosen():
    made = trial([-0.5, 0.1, 2.0], {factor: [5.0, 4.0, 0.3] for factor in FACTORS})
    found = first_picture(made, FACTORS)
    assert (found.strip.prompt, found.chosen) == ("prompt 2", 1)  # of equal ones the weakest
    assert found.margin == pytest.approx(0.3)


def test_an_edit_in_words():
    assert title_of("colour", "red", "blue") == "red to blue"
    assert title_of("shadow", "with", "without") == "shadow to no shadow"
