"""The judge as a scorer: its space tells changed scenes from others drawn alike, and its readings say what changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tide.errors import TideError
from tide.evaluation.scorers import Batch, FIDScorer, SetScorers, score_sets
from tide.scenes import images_of, scenes
from tide.scenes.judge import Judge, destroy
from tide.scenes.judge_scorer import JudgeScorer

SCENES = list(scenes("train", 24, 3))


@pytest.fixture(scope="module")
def scorer():
    return JudgeScorer()


def scored(scorer: JudgeScorer, after: torch.Tensor) -> dict:
    return score_sets([(Batch(images_of(SCENES)), Batch(after.clamp(-1, 1)))], scorers=SetScorers(judge=scorer))


def test_other_drawings_of_the_same_scenes_are_nearer_than_scenes_of_another_colour(scorer):
    alike = scored(scorer, images_of([replace(scene, seed=scene.seed + 1) for scene in SCENES]))
    blue = scored(scorer, images_of([scene.changed("colour", "blue") for scene in SCENES]))
    assert 3 * alike["fid"]["judge"] < blue["fid"]["judge"]
    assert 3 * alike["cmmd"]["judge"]["biased"] < blue["cmmd"]["judge"]["biased"]
    assert alike["attributes"]["agree"]["mean"] > 0.95
    shares = blue["attributes"]["by_attribute"]
    was_blue = sum(scene.colour == "blue" for scene in SCENES) / len(SCENES)
    assert shares["colour"] == pytest.approx(was_blue, abs=0.05)
    assert min(share for name, share in shares.items() if name != "colour") > 0.9


def test_wreckage_counts_as_such(scorer):
    found = scored(scorer, destroy(images_of(SCENES), np.random.default_rng(0)))["attributes"]
    assert found["invalid"]["before"] == 0
    assert found["invalid"]["after"] > 0.9
    assert found["agree"]["mean"] < 0.1


def test_its_fid_is_that_of_the_fid_scorer_with_the_judge_as_features(scorer):
    pytest.importorskip("torchmetrics", reason="torchmetrics is in the extras dev and scores")

    class Features(nn.Module):
        num_features = 4 * scorer.judge.width

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return scorer.judge.embed_images(images)

    after = images_of([scene.changed("ground", "snow") for scene in SCENES])
    fid = FIDScorer(Features())
    fid.update(images_of(SCENES), real=True)
    fid.update(after, real=False)
    assert scored(scorer, after)["fid"]["judge"] == pytest.approx(fid.compute(), rel=1e-3)


def test_provenance_tells_judges_apart(scorer):
    stated = scorer.provenance
    assert (stated["scorer"], stated["model"], len(stated["sha256"])) == ("JudgeScorer", "Judge", 16)
    assert JudgeScorer(Judge(8)).provenance["sha256"] != stated["sha256"]


def test_images_that_it_cannot_read(scorer):
    with pytest.raises(TideError, match=r"the judge reads images \[B, 3, 64, 64\], not \[1, 3, 32, 32\]"):
        scorer.embed_images(torch.zeros(1, 3, 32, 32))
    with pytest.raises(TideError, match="images reach from"):
        scorer.read(torch.full((1, 3, 64, 64), 2.0))
