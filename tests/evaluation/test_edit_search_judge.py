"""The search against the judge, which reads off a picture what it shows and whether it is one at all.

The search knows nothing of the judge: on any other pipeline there is none.
"""

from __future__ import annotations

import pytest
import torch

import tide
from tide.editing import Replace, changed_prompt, prompt_target
from tide.evaluation import EditTrial, auroc, search_edits
from tide.evaluation.edit_search import BREAKS, LEAST_EFFECT
from tide.images.tensors import to_tensor
from tide.scenes.judge import load_judge

RUN = {"n_steps": 12, "guidance_scale": 2.0}
PROMPT = "a plain new red house, facing left, near, on grass, with a shadow"


@pytest.mark.slow
def test_damage_is_breakage_and_effect_is_the_word(tmp_path):
    """Damage tells broken pictures from whole ones, effect those that show the other colour from those that do not, and
    the setting that the search prefers shows it in whole pictures, where the default at full strength does not."""
    adapter, judge = tide.load_adapter("scenes"), load_judge()
    scenes = tide.open_source("scenes", adapter, images=256)
    activations = (blocks[6] for blocks in tide.collect(adapter, scenes, [6], token_fraction=1 / 4))
    model = tide.train(tide.from_pool(activations, adapter, tide.TrainConfig(steps=500), block=6), tmp_path).model

    def make(model, trial):
        target = prompt_target(adapter, model, trial.target, seed=trial.seed, **RUN)
        return {f"{factor:g}": Replace(target, factor) for factor in (0.5, 1.0, 2.0)}

    trials = [EditTrial(PROMPT, seed, changed_prompt(PROMPT, "red", "blue")) for seed in (0, 1)]
    found = search_edits(adapter, {"6": model}, trials, make, **RUN)

    def read(pictures):
        return judge.read(torch.stack([to_tensor(picture, 64) for picture in pictures]))

    before = read(found.before)
    effects, damages, hits, broken = [], [], [], []
    for tried in found.tried:
        for i, verdict in enumerate(read(tried.pictures)):
            others = [name for name in verdict.attributes if name != "colour"]
            kept = sum(verdict.attributes[name] == before[i].attributes[name] for name in others) / len(others)
            hits.append(verdict.attributes["colour"] == "blue")
            broken.append(not verdict.valid or kept < 0.6)
            effects.append(tried.effects[i])
            damages.append(tried.damages[i])
    assert 0 < sum(hits) < len(hits)
    assert 0 < sum(broken) < len(broken)
    of_effect, of_damage = (
        float(auroc(torch.tensor(scores)[:, None], torch.tensor(truth)[:, None]))
        for scores, truth in ((effects, hits), (damages, broken))
    )
    print(f"AUROC of the effect for the colour {of_effect:.3f}, of the damage for broken pictures {of_damage:.3f}")
    assert of_effect > 0.9
    assert of_damage > 0.9
    best = found.best
    assert best.effect >= LEAST_EFFECT
    assert best.damage < 2 * BREAKS
    assert all(verdict.valid and verdict.attributes["colour"] == "blue" for verdict in read(best.pictures))
    usual = next(
        t for t in found.tried if t.setting == best.setting._replace(edit="2", steps=(0, 1), branch="conditional")
    )
    assert usual.damage > 2 * best.damage
    print(f"best {best.setting}, effect {best.effect:.2f}, damage {best.damage:.2f}; default {usual.damage:.1f}")
