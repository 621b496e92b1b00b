"""Effects inside the pipelines of every family: what is asked at each step, what is removed, what is left behind."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tests.helpers.edit_samples import BLOCK, SILENT, N, make_sae
from tests.helpers.families import CORE, FAMILIES, adapter, hooks_of, pipeline
from tide.activations import Prepared
from tide.adapters import of_prompt, tap
from tide.adapters.sizes import caption_length
from tide.editing import Erase, draw_latents, edit
from tide.editing.record import run_noised
from tide.errors import TideError
from tide.images.tensors import to_tensor
from tide.interpretation.effect import (
    ablated_effects,
    effect_curves,
    latent_effects,
    steps_of_images,
    steps_of_run,
    towards_prompt,
)
from tide.sae import TIDE, TIDEConfig
from tide.training import TrainConfig, build_model

RUN = {"n_steps": 3, "guidance_scale": 3.0, "seed": 4}


@pytest.fixture(scope="module")
def sae(alpha) -> TIDE:
    return make_sae(alpha, BLOCK)


@pytest.mark.parametrize("name", CORE)
def test_every_family(name):
    """What is asked is what the run asked: the block holds the same tokens. Attribution is of the size of the truth."""
    own, family, seen = adapter(name), FAMILIES[name], []
    run = RUN if name == "dit" else {**RUN, "size": family.size}
    with tap(own, {1: of_prompt(lambda x, call: seen.append((x.clone(), call)))}):
        draw_latents(own, family.prompts[0], **run)
    steps = steps_of_run(own, family.prompts[0], **run)
    assert steps.timesteps.tolist() == pytest.approx([float(call.timestep[0]) for _, call in seen], rel=1e-4)
    again = []
    for t, latents in zip(steps.timesteps.tolist(), steps.latents, strict=True):
        with torch.no_grad(), tap(own, {1: lambda x, call: again.append(x.clone())}):
            own.denoise(latents, t, steps.text)
    for (x, _), found in zip(seen, again, strict=True):
        torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-4)

    sae = build_model(own, 1, TrainConfig(n_latents=96, k=12)).eval()
    sae.calibrate(seen[1][0], seen[1][1])
    direction = torch.randn(steps.latents[0].shape, generator=torch.Generator().manual_seed(1))
    metric = lambda asked: lambda prediction: (prediction * direction).sum((-3, -2, -1))  # noqa: E731
    effects = latent_effects(own, sae, steps, metric, points=1, ablate=8)
    assert effects.ablation.shape == (3, 8)
    assert effects.correlation() > 0.6
    assert hooks_of(pipeline(name)) == 0


def test_removing_is_erasing(adapter, sae):
    """As the edit does inside the pipeline."""
    steps = steps_of_run(adapter, "a red cube", **RUN)
    metric = towards_prompt(adapter, ["a tree"])
    features = latent_effects(adapter, sae, steps, metric, points=0).largest(5)
    found = ablated_effects(adapter, sae, steps, metric, [features])[:, 0]
    for i, t in enumerate(steps.timesteps.tolist()):
        latents = steps.latents[i]
        with torch.no_grad():
            own, wanted = (adapter.denoise(latents, t, text) for text in (steps.text, text_of(adapter, "a tree")))
            with edit(adapter.pipe, sae, Erase(features)):
                edited = adapter.denoise(latents, t, steps.text)
        way = wanted - own
        share = ((edited - own) * way).sum() / way.square().sum()
        assert float(found[i]) == pytest.approx(float(share), rel=1e-3, abs=1e-5)
        assert abs(float(share)) > 1e-4


def text_of(adapter, prompt: str) -> dict[str, torch.Tensor]:
    return adapter.encode_prompts([prompt], caption_length(adapter))


def test_noised_images(adapter, sae):
    """What a block holds of them is what :func:`run_noised` shows it."""
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    latents, timesteps = adapter.encode_images(to_tensor(image, (64, 64))[None]), adapter.sampling_timesteps(2)
    steps = steps_of_images(adapter, Prepared(latents, text_of(adapter, "a tree")), timesteps, seed=3)
    expected, found = [], []
    with tap(adapter, {BLOCK: lambda x, call: expected.append(x.clone())}):
        run_noised(adapter, latents, ["a tree"], timesteps, seed=3, max_sequence_length=caption_length(adapter))
    with torch.no_grad(), tap(adapter, {BLOCK: lambda x, call: found.append(x.clone())}):
        for t, noisy in zip(steps.timesteps.tolist(), steps.latents, strict=True):
            adapter.denoise(noisy, t, steps.text)
    assert len(found) == 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    effects = latent_effects(adapter, sae, steps, towards_prompt(adapter, ["a house"]), points=0)
    assert effects.attribution.any()
    assert not effects.attribution[:, SILENT].any()


def test_curves(adapter, sae):
    """Each is the measured effect of the latents that its ranking puts first."""
    steps = steps_of_run(adapter, "a red cube", **{**RUN, "n_steps": 2})
    metric = towards_prompt(adapter, ["a tree"])
    effects = latent_effects(adapter, sae, steps, metric, points=1)
    curves = effect_curves(adapter, sae, steps, metric, effects, [1, 4], seed=1)
    assert list(curves) == ["attribution", "integrated", "activation", "random"]
    for by in ("attribution", "integrated", "activation"):
        ranked = effects.strongest(4, by=by)
        truth = ablated_effects(adapter, sae, steps, metric, [ranked[:1], ranked]).mean(0)
        torch.testing.assert_close(torch.tensor(curves[by]), truth, rtol=1e-3, atol=1e-5)
    again = effect_curves(adapter, sae, steps, metric, effects, [1, 4], seed=1)
    other = effect_curves(adapter, sae, steps, metric, effects, [1, 4], seed=2)
    assert again["random"] == curves["random"] != other["random"]
    assert curves["attribution"][1] > max(curves["activation"][1], curves["random"][1])


# -- what is left behind --------------------------------------------------------------------------------------------


def test_weights_keep_their_gradients_and_hooks_go(adapter, sae):
    """Also where the metric fails."""
    transformer = adapter.transformer
    first, second, *_ = transformer.parameters()
    first.requires_grad_(False)
    before = [each.requires_grad for each in transformer.parameters()]
    steps = steps_of_run(adapter, "a red cube", **RUN)

    def fails(asked):
        def measure(prediction):
            if prediction.requires_grad:
                raise RuntimeError("inside")
            return prediction.mean((-3, -2, -1))

        return measure

    try:
        latent_effects(adapter, sae, steps, towards_prompt(adapter, ["a tree"]), points=1)
        with pytest.raises(RuntimeError, match="inside"):
            latent_effects(adapter, sae, steps, fails)
        assert [each.requires_grad for each in transformer.parameters()] == before
        assert second.requires_grad
        assert all(each.grad is None for each in (*transformer.parameters(), *sae.parameters()))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in transformer.modules())
        assert torch.is_grad_enabled()
    finally:
        first.requires_grad_(True)


# -- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TIDEConfig(192, N, 4, block=6, tensor="feed_forward_input", target="feed_forward"), "transcoder of feed_forw"),
        (TIDEConfig(96, N, 4, block=6), "the SAE has width 96 and the transformer 192; use its own SAE"),
        (TIDEConfig(192, N, 4, block=6, family="flux"), "the SAE was trained on flux, this is pixart; use its own SAE"),
        (TIDEConfig(192, N, 4), "this SAE does not know its block"),
    ],
)
def test_models_that_do_not_fit(adapter, config, message):
    steps = steps_of_run(adapter, "a red cube", n_steps=2)
    with pytest.raises(TideError, match=message):
        latent_effects(adapter, TIDE(config), steps, towards_prompt(adapter, ["a tree"]))


def test_runs_that_do_not_fit(adapter):
    with pytest.raises(TideError, match="does not divide into tokens"):
        steps_of_run(adapter, "a", size=(65, 64))
    with pytest.raises(TideError, match="PixArt alpha draws in one step with an LCM scheduler only"):
        steps_of_run(adapter, "a", n_steps=1)


def test_a_transformer_that_runs_without_gradients(adapter, sae, monkeypatch):
    steps = steps_of_run(adapter, "a red cube", n_steps=2)
    metric = towards_prompt(adapter, ["a tree"])
    monkeypatch.setattr(adapter, "denoise", torch.no_grad()(adapter.denoise))
    with pytest.raises(TideError, match="no gradient reaches the block: the pipeline runs its transformer without"):
        latent_effects(adapter, sae, steps, metric)
