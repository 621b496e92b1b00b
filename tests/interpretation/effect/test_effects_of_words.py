"""On the bundled pipeline with a TIDE that was trained on it, estimates find the latents that a word is made of."""

from __future__ import annotations

import pytest
import torch

import tide
from tide.interpretation.effect import effect_curves, latent_effects, steps_of_run, towards_prompt


@pytest.mark.slow
def test_attribution_finds_what_ablation_confirms(tmp_path):
    """A gradient a step predicts what removing each latent does; by what they do, a few latents do most of it."""
    adapter = tide.load_adapter("scenes", device="cpu")
    images = tide.open_source("scenes", adapter, images=48)
    config = tide.TrainConfig(steps=150, n_latents=768, k=32, batch_tokens=512, activation="topk")
    sae = tide.train(tide.live(adapter, images, config, block=6), tmp_path).model.eval()
    run = {"n_steps": 8, "guidance_scale": 2.0}
    for source, target in (("a red house, near", "a blue house, near"), ("a tree, far", "a house, far")):
        steps, metric = steps_of_run(adapter, source, **run), towards_prompt(adapter, [target])
        effects = latent_effects(adapter, sae, steps, metric, ablate=24)
        figures = {by: effects.correlation(by) for by in ("attribution", "integrated", "activation")}
        curves = effect_curves(adapter, sae, steps, metric, effects, [8, 16])
        print(source, target, figures, curves)
        assert figures["attribution"] > 0.9
        assert figures["attribution"] > figures["activation"] + 0.4
        for few in (0, 1):
            assert curves["attribution"][few] > 1.5 * max(curves["activation"][few], curves["random"][few])
        assert torch.isfinite(effects.integrated).all()
