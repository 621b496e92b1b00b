"""A prompt followed along its run, in one call."""

from __future__ import annotations

import pytest
import torch

from tide.editing import draw_latents
from tide.errors import TideError
from tide.interpretation import follow, record_trajectory, run_distances, step_changes
from tide.interpretation.abrupt_change import abrupt_change
from tide.interpretation.following import Followed
from tide.sae import TIDE
from tide.training import TrainConfig, build_model

RUN = {"n_steps": 5, "guidance_scale": 2.0, "seed": 3}


@pytest.fixture(scope="module")
def sae(adapter) -> TIDE:
    return build_model(adapter, 6, TrainConfig(n_latents=96, k=8)).eval()


@pytest.fixture(scope="module")
def followed(adapter, sae) -> Followed:
    return follow(adapter, sae, "a red house", "a blue house", **RUN)


def test_what_is_found(adapter, sae, followed):
    runs = [
        record_trajectory(adapter, sae, lambda prompt=prompt: draw_latents(adapter, prompt, **RUN))
        for prompt in ("a red house", "a blue house")
    ]
    assert (followed.prompt, followed.towards) == ("a red house", "a blue house")
    assert torch.equal(followed.source.final, runs[0].final)
    assert followed.target is not None
    assert torch.equal(followed.target.final, runs[1].final)
    latents, apart = step_changes(runs[0]), run_distances(*runs)
    assert followed.columns["cosine with the next step"] == [*latents.cosine[:, 0].tolist(), None]
    assert followed.columns["mse to the next step"] == [*latents.mse[:, 0].tolist(), None]
    assert followed.columns["cosine with the target"] == apart.cosine[:, 0].tolist()
    assert followed.change == abrupt_change(latents.cosine[:, 0].tolist())
    assert followed.changed_at == (None if followed.change is None else followed.change.index + 1)


def test_rows(followed):
    assert followed.n_steps == 5
    assert [row["step"] for row in followed.rows] == [0, 1, 2, 3, 4]
    for name, values in followed.columns.items():
        assert [row[name] for row in followed.rows] == values


def test_without_a_target(adapter, sae, followed):
    alone = follow(adapter, sae, "a red house", **RUN)
    assert alone.target is None
    assert not [name for name in alone.columns if "target" in name]
    assert alone.columns == {name: followed.columns[name] for name in alone.columns}


def test_two_prompts_that_draw_the_same_image(adapter, sae, followed):
    """Neither word is known to the text encoder."""
    assert follow(adapter, sae, "a zzz house", "a yyy house", n_steps=4).same
    assert not followed.same


def test_what_does_not_fit(adapter, sae, monkeypatch):
    with pytest.raises(TideError, match=r"^n_steps = 3 is too few to find a change in; give at least 4$"):
        follow(adapter, sae, "a", n_steps=3)
    with pytest.raises(TideError, match="does not divide into tokens"):
        follow(adapter, sae, "a", size=(65, 64))
    monkeypatch.setattr("tide.interpretation.following.RUN_BYTES", 1000)
    with pytest.raises(TideError, match="the run's latents take 0 GB; lower n_steps or the size"):
        follow(adapter, sae, "a", **RUN)
