"""What a concept looks like in the latents, against a plain loop over images and tokens."""

from __future__ import annotations

import pytest
import torch

from tide.activations import Prepared
from tide.adapters import adapter_for, tap
from tide.errors import TideError
from tide.interpretation import ConceptProfiles, concept_profiles
from tide.sae import TIDE, TIDEConfig

N, K, TIMESTEPS = 64, 8, torch.tensor([800, 200])


def prepared(alpha) -> list[Prepared]:
    """Five images in batches of two, two and one."""
    latents = torch.randn(5, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    prompts = [f"a red {word}" for word in ("cube", "tree", "house", "cone", "sphere")]
    text = adapter_for(alpha).encode_prompts(prompts, 20)
    parts = (slice(0, 2), slice(2, 4), slice(4, 5))
    return [Prepared(latents[part], {name: value[part] for name, value in text.items()}) for part in parts]


def sae_for(adapter, tensor: str = "output") -> TIDE:
    modulation = adapter.modulation(6)
    return TIDE(TIDEConfig(192, N, K, modulation=modulation.config, block=6, tensor=tensor), modulation)


def masks() -> dict[str, torch.Tensor]:
    drawn = torch.rand(2, 5, 64, generator=torch.Generator().manual_seed(1)) < 0.1
    return {"roof": drawn[0], "door": drawn[1], "dragon": torch.zeros(5, 64, dtype=torch.bool)}


@pytest.mark.parametrize("tensor", ["output", "attention"])
def test_equals_a_naive_mean(alpha, tensor):
    """One image and one token at a time; the tensor is the one the SAE was trained on."""
    adapter, data, marked = adapter_for(alpha), prepared(alpha), masks()
    model = sae_for(adapter, tensor).train()
    found = concept_profiles(adapter, model, data, marked, TIMESTEPS, seed=3)
    assert model.training
    generator = torch.Generator().manual_seed(3)
    latents, raw = torch.zeros(3, 2, N), torch.zeros(3, 2, 192)
    first = 0
    with torch.no_grad():
        for images in data:
            noise = torch.randn(images.latents.shape, generator=generator)
            for i, t in enumerate(TIMESTEPS.tolist()):
                for j in range(len(noise)):
                    seen = []
                    one = {name: value[j : j + 1] for name, value in images.text.items()}
                    noisy = adapter.add_noise(images.latents[j : j + 1], noise[j : j + 1], t)
                    with tap(adapter, {6: lambda x, call, seen=seen: seen.append(x.clone())}, tensor):
                        adapter.denoise(noisy, t, one)
                    z = model.encode(seen[0], float(t)).dense(N)
                    for c, mask in enumerate(marked.values()):
                        for token in mask[first + j].nonzero().flatten().tolist():
                            latents[c, i] += z[token] / mask.sum()
                            raw[c, i] += seen[0][0, token] / mask.sum()
            first += len(noise)
    torch.testing.assert_close(found.latents, latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.raw, raw, rtol=1e-4, atol=1e-4)
    assert found.concepts == ("roof", "door", "dragon")
    assert found.counts.tolist() == [int(mask.sum()) for mask in marked.values()]
    assert found.timesteps.tolist() == [800.0, 200.0]
    assert raw[:2].abs().min(-1).values.max() > 0


PROFILES = ConceptProfiles(
    ("roof", "door", "dragon"),
    torch.tensor([800.0, 200.0]),
    torch.tensor([[[1.0, 2.0, 0.0]] * 2, [[3.0, 0.0, 0.0]] * 2, [[0.0] * 3] * 2]),
    torch.tensor([[[1.0, 1.0]] * 2, [[0.0, 4.0]] * 2, [[0.0] * 2] * 2]),
    torch.tensor([7, 9, 0]),
)


def test_a_contrast_is_what_only_one_of_them_has():
    source, target = PROFILES.contrast("roof", "door")
    assert source.values.tolist() == [[0, 2, 0]] * 2
    assert target.values.tolist() == [[2, 0, 0]] * 2
    assert source.timesteps.tolist() == [800.0, 200.0]
    assert PROFILES.direction("roof", "door").tolist() == [[-1, 3]] * 2


@pytest.mark.parametrize("concept", ["dragon", "window"], ids=["no tokens", "not asked for"])
def test_a_concept_that_was_not_seen(concept):
    for make in (PROFILES.contrast, PROFILES.direction):
        with pytest.raises(TideError, match=f"there are no tokens of '{concept}' to take latents from; collect images"):
            make("roof", concept)


def test_bad_input(alpha):
    adapter, data = adapter_for(alpha), prepared(alpha)
    for wrong in ({}, {"roof": torch.ones(4, 64, dtype=torch.bool)}):
        with pytest.raises(TideError, match=r"a profile needs masks \[5, tokens\] of one concept or more"):
            concept_profiles(adapter, sae_for(adapter), data, wrong, TIMESTEPS)
    with pytest.raises(TideError, match="does not know its block"):
        concept_profiles(adapter, TIDE(TIDEConfig(192, N, K)), data, masks(), TIMESTEPS)
