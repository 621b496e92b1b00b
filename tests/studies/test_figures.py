"""Figs 1, 5 and 6: what is read off the numbers, on numbers made for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tide.errors import TideError
from tide.scenes.scene import ATTRIBUTES
from tide.studies import fig1, fig5, fig6
from tide.studies.bench import Bench
from tide.studies.levels import equal_preservation
from tide.studies.models import Models
from tide.training import TrainConfig

# -- Fig. 1 -----------------------------------------------------------------------------------------------


def concept(level: str, latent: float, neuron: float, **more: float) -> dict:
    return {
        "level": level,
        "auroc": latent,
        "neuron_auroc": neuron,
        "recipe_auroc": 0.8,
        "recipe_literal_auroc": 0.4,
        "recipe_precision": 0.5,
        **more,
    }


def test_the_sentence_of_fig1_is_of_its_numbers():
    """Concepts without an object of their own have no figure among the objects' tokens, and do not count there."""
    scores = {"latents": {"mean": 0.7}, "neurons": {"mean": 0.6}}
    within = {"within_auroc": 0.75, "within_neuron_auroc": 0.65}
    results = [
        {
            "concepts": {"red": concept("colour", 0.9, 0.8, **within), "shadow": concept("3d", latent, 0.95)},
            "levels": {
                "colour": {"auroc": 0.9, "neuron_auroc": 0.8},
                "3d": {"auroc": latent, "neuron_auroc": 0.95},
            },
            "monosemanticity": scores,
        }
        for latent in (0.9, 0.7)
    ]
    assert fig1.verdict_of(results) == (
        "Over 2 concepts the best latent's AUROC on held-out scenes is 0.850 on average and the best raw neuron's "
        "0.875 (latents ahead in 1 of 2 seeds, on the levels colour); among the objects' own tokens 0.750 against "
        "0.650; the paper's pooled latents reach 0.400, less those of all images 0.800, and 50% of their most "
        "similar tokens lie in the mask; monosemanticity is 0.700 for latents and 0.600 for neurons."
    )


def test_the_most_similar_tokens_are_framed():
    score = torch.arange(64.0).view(8, 8)
    framed = fig1.marked(np.zeros((64, 64, 3), np.uint8), score)
    white = (framed == 255).all(-1)
    assert white.sum() == fig1.MARKED * (4 * 8 - 4)
    assert not white[:56].any()  # the highest eight are the last row
    assert white[56].all()
    few = fig1.marked(np.zeros((64, 64, 3), np.uint8), (score - 60).clamp(min=0))
    assert (few == 255).all(-1).sum() == 3 * (4 * 8 - 4)  # what is zero is no more similar than the rest


# -- Fig. 5 -----------------------------------------------------------------------------------------------


def fig5_result(break_at: int, images: int = 4, steps: int = 20) -> dict:
    """Cosines that dip at the pair of steps before ``break_at``; contours that follow."""
    curve = np.full(steps - 1, 0.97)
    curve[break_at - 1] = 0.9
    return {
        "timesteps": list(range(steps)),
        "latents": {"cosine": np.repeat(curve[:, None], images, 1).tolist()},
        "target": {"cosine": [[0.99] * images] + [[0.5] * images] * (steps - 1)},
        "contour step": [break_at, break_at + 1, break_at, break_at + 9],
        "settled": {name: [i, i, i + 1, i] for i, name in enumerate(ATTRIBUTES)},
    }


def test_the_sentence_of_fig5_is_of_its_numbers():
    results = [fig5_result(8), fig5_result(8)]
    changes = [fig5.abrupt_of(r["latents"]["cosine"]) for r in results]
    assert [change.step for change in changes] == [8, 8]
    assert all(change.strength == pytest.approx(1.0) for change in changes)
    assert all(change.each == [8] * 4 for change in changes)
    assert fig5.verdict_of(changes, results) == (
        "The cosine of consecutive latents dips before step 8 of 20 (by 100% of its range, in 2 of 2 seeds), the "
        "predicted image's contours have half risen at step 8.5, within 2 steps of its own dip in 75% of the images; "
        "the judge's reading settles from class (median step 0) to orientation (7), and source and target part from a "
        "cosine of 0.990 at the first step to 0.500 at the last."
    )
    none = fig5.abrupt_of([[0.9, 0.8], [0.95, 0.85], [0.97, 0.9]])
    assert (none.step, none.each) == (None, [None, None])
    assert fig5.verdict_of([fig5.Abrupt(None, 0.0, [None] * 4)] * 2, results).startswith(
        "The cosine of consecutive latents has no dip, the predicted image's contours"
    )


# -- Fig. 6 -----------------------------------------------------------------------------------------------


def rows(*outcomes: tuple[int, int, int]) -> list[dict]:
    return [
        {"task": i, "changed": bool(c), "kept": bool(k), "valid": bool(v), "outside": 2.0}
        for i, (c, k, v) in enumerate(outcomes)
    ]


def test_settings_are_compared_by_what_they_did_on_development_prompts():
    setting = (2.0, (0.0, 0.8))
    found = {
        fig6.cell_name("contrast", *setting, split, 1): {"outcomes": rows(*outcomes)}
        for split, outcomes in {"dev": [(1, 1, 1), (1, 0, 1), (0, 0, 1)], "test": [(0, 0, 1)] * 3}.items()
    }
    assert fig6._counts(found, "contrast", 1, setting) == {"both": 1, "success": 2, "preserved": 1}


def test_points_pool_the_seeds():
    """Tasks whose outside does not exist do not count there."""
    tasks = [fig6.special_tasks(fig6.UNGILDING, "test", 3, seed) for seed in (0, 1)]
    results = [{"outcomes": rows((1, 1, 1), (0, 1, 1))}, {"outcomes": rows((1, 0, 1), (1, 1, 1), (0, 0, 0))}]
    results[1]["outcomes"][2]["outside"] = None
    found, outcomes = fig6.point(results, tasks, 3.0)
    assert (found["success"], found["preserved"], found["both"], found["valid"]) == (0.6, 0.6, 0.4, 0.8)
    assert (found["images"], found["factor"], found["outside"]) == (5, 3.0, 2.0)
    assert [o.task for o in outcomes] == [*tasks[0][:2], *tasks[1]]


def test_special_tasks_are_what_they_are_called():
    for seed, split in ((0, "dev"), (3, "test")):
        plain = fig6.special_tasks(fig6.UNGILDING, split, 5, seed)
        assert {(t.source, t.target, t.scene.split) for t in plain} == {("ornate", "plain", split)}
        styles = fig6.special_tasks(fig6.STYLES, split, 12, seed)
        assert all(t.source != t.target for t in styles)
        assert {t.target for t in styles} == set(ATTRIBUTES["style"])
        assert len({t.seed for t in [*plain, *styles]}) == 12  # both kinds start from the same noise


def test_development_tasks_share_no_noise_with_test_tasks():
    study = fig6.Study(None, None, fig6.DEFAULT, judge=None)
    for kind in (fig6.EVERYTHING, fig6.UNGILDING, fig6.STYLES):
        noise = {
            split: {t.seed for seed in (0, 1, 2) for t in study.tasks(kind, split, seed)} for split in ("dev", "test")
        }
        assert noise["dev"]
        assert not noise["dev"] & noise["test"]


def test_every_strategy_is_a_method_with_strengths_that_grow():
    from tide.studies.methods import Methods

    for name, strategy in fig6.STRATEGIES.items():
        assert hasattr(Methods, name.replace(" ", "_"))
        assert strategy.middle in strategy.factors
        assert list(strategy.factors) == sorted(strategy.factors)
    for ours, others in fig6.RIVALS.items():
        assert not fig6.STRATEGIES[ours].raw
        assert all(fig6.STRATEGIES[o].raw and fig6.STRATEGIES[o].knows == fig6.STRATEGIES[ours].knows for o in others)


def test_the_sentence_of_fig6_is_of_its_numbers():
    def curve(*points: tuple[float, float]) -> list[dict]:
        return [
            {"factor": i, "success": s, "preserved": p, "interval": {"success": (0.0, 1.0)}}
            for i, (s, p) in enumerate(points)
        ]

    curves = {
        "contrast": curve((0.4, 0.96), (0.8, 0.85), (0.9, 0.6)),
        "steer contrast": curve((0.4, 0.97), (0.7, 0.82), (0.95, 0.55)),
        "steer bounded": curve((0.3, 0.95), (0.5, 0.9)),
    }
    row = {"images": 100, "outside": 1.5}
    chosen = {
        "contrast": {**row, "success": 0.8, "preserved": 0.85, "both": 0.75},
        "steer contrast": {**row, "success": 0.7, "preserved": 0.82, "both": 0.6},
        "steer bounded": {**row, "success": 0.5, "preserved": 0.9, "both": 0.5},
        "prompt": {**row, "success": 1.0, "preserved": 0.95, "both": 0.95, "outside": 4.0},
    }
    # 95 %: 40 and 40; 90 %: 40 and 50; 80 %: 80 and 70; 70 %: the same; 50 %: 90 and 95.
    assert fig6.verdict_of(equal_preservation(curves), chosen) == (
        "From one reference image the contrast of latents changes 80% of 100 images and keeps all else in 85% (both "
        "75%), the best of the raw activations 70% and 82% (both 60%); it is above them at 2 of 5 levels of "
        "preservation and not below at 3; prompt replacement reaches 95%, 20% more; pixels outside the edit's region "
        "move by 1.5 of 255 against 4.0 by the prompt."
    )


# -- the models they share --------------------------------------------------------------------------------


def test_models_are_trained_once_and_shared(bench, tmp_path):
    config = TrainConfig(n_latents=64, k=8, steps=2, batch_tokens=64, checkpoint_every=2)
    models = Models(bench, config, tmp_path)
    first = models.of(3)
    weights = tmp_path / "seed-3" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = Models(bench, config, tmp_path)
    assert again.seconds(3) == 0.0
    assert torch.equal(again.of(3).W_dec, first.W_dec)
    assert weights.stat().st_mtime_ns == written
    assert not torch.equal(again.of(4).W_dec, first.W_dec)
    other = Models(bench, TrainConfig(n_latents=32, k=8, steps=2, batch_tokens=64), tmp_path)
    with pytest.raises(TideError, match=r"was started with other options \(n_latents 64, now 32\)"):
        other.of(3)


def test_models_of_other_data_are_refused(bench, tmp_path):
    config = TrainConfig(n_latents=64, k=8, steps=2, batch_tokens=64, checkpoint_every=2)
    Models(bench, config, tmp_path).of(3)
    moved = Bench(bench.sizes, seed=1, adapter=bench.adapter)
    with pytest.raises(TideError, match=r"seed-3 was trained on other data \(seed 0, now 1\); use the same options"):
        Models(moved, config, tmp_path).of(3)
