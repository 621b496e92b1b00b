"""The same flow from Python."""

from __future__ import annotations

import numpy as np
import pytest

import tide


@pytest.mark.parametrize(
    ("pipeline", "pictures", "prompt", "other", "word"),
    [("pixart", "photos", "a blue seven", "a red seven", "blue"), ("dit", "classes", "seven", "one", "seven")],
)
def test_the_whole_flow(request, tmp_path, pipeline, pictures, prompt, other, word):
    adapter = tide.load_adapter(str(request.getfixturevalue(pipeline)))
    images = tide.open_source(request.getfixturevalue(pictures), adapter, images=80, batch_size=16)
    passes = (blocks[1] for blocks in tide.collect(adapter, images, [1], token_fraction=1 / 2, batch_size=16))
    config = tide.TrainConfig(steps=120, n_latents=192, k=8, batch_tokens=256)
    sae = tide.train(tide.from_pool(passes, adapter, config, block=1, source=images), tmp_path / "sae").model

    figures = tide.evaluate(adapter, sae, images, loss_timesteps=2, loss_images=8)
    assert figures["models"]["tide"]["explained_variance"] > 0.6
    assert figures["images"]["of"] == "held-out"  # others than the 80 that trained it
    assert "TIDE" in tide.evaluation_text(figures)

    found = tide.caption_concepts(adapter, sae, images, [word], images_per_concept=8, top_images=2)
    row = found.concepts[word]
    assert found.kind in ("held-out", "training")
    assert 0 < row["images"] <= 8
    assert row["auroc"] is None or row["interval"][0] <= row["auroc"] <= row["interval"][1]
    assert (row["auroc"] is None) == row["remark"].startswith("too few images")
    assert np.asarray(found.picture(word)).std() > 10

    atlas = tide.make_atlas(adapter, sae, images, tmp_path / "atlas", timesteps=adapter.sampling_timesteps(2))
    assert atlas.n_latents == 192
    assert 0 < int(atlas.dead.sum()) < 192

    followed = tide.follow(adapter, sae, prompt, other, n_steps=4, guidance_scale=2.0)
    assert len(followed.columns["cosine with the next step"]) == 4

    run = {"n_steps": 6, "guidance_scale": 2.0, "seed": 0}
    target = tide.prompt_target(adapter, sae, other, **run)
    before, after = tide.draw_edits(adapter, sae, prompt, {"other": tide.Replace(target)}, **run)
    assert np.abs(np.asarray(before, float) - np.asarray(after["other"], float)).mean() > 1
