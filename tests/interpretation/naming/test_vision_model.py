"""Names by a vision-language model, which here is a server of the test that sees brightness."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.helpers.vision_server import Asked, Reply, vision_server
from tide.errors import TideError
from tide.interpretation.names import Entry, Score
from tide.interpretation.naming import VisionModel, ask_names, name_by_model

N = 60
AT = "2026-11-28T09:00:00Z"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("TIDE_VISION_KEY", raising=False)


@pytest.fixture
def bright() -> torch.Tensor:
    """A third of the images."""
    return torch.rand(N, generator=torch.Generator().manual_seed(0)) < 1 / 3


@pytest.fixture
def images(bright) -> list[np.ndarray]:
    """Each has a colour of its own: its number is in the blue."""
    return [np.full((32, 32, 3), (200 * int(each), 0, 4 * i), np.uint8) for i, each in enumerate(bright.tolist())]


@pytest.fixture
def peaks(bright) -> torch.Tensor:
    """Latent 0 fires on bright images and 1 never; 2 on bright ones of the first half and others at random."""
    strength = 1 + torch.rand(N, generator=torch.Generator().manual_seed(1))
    third = bright.clone()
    third[1::2] = torch.rand(N // 2, generator=torch.Generator().manual_seed(2)) < 0.5
    return torch.stack([bright * strength, torch.zeros(N), third * strength], dim=1)


def heat(latent: int, image: int) -> np.ndarray:
    return np.ones((4, 4), np.float32)


def number(picture: np.ndarray) -> int:
    return round(float(picture[..., 2].mean()) / 4)


def is_bright(picture: np.ndarray) -> bool:
    return bool(picture[..., 0].mean() > 100)


def sees(asked: Asked) -> Reply:
    """Answers as a good model would."""
    if "fits" in asked.text:
        return Reply(json.dumps({"fits": [i for i, each in enumerate(asked.pictures, 1) if is_bright(each)]}))
    return Reply(json.dumps({"name": "bright  picture"}))


def name(
    answer: Callable[[Asked], Reply], peaks: torch.Tensor, images: list[np.ndarray], latents: list[int], **options
) -> tuple[dict[int, Entry], list[Asked], list[str]]:
    """The names, the requests and the lines."""
    lines: list[str] = []
    with vision_server(answer) as (address, got):
        model = VisionModel(address, "seer:7b", timeout=options.pop("timeout", 30), pause=0.001)
        found = name_by_model(peaks, images, heat, model, latents, report=lines.append, at=AT, **options)
    return found, got, lines


def test_a_name_and_how_well_it_finds_the_latents_images(peaks, images):
    found, got, lines = name(sees, peaks, images, [0], detected=16)
    assert found == {0: Entry(0, "model:seer:7b", AT, "bright picture", score=Score(1.0, 16))}
    assert (len(got), lines) == (2, [])


def test_the_name_is_asked_of_one_half_of_the_images_and_tested_on_the_other(peaks, images, bright):
    _, (naming, detection), _ = name(sees, peaks, images, [0], shown=5, detected=16)
    shown = [number(each) for each in naming.pictures]
    strongest = peaks[0::2, 0].argsort(descending=True)[:5] * 2
    assert shown[:5] == strongest.tolist()
    assert len(shown) == 10
    assert all(i % 2 == 0 and not bright[i] for i in shown[5:])
    assert shown[5:] != [i for i in range(0, N, 2) if not bright[i]][:5]  # not the first ones, which may be alike
    tested = [number(each) for each in detection.pictures]
    assert len(set(tested)) == 16
    assert all(i % 2 == 1 for i in tested)
    assert bright[tested].sum() == 8
    assert bright[tested].tolist() != sorted(bright[tested].tolist(), reverse=True)


def test_the_seed_draws_the_images(peaks, images):
    orders = [
        [number(each) for each in name(sees, peaks, images, [0], detected=8, seed=seed)[1][1].pictures]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_the_score_is_the_balanced_accuracy_on_the_other_half(peaks, images):
    """The latent and the name agree on the images that chose it, and by chance on the others."""
    found, (_, detection), _ = name(sees, peaks, images, [2], detected=20)
    tested = [(number(each), is_bright(each)) for each in detection.pictures]
    fires = {True: [], False: []}
    for i, says in tested:
        fires[bool(peaks[i, 2] > 0)].append(says)
    right = (np.mean(fires[True]) + 1 - np.mean(fires[False])) / 2
    assert found[2].score == Score(pytest.approx(right), 20)
    assert right < 0.9


def test_pieces_and_their_other_latents(peaks, images):
    pieces = (([latent + 10], peaks[:, [latent]]) for latent in (2, 0, 1))
    found, got, lines = name(sees, pieces, images, [10, 99])
    assert list(found) == [10]
    assert len(got) == 2
    assert lines == ["latent 99 gets no name by seer:7b: its peaks were not given"]


def test_a_latent_that_never_fires_asks_nothing(peaks, images):
    found, got, lines = name(sees, peaks, images, [1])
    assert (found, got) == ({}, [])
    assert lines == [
        "latent 1 gets no name by seer:7b: only 0 images of a half show it firing, or silent; 4 are needed"
    ]


@pytest.mark.parametrize(
    ("reply", "why", "requests"),
    [
        (Reply(b"no", 400), "it answered with the error 400 (no)", 1),
        (Reply(b"", 500), "it answered with the error 500 (Internal Server Error)", 3),
        (Reply(b"<html>"), "its answer is no chat completion (<html>)", 1),
        (Reply("a bright picture"), "its answer is not JSON (a bright picture)", 1),
        (Reply('{"name": "  "}'), "its name is empty", 1),
        (Reply(json.dumps({"name": "a" * 201})), "name has 201 characters and may have 200", 1),
        (Reply(json.dumps({"name": "a\0b"})), "name is 'a\\x00b' and must have no control characters", 1),
        (Reply(json.dumps({"name": "a\ud800b"})), "name holds half a character", 1),
        (Reply('{"name": "bright"}'), "its answer holds no numbers of the 20 pictures", 2),
        (Reply('{"name": "bright", "fits": [21]}'), "its answer holds no numbers of the 20 pictures", 2),
    ],
    ids=lambda each: str(getattr(each, "content", ""))[:30],
)
def test_a_latent_without_an_answer_has_no_name_and_a_line_says_why(peaks, images, reply, why, requests):
    found, got, (line,) = name(lambda asked: reply, peaks, images, [0])
    assert found == {}
    assert line.startswith(f"latent 0 gets no name by seer:7b: {why}")
    assert line.isprintable()
    assert len(got) == requests


def test_a_late_answer_is_none(peaks, images):
    found, _, lines = name(lambda asked: Reply("x", delay=30), peaks, images, [0], timeout=0.2)
    assert (found, lines) == ({}, ["latent 0 gets no name by seer:7b: it did not answer in 0.2 s"])


def test_a_busy_server_names_in_the_end(peaks, images):
    busy = [True, True, False, True, False]
    found, got, lines = name(lambda asked: Reply(b"", 429) if busy.pop(0) else sees(asked), peaks, images, [0])
    assert (found[0].name, len(got), lines) == ("bright picture", 5, [])


def test_one_failure_does_not_end_the_others(peaks, images):
    replies = [Reply("x"), None, None]
    found, _, lines = name(lambda asked: replies.pop(0) or sees(asked), peaks, images, [0, 2])
    assert (list(found), len(lines)) == ([2], 1)


def test_names_are_there_one_by_one(peaks, images):
    with vision_server(sees) as (address, got):
        found = ask_names(peaks, images, heat, VisionModel(address, "m"), [0, 2])
        assert next(found).latent == 0
        assert len(got) == 2


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"detected": 7}, "detected = 7 is not an even number of at least 8; give one"),
        ({"detected": 6}, "detected = 6 is not"),
        ({"shown": 0}, "shown 0 is too small; give at least 1"),
    ],
    ids=str,
)
def test_counts_that_cannot_be(peaks, images, options, fault):
    with pytest.raises(TideError, match=fault):
        name(sees, peaks, images, [0], **options)


def test_an_image_for_each_peak(peaks, images):
    with pytest.raises(TideError, match=r"give \[images, latents\] of 59 images"):
        name(sees, peaks, images[1:], [0])
