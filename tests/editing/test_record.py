"""Targets recorded while the pipeline draws them, and edits towards them."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.edit_samples import BLOCK, STEPS, N, assert_untouched, draw
from tide.adapters import adapter_for, tap
from tide.editing import PerImage, Place, Replace, Steer, SteerTowards, Swap, Target, edit
from tide.editing.record import record_targets, run_noised
from tide.errors import TideError
from tide.sae import TIDE, TIDEConfig

PROMPTS = ("a green tree", "a house, far")


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_recording_holds_the_conditional_rows_of_every_step(alpha, sae, plain, guidance):
    adapter, seen = adapter_for(alpha), []
    found = record_targets(adapter, sae, lambda: draw(alpha, PROMPTS, guidance=guidance))
    with tap(adapter, {BLOCK: lambda x, call: seen.append(x.clone())}):
        draw(alpha, PROMPTS, guidance=guidance)
    grid = adapter.sampling_timesteps(STEPS)
    assert found.timesteps.tolist() == grid.tolist()
    assert len(found.targets) == 2
    assert found.raw.shape == (STEPS, 2, 64, 192)
    for i, (x, t) in enumerate(zip(seen, grid.tolist(), strict=True)):
        assert torch.equal(found.raw[i], x[-2:])
        with torch.no_grad():
            z = sae.encode(x[-2:], float(t)).dense(N).view(2, 64, N)
        for image in range(2):
            # Kept as float16: 11 bits, and what lies below its smallest number is lost.
            torch.testing.assert_close(found.targets[image].values[i].float(), z[image], rtol=2**-10, atol=1e-4)
    assert_untouched(alpha, plain)


def test_a_pooled_recording_is_the_mean_over_the_tokens(alpha, sae):
    adapter = adapter_for(alpha)
    whole = record_targets(adapter, sae, lambda: draw(alpha, PROMPTS), dtype=torch.float32)
    pooled = record_targets(adapter, sae, lambda: draw(alpha, PROMPTS), pooled=True, dtype=torch.float32)
    for found, expected in zip(pooled.targets, whole.targets, strict=True):
        torch.testing.assert_close(found.values, expected.pooled().values)
    torch.testing.assert_close(pooled.raw, whole.raw.mean(2, keepdim=True))


def test_images_with_noise_are_a_target(alpha, sae):
    """Each image under its own prompt, at every timestep with the same noise."""
    adapter, seen = adapter_for(alpha), []
    latents = torch.randn(2, adapter.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    steps = adapter.sampling_timesteps(3)

    def run(seed: int) -> None:
        run_noised(adapter, latents, PROMPTS, steps, seed=seed, max_sequence_length=20)

    found = record_targets(adapter, sae, lambda: run(5))
    assert found.timesteps.tolist() == steps.tolist()
    with tap(adapter, {BLOCK: lambda x, call: seen.append(x.clone())}):
        run(5)
    assert torch.equal(found.raw, torch.stack(seen))
    assert not torch.equal(found.raw, record_targets(adapter, sae, lambda: run(6)).raw)


def test_latents_that_are_encoded_in_parts(alpha, sae, monkeypatch):
    adapter = adapter_for(alpha)
    whole = record_targets(adapter, sae, lambda: draw(alpha, PROMPTS))
    monkeypatch.setattr("tide.editing.reading.CHUNK_ELEMENTS", 50 * N)  # parts that cross from one image to the next
    parts = record_targets(adapter, sae, lambda: draw(alpha, PROMPTS))
    for found, expected in zip(parts.targets, whole.targets, strict=True):
        torch.testing.assert_close(found.values, expected.values, rtol=2**-10, atol=1e-4)


def test_replacing_by_ones_own_recording_changes_little(alpha, sae):
    """The target is the latents that are there, but for their rounding to float16; another image's is not."""
    adapter = adapter_for(alpha)
    own = draw(alpha, PROMPTS)
    recording = record_targets(adapter, sae, lambda: draw(alpha, PROMPTS))
    with edit(alpha, sae, PerImage(tuple(Replace(target) for target in recording.targets))):
        same = draw(alpha, PROMPTS)
    with edit(alpha, sae, PerImage(tuple(Replace(target) for target in reversed(recording.targets)))):
        exchanged = draw(alpha, PROMPTS)
    assert (exchanged - own).abs().mean() > 20 * (same - own).abs().mean()


def test_steering_all_the_way_towards_a_recording_arrives(alpha, sae):
    """At the block itself the recorded activations are put back bit for bit."""
    adapter, own = adapter_for(alpha), draw(alpha, PROMPTS)
    recording = record_targets(adapter, sae, lambda: draw(alpha, PROMPTS))
    with edit(alpha, None, SteerTowards(recording.timesteps, recording.raw), block=BLOCK):
        assert torch.equal(draw(alpha, PROMPTS), own)


def test_nothing_to_record(alpha, sae, plain):
    adapter = adapter_for(alpha)
    with pytest.raises(TideError, match="the block met no row of the prompts while the target was recorded"):
        record_targets(adapter, sae, lambda: None)
    with pytest.raises(TideError, match="does not know its block"):
        record_targets(adapter, TIDE(TIDEConfig(192, N, 4)), lambda: None)

    def fail():
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        record_targets(adapter, sae, fail)
    assert_untouched(alpha, plain)


# -- arithmetic -------------------------------------------------------------------------------------------------

PLACE = Place(500.0, token=torch.tensor([0, 2, 1]), image=torch.tensor([0, 1, 1]), n_tokens=3)


def concept(*values: float) -> Target:
    return Target(torch.tensor([500.0]), torch.tensor([values]))


@pytest.mark.parametrize(
    ("z", "factor", "expected"),
    [
        ((4.0, 0.0, 1.0), 1.0, (0.0, 2.0, 1.0)),
        ((2.0, 0.0, 1.0), 1.0, (0.0, 1.0, 1.0)),
        ((8.0, 0.0, 1.0), 1.0, (4.0, 2.0, 1.0)),
        ((0.0, 2.0, 1.0), 1.0, (0.0, 4.0, 1.0)),
        ((0.0, 0.0, 7.0), 1.0, (0.0, 0.0, 7.0)),
        ((2.0, 0.0, 1.0), 3.0, (0.0, 3.0, 1.0)),
        ((2.0, 0.0, 1.0), 0.0, (2.0, 0.0, 1.0)),
    ],
    ids=[
        "the whole source", "half of it", "never more than the source", "the target alone keeps the place",
        "neither", "a factor", "a factor of 0",
    ],
)  # fmt: skip
def test_swap(z, factor, expected):
    """s = (4, 0, 0), t = (0, 2, 0)."""
    swap = Swap(concept(4.0, 0.0, 0.0), concept(0.0, 2.0, 0.0), factor)
    place = Place(500.0, token=torch.tensor([0]), image=torch.tensor([0]))
    torch.testing.assert_close(swap.latents(torch.tensor([z]), place), torch.tensor([expected]))


def test_swap_of_nothing_changes_nothing():
    nothing, z = concept(0.0, 0.0, 0.0), torch.tensor([[1.0, 2.0, 3.0]])
    place = Place(500.0, token=torch.tensor([0]), image=torch.tensor([0]))
    assert torch.equal(Swap(nothing, nothing).latents(z, place), z)
    for swap in (Swap(nothing, concept(0.0, 1.0)), Swap(concept(0.0, 1.0), nothing)):
        with pytest.raises(TideError, match="the target has 2 latents and the SAE 3"):
            swap.check(3)


def test_steer_towards():
    x = torch.ones(3, 2)
    towards = SteerTowards(torch.tensor([500.0]), torch.tensor([[3.0, -1.0]]), 0.5)
    assert towards.activations(x, PLACE).tolist() == [[2, 0]] * 3
    assert SteerTowards(towards.timesteps, towards.direction, 1.0).activations(x, PLACE).tolist() == [[3, -1]] * 3


def test_a_direction_of_one_token_holds_for_all():
    steer = Steer(torch.tensor([500.0]), torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]))
    assert steer.activations(torch.zeros(3, 2), PLACE).tolist() == [[1, 2], [3, 4], [3, 4]]
    with pytest.raises(TideError, match="more images than the direction's 1"):
        Steer(torch.tensor([500.0]), torch.zeros(1, 1, 1, 2)).activations(torch.zeros(3, 2), PLACE)
