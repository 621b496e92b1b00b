"""Each study at a toy size, whole: files, figures, resuming, the sentence at the end."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

from tide.errors import TideError
from tide.scenes import annotate
from tide.studies import (
    ablation,
    bars,
    centring,
    class_knowledge,
    edit_study,
    editor,
    equal_information,
    fig1,
    fig4,
    fig5,
    fig6,
    fig6_pictures,
    models,
    placed,
    references,
    sparsity,
    sparsity_edits,
    table1,
)
from tide.studies.bench import Bench, DataSizes
from tide.studies.features import FeatureSizes
from tide.studies.options import Options
from tide.studies.scaling import ScalingLaw
from tide.training import TrainConfig, build_model

TINY = DataSizes(
    train_images=12, held_out_images=4, wide_images=24, loss_prompts=2, loss_timesteps=2, train_rows=512,
    batch_tokens=64,
)  # fmt: skip

FILES = {
    "fig1": {"fig1.png", "fig1-levels.png", "fig1.csv", "fig1.json", "atlas.html", "models"},
    "fig5": {"fig5.png", "fig5-settling.png", "fig5.csv", "fig5.json", "models"},
    "fig6": {"fig6.png", "fig6-gallery.png", "fig6.csv", "fig6.json", "models"},
    "where": {"where.png", "where.csv", "where.json", "one-image", "target-prompt", "models"},
    "bank": {"bank.png", "bank.csv", "bank.json", "of-bank", "banks", "models"},
    "bars": {"bars.json", "report.html"},
    "table1": {"table1.png", "table1.csv", "table1.json"},
    "fig4": {"fig4ab.png", "fig4cd.png", "fig4-timesteps.png", "fig4ab.csv", "fig4cd.csv", "fig4cd-matched.csv",
             "fig4.json"},
    "sparsity": {"sparsity.png", "sparsity-timesteps.png", "sparsity-places.png", "sparsity.csv",
                 "sparsity-margins.csv", "sparsity.json", "data", "dictionaries"},
    "centring": {"centring.png", "centring.csv", "centring.json"},
    "ablation": {"ablation.png", "ablation-curves.png", "ablation.csv", "ablation-curves.csv", "ablation.json"},
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch, bench):
    """Every study at a toy size, on the activations that the session has collected."""
    for module in (class_knowledge, editor, fig5, references):
        monkeypatch.setattr(module, "N_SAMPLING_STEPS", 6)
    for function in (annotate.generate_latents, annotate.generate_images):
        monkeypatch.setitem(function.__kwdefaults__, "n_steps", 6)
    monkeypatch.setattr(table1, "FAST", TINY)
    monkeypatch.setattr(table1, "FAST_STEPS", 2)
    small = {"data": TINY, "steps": 2, "seeds": 1}
    grid = {"n": (32, 48, 64), "k": (4, 16), "n_compared": 32, "k_compared": (4, 16), "matched": (8,)}
    monkeypatch.setattr(fig4, "FAST", replace(fig4.FAST, **small, **grid))
    sizes = {"n_latents": 64, "k": 8, "curve_points": 2, "curve_rows": 64}
    monkeypatch.setattr(ablation, "FAST", replace(ablation.FAST, **small, **sizes))
    few = {"n_latents": 64, "k": 8, "concept_images": 8, "concept_timesteps": 1}
    monkeypatch.setattr(centring, "FAST", replace(centring.FAST, **small, **few))

    monkeypatch.setattr(fig1, "FAST", fig1.Sizes(images=12, timesteps=2, atlas_images=6, seeds=1))
    monkeypatch.setattr(fig5, "FAST", fig5.Sizes(prompts=2, level_images=8, level_timesteps=2, seeds=1))
    monkeypatch.setattr(fig6, "FAST", fig6.Sizes(2, 2, 1, ((0.0, 1.0),), 2, 12, 8, 1))
    few = ("contrast", "steer contrast", "steer bounded", "erase top")
    short = {
        name: replace(fig6.METHODS[name], strengths=(fig6.METHODS[name].middle,)) for name in (*few, *placed.PLACED)
    }
    monkeypatch.setattr(fig6, "PAPER", few)
    for module in (fig6, fig6_pictures, edit_study, equal_information):
        monkeypatch.setattr(module, "METHODS", short)
    monkeypatch.setattr(class_knowledge, "TIMESTEPS", 2)
    monkeypatch.setattr(class_knowledge, "REFERENCES", 2)
    monkeypatch.setattr(equal_information, "FAST", equal_information.Sizes(2, 2, 1, ((0.0, 1.0),), 1, 12, 24, 1))
    monkeypatch.setattr(fig6_pictures, "GALLERY", fig6_pictures.GALLERY[:2])
    monkeypatch.setattr(bars, "EDITS", few[:3])
    monkeypatch.setattr(bars, "FAST", bars.Sizes(16, 16, 2, 2, 12, 1, 2, replace(fig6.FAST, test=2)))
    monkeypatch.setattr(models, "FAST_DATA", TINY)
    monkeypatch.setattr(models, "FAST_STEPS", 2)

    grid = {"features": FeatureSizes(8, 1), "edits": sparsity_edits.EditSizes(1, 1, 8), "n_latents": 32, "l0": (2, 8)}
    monkeypatch.setattr(sparsity, "FAST", replace(sparsity.FAST, **small, **grid))
    monkeypatch.setattr(sparsity_edits, "METHODS", short)
    monkeypatch.setattr(sparsity, "EDITED", ("TIDE + TopK",))
    few = ("TopK", "TIDE + TopK", "TIDE + JumpReLU by timestep", "ReLU", "TopK, random dictionary",
           "TopK, random transformer")  # fmt: skip
    monkeypatch.setattr(sparsity, "MODELS", {name: sparsity.MODELS[name] for name in few})

    def shared(sizes: DataSizes, seed: int, say, progress: bool) -> Bench:
        assert sizes == TINY or sizes.train_images == 16
        assert seed == 0
        bench.say = say
        return bench

    for module in (table1, fig4, ablation, centring, models, bars):
        monkeypatch.setattr(module, "Bench", shared)


@pytest.fixture(scope="module")
def checkpoint(bench, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    build_model(bench.adapter, bench.block, TrainConfig(n_latents=64, k=8)).save_pretrained(folder)
    return folder


def study(name: str, out: Path, **options) -> tuple[str, list[str]]:
    said: list[str] = []
    module = import_module(f"tide.studies.{name}")
    return module.reproduce(Options(out, fast=True, seeds=1, say=said.append, **options)), said


@pytest.mark.parametrize("name", FILES)
def test_a_study_and_its_resumption(tiny, tmp_path, name, checkpoint):
    sae = checkpoint if name == "bars" else None
    verdict, said = study(name, tmp_path, sae=sae)
    own = set() if name in {"where", "bank"} else {"cells"}  # their groups have folders of their own
    assert {path.name for path in tmp_path.iterdir()} == FILES[name] | own
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["verdict"] == verdict
    assert found["options"] == {"fast": True, "seed": 0, "seeds": 1, "steps": None, "backend": "auto", "set": {}}
    assert "torch" in found["versions"]
    assert found["machine"]
    for path in tmp_path.glob("*.csv"):
        rows = list(csv.DictReader(path.open()))
        assert rows
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 200
    cells = sorted(tmp_path.glob("**/cells/*"))
    times = [path.stat().st_mtime_ns for path in cells]
    cells[0].unlink()
    again, said = study(name, tmp_path, sae=sae)
    computed = [re.match(r"(\d+) of \d+ cells to compute", line) for line in said]
    assert [int(found[1]) for found in computed if found] == [1]
    assert [path.stat().st_mtime_ns for path in cells[1:]] == times[1:]
    # The same cell again gives the same numbers, and so the same sentence.
    assert again == verdict
    another = "training.steps 2, now 3"
    if name == "bars":
        another = "study.prompts 2, now 3"
    with pytest.raises(TideError, match=rf"was made with other options \({another}\); use the same options"):
        study(name, tmp_path, sae=sae, steps=3, prompts=3)


def test_centring_tells_what_the_moved_channel_hides(bench):
    """The figure of the other channels, by hand."""
    pool = centring.moved(bench.held_out, torch.eye(bench.adapter.d_model)[0] * 300)
    assert pool.all.x[:, 0].mean() > 250
    assert torch.equal(pool.all.x[:, 1:], bench.held_out.all.x[:, 1:])
    model = build_model(bench.adapter, bench.block, TrainConfig(n_latents=64, k=8))
    model.calibrate(pool.all.x, pool.all.position)
    with torch.no_grad():
        error = (pool.all.x - model(pool.all.x, pool.all.position))[:, 1:]
    expected = 1 - error.square().sum() / (pool.all.x - pool.all.x.mean(0))[:, 1:].square().sum()
    assert centring.explained_without(model, pool, 0) == pytest.approx(float(expected), rel=1e-4)


def test_the_sentence_of_table1_is_of_its_numbers():
    figures = {
        name: {m: list(v) for m, v in zip(table1.METRICS, ([0.1] * 5, [0.9] * 5, val_mse, val_cosine), strict=True)}
        for name, val_mse, val_cosine in (
            ("SAE", [0.3] * 5, [0.90] * 5),
            ("SAE(sample)", [0.4] * 5, [0.91, 0.91, 0.91, 0.91, 0.89]),
            ("TIDE", [0.2, 0.2, 0.2, 0.5, 0.2], [0.92] * 5),
            ("TIDE(sample)", [0.2] * 5, [0.93] * 5),
        )
    }
    verdict = table1.verdict_of({"same pairs": figures, "equal tokens": figures})
    assert verdict.startswith(
        "TIDE's validation MSE (0.2600) is below SAE's (0.3000) on average and ahead in 4 of 5 seeds; SAE(sample)'s "
        "validation cosine (0.9060) is above SAE's (0.9000) on average and ahead in 4 of 5 seeds on the same pairs"
    )
    figures["TIDE"]["val_mse"] = [0.35] * 5
    verdict = table1.verdict_of({"same pairs": figures, "equal tokens": figures})
    assert "TIDE's validation MSE (0.3500) is not below SAE's (0.3000) on average and ahead in 0 of 5" in verdict


def test_the_sentence_of_fig4_is_of_its_numbers():
    law = ScalingLaw(0.0, 0.0, -0.5, -0.25, 0.0, 0.99)
    row = {"recovered": [0.99, 0.98, 0.97], "loss": [1.0] * 3}
    other = {"recovered": [0.98, 0.99, None], "loss": [1.0] * 3}
    none = {"recovered": [None] * 3, "loss": [None] * 3}
    table = {name: {"8": other} for name in fig4.MODELS} | {"TIDE": {"8": row}, "Gated": {"8": none}}
    sizes = replace(fig4.FAST, matched=(8,), n=(32, 64), k=(4, 16))
    assert fig4.verdict_of({"mse": law, "1-cosine": law}, table, sizes) == (
        "MSE scales as n^-0.50 at k = 16 and as k^-0.25 at n = 64 (R2 0.990); at L0 = 8 TIDE recovers 98.00% of the "
        "diffusion loss, more than TopK in 1 of 2 seeds, BatchTopK in 1 of 2, JumpReLU in 1 of 2, ReLU + L1 in 1 of "
        "2; no setting of Gated reaches it; there TIDE + JumpReLU 98.50%."
    )


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ([1.2, 1.3, 1.4], 1),  # above in every seed, by about as much
        ([0.8, 0.9, 1.0], -1),
        ([1.2, 1.3, 1.1], 0),  # below in one
        ([1.01, 1.11, 3.0], 0),  # above in every seed, but by what one seed alone makes of it
    ],
)
def test_a_difference_is_one_of_every_seed(variant, expected):
    assert ablation.differs(variant, [1.0, 1.1, 1.2]) == expected


def test_the_l0_of_a_bin_of_timesteps():
    bins = {"0-100": 20.0, "100-200": 30.0}
    assert [fig4.l0_at(bins, t) for t in (0.0, 99.5, 100.0)] == [20.0, 20.0, 30.0]
    assert math.isnan(fig4.l0_at(bins, 999.0))


def test_convergence_is_from_where_the_error_stays_low():
    curve = [(10, 0.5), (20, 0.2), (30, 0.4), (40, 0.3), (50, 0.1)]
    assert ablation.converged_at(curve, 0.3) == 40
    assert ablation.converged_at(curve, 0.5) == 10
    assert ablation.converged_at(curve, 0.05) is None


def test_every_variant_changes_what_it_names():
    options = Options(Path("x"))
    configs = {name: ablation.variant_config(name, 0, ablation.DEFAULT, options) for name in ablation.VARIANTS}
    assert len({repr(config) for config in configs.values()}) == len(configs)
    assert configs["AuxK"].loss.auxk > 0
    assert configs["AuxK"].revival.every == configs["no revival"].revival.every == 0
    assert configs["temporal off"].loss == replace(configs["default"].loss, temporal=0.0)
