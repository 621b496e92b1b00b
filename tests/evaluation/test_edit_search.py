"""One edit at several settings: its effect and its damage, and which setting is best."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.edit_samples import SILENT, N, make_sae
from tide.editing import Erase, Replace, Scale, SteerTowards, Strength, Target, draw_latents, edit
from tide.editing.record import record_targets
from tide.errors import TideError
from tide.evaluation import EditTrial, search_edits
from tide.evaluation.edit_ruler import _share_of_way
from tide.evaluation.edit_search import PRICE, EditSetting, Tried, n_runs, settings
from tide.pictures import to_image

RUN = {"n_steps": 2, "guidance_scale": 1.0}
WHOLE = ((0.0, 1.0),)
SOURCE, TARGET = "a red house", "a blue tree on snow"


@pytest.fixture(scope="module")
def sae(alpha):
    return make_sae(alpha, 6)


@pytest.fixture(scope="module")
def last(alpha):
    """Of the last block: what it holds is the picture, whatever the prompt."""
    return make_sae(alpha, 7)


def recording_of(adapter, model, prompt: str):
    return record_targets(adapter, model, lambda: draw_latents(adapter, prompt, **RUN))


def test_the_way_by_hand():
    source, wanted = torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0])
    for reached, share in (
        ([1.0, 1.0], 0.0),
        ([2.0, 5.0], 0.5),
        ([3.0, 1.0], 1.0),
        ([5.0, 1.0], 2.0),
        ([0.0, 0.0], -0.5),
    ):
        assert _share_of_way(source, wanted, torch.tensor(reached)) == share
    assert math.isnan(_share_of_way(source, source, wanted))


def tried(effects, damages, towards=True):
    return Tried(EditSetting("a", "1", (0.0, 1.0), "both"), towards, effects, damages, [], [])


@pytest.mark.parametrize(
    ("effects", "damages", "score"),
    [
        ([0.5, 0.7], [1.0, 1.0], 0.6),
        ([0.6], [0.5], 0.6),
        ([0.6], [4.0], 0.6 - 2 * PRICE),
        ([0.6, 0.6], [3.0, 5.0], 0.6 - 2 * PRICE),
        ([3.0], [1.0], 1.0),
        ([-0.5], [1.0], -0.5),
        ([math.nan, 0.6], [1.0, 1.0], 0.6),
        ([math.nan], [1.0], 0.0),
        ([0.6], [math.inf], -math.inf),
    ],
)
def test_score(effects, damages, score):
    assert tried(effects, damages).score == pytest.approx(score)


def test_score_without_a_target():
    """The largest change that keeps the picture whole, or else the least damage."""
    ways = [tried([e], [d], False) for e, d in ((0.3, 1.9), (0.2, 1.0), (0.9, 2.1), (0.8, 9.0), (0.5, math.inf))]
    assert sorted(ways, key=lambda each: -each.score) == ways


def test_settings():
    found = settings(["a"], ["1"], n_steps=20, guidance_scale=2.0)
    assert len(found) == 10
    assert found[0] == EditSetting("a", "1", (0.0, 1.0), "conditional")
    assert {each.branch for each in settings(["a"], ["1"], n_steps=20, guidance_scale=1.0)} == {"conditional"}
    few = settings(["a", "b"], ["1", "2"], n_steps=2, guidance_scale=1.0)  # steps at 0 and 0.5
    assert list(dict.fromkeys(each.steps for each in few)) == [(0.0, 1.0), (0.0, 0.3), (0.2, 0.6)]
    assert len(few) == 2 * 2 * 3
    assert [each.steps for each in settings(["a"], ["1"], n_steps=1, guidance_scale=1.0)] == [(0.0, 1.0)]


def test_of_no_edit_and_of_the_target_itself(adapter, last):
    """The unedited picture has effect 0 and damage 1; the target's own has effect 1 and no damage either."""
    towards = recording_of(adapter, last, TARGET)

    def make(model, trial):
        return {"none": Strength(Erase(top_k=3), 0.0), "all": SteerTowards(towards.timesteps, towards.raw)}

    found = search_edits(adapter, {"a": last}, [EditTrial(SOURCE, 0, TARGET)], make, steps=WHOLE, **RUN)
    reached, none = found.tried
    assert (reached.setting.edit, none.setting.edit) == ("all", "none")
    assert reached.effect == pytest.approx(1.0, abs=1e-4)
    assert reached.damage <= 1 + 1e-4
    assert none.effect == 0.0
    assert none.damage == pytest.approx(min(1.0, none.damage))
    assert none.pictures == found.before
    assert found.wanted[0] == reached.pictures[0] != found.before[0]
    assert found.best is reached


def test_without_a_target_the_change_tells(adapter, sae):
    def make(model, trial):
        return {"none": Strength(Erase(top_k=3), 0.0), "silent": Scale([SILENT], 9.0), "erased": Erase(top_k=3)}

    found = search_edits(adapter, {"a": sae}, [EditTrial(SOURCE, 1)], make, steps=WHOLE, **RUN)
    by_name = {each.setting.edit: each for each in found.tried}
    for name in ("none", "silent"):
        assert (by_name[name].effect, by_name[name].damage) == (0.0, 1.0)
    assert by_name["silent"].met[0].inactive == [SILENT]
    plain = draw_latents(adapter, SOURCE, seed=1, **RUN)
    with edit(adapter.pipe, sae, Erase(top_k=3)):
        moved = draw_latents(adapter, SOURCE, seed=1, **RUN)
    assert by_name["erased"].effect == pytest.approx(float((moved - plain).norm() / plain.norm()))
    assert by_name["erased"].damage != 1.0
    assert found.wanted == []


def test_every_trial_and_setting_is_drawn_as_asked(adapter, sae):
    trials, runs = [EditTrial(SOURCE, 3, TARGET), EditTrial(SOURCE, 4, TARGET)], []
    targets = {}

    def make(model, trial):
        targets[trial] = Target(torch.tensor([500.0]), torch.rand(1, N))
        return {"1": Replace(targets[trial])}

    options = {"n_steps": 2, "guidance_scale": 2.0}
    found = search_edits(adapter, {"a": sae}, trials, make, **options, on_run=lambda: runs.append(1))
    assert len(found.tried) == len(settings(["a"], ["1"], **options)) == 6
    assert len(runs) == n_runs(6, trials) == 2 * (6 + 2)
    assert list(targets) == trials
    plain = [draw_latents(adapter, SOURCE, seed=seed, **options) for seed in (3, 4)]
    assert found.before == [to_image(adapter.decode_latents(each)[0]) for each in plain]
    assert [each.score for each in found.tried] == sorted((each.score for each in found.tried), reverse=True)
    assert all(
        len(each.pictures) == len(each.effects) == len(each.damages) == len(each.met) == 2 for each in found.tried
    )


def test_a_mask_reaches_the_edit(adapter, sae):
    half = torch.arange(64) < 32
    found = search_edits(
        adapter, {"a": sae}, [EditTrial(SOURCE)], lambda *_: {"1": Erase(top_k=3)}, steps=WHOLE, tokens=half, **RUN
    )
    assert [each.met[0].tokens for each in found.tried] == [2 * 32]


def test_a_picture_that_overflows_is_infinitely_damaged(adapter, sae):
    """And does not stop the search."""
    found = search_edits(
        adapter,
        {"a": sae},
        [EditTrial(SOURCE)],
        lambda *_: {"1": Scale(range(N), 3e38), "2": Erase(top_k=1)},
        steps=WHOLE,
        **RUN,
    )
    assert [each.setting.edit for each in found.tried] == ["2", "1"]
    assert found.tried[-1].damage == math.inf
    assert found.tried[-1].pictures[0].size == (64, 64)


@pytest.mark.parametrize(
    ("models", "trials", "message"),
    [
        ("ab", [EditTrial(SOURCE)], "several models can be compared only by what they reach; give the trials a target"),
        ("a", [EditTrial(SOURCE), EditTrial(SOURCE, 1, TARGET)], "some trials have a target prompt and some have none"),
        ("a", [], "there is nothing to search"),
        ("", [EditTrial(SOURCE)], "there is nothing to search"),
    ],
)
def test_what_does_not_go_together(adapter, sae, models, trials, message):
    with pytest.raises(TideError, match=message):
        search_edits(adapter, dict.fromkeys(models, sae), trials, lambda *_: {"1": Erase(top_k=1)}, **RUN)
