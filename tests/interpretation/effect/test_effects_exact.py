"""Estimates of effects against their definitions, in float64."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.linear_transformer import N, linear_adapter, linear_tide
from tide.errors import TideError
from tide.interpretation.effect import Steps, ablated_effects, effect_maps, latent_effects, towards, towards_prompt
from tide.interpretation.effect.passes import held_at_steps

#: The tables are float32; everything before is float64.
EXACT = {"rtol": 1e-6, "atol": 1e-9}


def steps(adapter, n_images: int = 2) -> Steps:
    latents = torch.randn(3, n_images, 4, 3, 2, generator=torch.Generator().manual_seed(2))
    text = adapter.encode_prompts(["a", "a tree"][:n_images])
    return Steps(torch.tensor([900.0, 500.0, 20.0]), latents, text)


def towards_another(adapter):
    return towards_prompt(adapter, ["a blue house", "house"])


def test_a_linear_rest_makes_every_estimate_the_truth():
    adapter, sae = linear_adapter(), linear_tide()
    asked, metric = steps(adapter), towards_another(adapter)
    found = latent_effects(adapter, sae, asked, metric, points=2, ablate=range(N))
    assert found.ablated.tolist() == list(range(N))
    assert (found.ablation.abs() > 1e-3).sum() > 20
    torch.testing.assert_close(found.attribution, found.ablation, **EXACT)
    torch.testing.assert_close(found.integrated, found.ablation, **EXACT)
    assert found.correlation() == pytest.approx(1.0, abs=1e-9)
    together = ablated_effects(adapter, sae, asked, metric, [range(N)])[:, 0]
    torch.testing.assert_close(found.attribution.sum(1), together, **EXACT)


def test_a_latent_that_is_active_nowhere_has_no_effect():
    adapter, sae = linear_adapter(), linear_tide(encoder_bias=True)
    with torch.no_grad():
        sae.b_enc[3] = -100.0
    found = latent_effects(adapter, sae, steps(adapter), towards_another(adapter), ablate=[3])
    for table in (found.attribution[:, 3], found.integrated[:, 3], found.ablation[:, 0], found.activation[:, 3]):
        assert torch.equal(table, torch.zeros(3))


def test_attribution_is_the_slope_of_scaling_a_latent():
    """Finite differences: d m / d log z_f, averaged over the images, at every step."""
    adapter, sae = linear_adapter(bends_after=True), linear_tide()
    asked, metric, width = steps(adapter), towards_another(adapter), 1e-5
    found = latent_effects(adapter, sae, asked, metric, points=0)
    assert found.integrated is None
    for i, held in enumerate(held_at_steps(adapter, sae, asked, metric)):
        for feature in range(N):
            moved = width * (held.columns([feature]) * sae.W_dec[feature] * sae.activation_scale).view_as(held.x)
            with torch.no_grad():
                up, down = held.of(torch.stack([held.x + moved, held.x - moved])).mean(1)
            slope = float((up - down) / (2 * width))
            assert float(found.attribution[i, feature]) == pytest.approx(-slope, rel=1e-5, abs=1e-8)


def test_integrated_effects_add_up_to_that_of_all_latents():
    """The error of the midpoint rule falls with the square of the number of points."""
    adapter, sae = linear_adapter(bends_after=True), linear_tide()
    asked, metric = steps(adapter), towards_another(adapter)
    whole = ablated_effects(adapter, sae, asked, metric, [range(N)])[:, 0]
    errors = []
    for points in (4, 16):
        found = latent_effects(adapter, sae, asked, metric, points=points)
        errors.append((found.integrated.sum(1) - whole).abs().max().item())
    plain = (found.attribution.sum(1) - whole).abs().max().item()
    assert errors[0] < 0.05 * plain
    assert errors[1] < errors[0] / 12


def test_the_activation_is_the_mean_of_the_latents():
    adapter, sae = linear_adapter(), linear_tide()
    asked = steps(adapter)
    found = latent_effects(adapter, sae, asked, towards_another(adapter), points=0)
    for i, held in enumerate(held_at_steps(adapter, sae, asked, towards_another(adapter))):
        dense = sae.encode(held.x, asked.timesteps[i]).dense(N)
        torch.testing.assert_close(found.activation[i].double(), dense.mean(0), **EXACT)


def test_effects_are_means_over_the_images():
    adapter, sae = linear_adapter(bends_after=True), linear_tide()
    both, metric = steps(adapter), towards_another(adapter)
    found = latent_effects(adapter, sae, both, metric, ablate=[0, 1, 2])
    alone = []
    for i, prompt in enumerate(["a blue house", "house"]):
        text = {name: value[i : i + 1] for name, value in both.text.items()}
        own = Steps(both.timesteps, both.latents[:, i : i + 1], text)
        alone.append(latent_effects(adapter, sae, own, towards_prompt(adapter, [prompt]), ablate=[0, 1, 2]))
    for name in ("attribution", "integrated", "ablation", "activation"):
        mean = torch.stack([getattr(each, name) for each in alone]).mean(0)
        torch.testing.assert_close(getattr(found, name), mean, **EXACT)


def test_maps_add_up_to_the_attribution():
    """The map of a latent is 0 where it is not active."""
    adapter, sae = linear_adapter(bends_after=True), linear_tide()
    asked, metric, features = steps(adapter), towards_another(adapter), [4, 0, 4]
    found = effect_maps(adapter, sae, asked, metric, features)
    assert found.shape == (3, 3, 2, 6)
    whole = latent_effects(adapter, sae, asked, metric, points=0).attribution[:, features]
    torch.testing.assert_close(found.sum(3).mean(2), whole, **EXACT)
    for i, held in enumerate(held_at_steps(adapter, sae, asked, metric)):
        active = held.columns(features).T.unflatten(1, (2, 6)) != 0
        assert torch.equal(found[i] != 0, active)
        assert active.any()
    with pytest.raises(TideError, match=f"feature {N} does not exist"):
        effect_maps(adapter, sae, asked, metric, [N])


def test_a_metric_of_ones_own():
    """The mean of the prediction, which is linear: each latent moves it by what it writes, through the linear rest."""
    adapter, sae = linear_adapter(), linear_tide()
    found = latent_effects(
        adapter, sae, steps(adapter), lambda asked: lambda p: p.mean((-3, -2, -1)), points=0, ablate=range(N)
    )
    torch.testing.assert_close(found.attribution, found.ablation, **EXACT)


def test_removing_none_and_removing_together():
    adapter, sae = linear_adapter(bends_after=True), linear_tide()
    asked, metric = steps(adapter), towards_another(adapter)
    sets = [[], [4, 7], [7, 4, 4], [4], [7]]
    whole = ablated_effects(adapter, sae, asked, metric, sets)
    assert torch.equal(whole[:, 0], torch.zeros(3))
    assert torch.equal(whole[:, 1], whole[:, 2])
    assert (whole[:, 1] - whole[:, 3] - whole[:, 4]).abs().max() > 1e-5
    few = ablated_effects(adapter, sae, asked, metric, sets, batch_size=1)
    torch.testing.assert_close(few, whole, **EXACT)


def test_the_share_of_the_way():
    own = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    wanted = own + torch.arange(1.0, 37.0).view(4, 3, 3)
    measure = towards(own, wanted)
    ways = torch.tensor([0.0, 1.0, -0.5, 2.0]).double()
    found = measure(torch.lerp(own, wanted, ways.view(4, 1, 1, 1, 1)))
    torch.testing.assert_close(found, ways[:, None].expand(4, 2))
    across = torch.zeros_like(own)
    across[:, 0, 0, :2] = torch.tensor([2.0, -1.0]).double()  # at right angles to the way, which starts with 1 and 2
    torch.testing.assert_close(measure(own + across), torch.zeros(2).double())


# -- what does not fit ----------------------------------------------------------------------------------------------


def test_metrics_that_do_not_fit():
    adapter, sae = linear_adapter(), linear_tide()
    asked = steps(adapter)
    for metric, message in (
        (lambda asked: lambda p: p.mean(), r"predictions \[2, 4, 3, 2\] has shape \[\]; let it return one number for"),
        (lambda asked: lambda p: p.mean((-3, -2, -1)).detach(), "no gradient reaches the block: the pipeline runs"),
        (lambda asked: lambda p: p.mean((-3, -2, -1)) / 0, "metric is not finite at timestep 900; load the pipeline"),
        (towards_prompt(adapter, ["a"]), "2 images and 1 prompts to move towards; give one an image"),
        (towards_prompt(adapter, ["a", "a tree"]), "both prompts predict the same, so there is no way to go; name"),
    ):
        with pytest.raises(TideError, match=message):
            latent_effects(adapter, sae, asked, metric)


def test_a_gradient_that_is_not_finite():
    adapter, sae = linear_adapter(), linear_tide()
    metric = lambda asked: lambda p: (p - asked.own).square().sum((-3, -2, -1)).sqrt()  # noqa: E731
    with pytest.raises(TideError, match="the metric's gradient is not finite at timestep 900; load the pipeline in"):
        latent_effects(adapter, sae, steps(adapter), metric)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": -1}, "points = -1 must be at least 0"),
        ({"ablate": -1}, "-1 latents asked for; give at least 0"),
        ({"ablate": [N]}, rf"feature {N} does not exist; this SAE has latents 0\.\.{N - 1}"),
        ({"ablate": [1], "batch_size": 0}, "batch_size = 0 must be at least 1"),
    ],
)
def test_options_that_do_not_fit(options, message):
    adapter = linear_adapter()
    with pytest.raises(TideError, match=message):
        latent_effects(adapter, linear_tide(), steps(adapter), towards_another(adapter), **options)


def test_steps_that_do_not_fit():
    asked = steps(linear_adapter())
    with pytest.raises(TideError, match=r"must be \[steps, images, c, h, w\], with timesteps \[steps\] and not \[2\]"):
        Steps(asked.timesteps[:2], asked.latents, asked.text)
    with pytest.raises(TideError, match="2 images and text of 1 rows; give one prompt an image"):
        Steps(asked.timesteps, asked.latents, {"prompt": asked.text["prompt"][:1]})
