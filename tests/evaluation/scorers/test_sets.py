"""Scores of two sets of images, each against what its scorer says of all images at once."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.scored_sets import ColourReader, MeanDistance
from tests.helpers.scorer_inputs import random_images
from tide.errors import TideError
from tide.evaluation import cmmd, frechet_distance
from tide.evaluation.scorers import Batch, SetScorers, StubScorer, score_sets
from tide.evaluation.statistics import mean_interval

A, B = random_images(7), random_images(7, seed=1) * 0.5
MORE = random_images(3, seed=2)
TEXTS = [f"picture {i}" for i in range(7)]


def all_scorers() -> SetScorers:
    return SetScorers(inception=MeanDistance(), clip=StubScorer(), lpips=StubScorer(), judge=ColourReader(8))


def pairs(part: int):
    batches = zip(A.split(part), B.split(part), range(0, 7, part), strict=True)
    return [(Batch(a, TEXTS[i : i + part]), Batch(b, TEXTS[i : i + part])) for a, b, i in batches]


@pytest.mark.parametrize("part", [7, 3, 1], ids=["at once", "in parts", "one by one"])
def test_every_score_is_that_of_all_images(part):
    found = score_sets(pairs(part), after=[Batch(MORE)], scorers=all_scorers())
    after, clip, judge = torch.cat([B, MORE]), StubScorer(), ColourReader(8)
    assert found["images"] == {"before": 7, "after": 10, "pairs": 7}
    assert found["fid"] == {
        "inception": pytest.approx(float((A.mean(0) - after.mean(0)).square().mean())),
        "judge": pytest.approx(frechet_distance(judge.embed_images(A), judge.embed_images(after)), rel=1e-5),
    }
    for name, scorer in (("clip", clip), ("judge", judge)):
        a, b = scorer.embed_images(A), scorer.embed_images(after)
        expected = {"biased": cmmd(a, b), "unbiased": cmmd(a, b, unbiased=True)}
        assert found["cmmd"][name] == pytest.approx(expected, rel=1e-4)
    before_text, after_text = clip.similarity(A, TEXTS), clip.similarity(B, TEXTS)
    values = {"before": before_text, "after": after_text, "change": after_text - before_text}
    for name, each in values.items():
        assert found["clip_text"][name]["mean"] == pytest.approx(float(each.mean()), abs=1e-6)
        assert found["clip_text"][name]["interval"] == pytest.approx(mean_interval(each.tolist()), abs=1e-5)
        assert found["clip_text"][name]["images"] == 7
    cosines = F.cosine_similarity(clip.embed_images(A), clip.embed_images(B))
    assert found["clip_image"]["mean"] == pytest.approx(float(cosines.mean()), abs=1e-6)
    assert found["lpips"]["mean"] == pytest.approx(float((A - B).square().mean()), rel=1e-5)
    assert found["scorers"]["clip"] == clip.provenance
    assert list(found["scorers"]) == ["inception", "clip", "lpips", "judge"]
    assert json.loads(json.dumps(found)) == found


def test_attributes_are_compared_within_pairs_alone():
    red = torch.full((3, 3, 4, 4), -1.0)
    red[:, 0] = 0.0
    red[:, 0, :, :2] = 0.5
    green = red.roll(1, dims=1)
    after = torch.stack([red[0], green[1], torch.full((3, 4, 4), -1.0)])
    found = score_sets([(Batch(red), Batch(after))], after=[Batch(green)], scorers=SetScorers(judge=ColourReader()))
    assert found["attributes"]["by_attribute"] == pytest.approx({"colour": 1 / 3, "side": 2 / 3})
    assert found["attributes"]["agree"]["mean"] == pytest.approx(1 / 2)
    assert found["attributes"]["invalid"] == {"before": 0, "after": pytest.approx(1 / 6)}


def test_sets_without_pairs():
    found = score_sets([], [Batch(A, TEXTS)], [Batch(B)], scorers=SetScorers(clip=StubScorer(), judge=ColourReader()))
    assert found["images"]["pairs"] == 0
    assert (found["clip_image"], found["lpips"], found["attributes"]["agree"]) == (None, None, None)
    assert found["clip_text"]["before"]["images"] == 7
    assert (found["clip_text"]["after"], found["clip_text"]["change"]) == (None, None)
    assert found["cmmd"]["clip"]["biased"] > 0


def test_what_is_not_asked_is_not_measured():
    found = score_sets(pairs(7), scorers=SetScorers(lpips=StubScorer()))
    assert (found["fid"], found["cmmd"], list(found["scorers"])) == ({}, {}, ["lpips"])
    assert (found["clip_text"], found["clip_image"], found["attributes"]) == (None, None, None)


def test_one_pair_has_no_interval_and_no_cmmd():
    found = score_sets([(Batch(A[:1]), Batch(B[:1]))], scorers=SetScorers(clip=StubScorer(), lpips=StubScorer()))
    assert found["lpips"] == {
        "mean": pytest.approx(float((A[0] - B[0]).square().mean())),
        "interval": None,
        "images": 1,
    }
    assert found["cmmd"] == {}


@pytest.mark.parametrize(
    ("given", "scorers", "message"),
    [
        ([], SetScorers(), "nothing scores the images; give one of inception, clip, lpips, judge"),
        ([], SetScorers(clip=StubScorer()), "there are 0 images before and 0 after; give some of each"),
        (
            [(Batch(A), Batch(B[:2]))],
            SetScorers(clip=StubScorer()),
            r"a pair's images are \[7, 3, 40, 40\] and \[2, 3, 40, 40\]; give them in one size",
        ),
        (
            [(Batch(A, ["one"]), Batch(B))],
            SetScorers(clip=StubScorer()),
            "7 images need as many prompts, not 1; give one for each",
        ),
        ([(Batch(A * 9), Batch(B * 9))], SetScorers(clip=StubScorer()), "images reach from .*; clamp"),
        ([(Batch(A[:1]), Batch(B[:1]))], SetScorers(judge=ColourReader()), "needs at least 2 images of each set"),
    ],
    ids=["no scorer", "no images", "another number", "a prompt missing", "out of range", "one image for FID"],
)
def test_what_does_not_fit(given, scorers, message):
    with pytest.raises(TideError, match=message):
        score_sets(given, scorers=scorers)
