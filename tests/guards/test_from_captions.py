"""Examples of a guard from captioned images."""

from __future__ import annotations

import pytest
import torch

from tide.adapters import tap
from tide.data import open_source
from tide.errors import TideError
from tide.guards.from_captions import caption_examples
from tide.images.words import holds


@pytest.fixture(scope="module")
def source(adapter):
    return open_source("scenes", adapter, images=48, batch_size=24)


@pytest.fixture(scope="module")
def examples(adapter, sae, source):
    return caption_examples(adapter, sae, source, "near", images_per_concept=9, timesteps=2, batch_size=9)


def test_each_half_has_images_with_the_word_and_without(examples):
    for data, n in ((examples.fit, 4), (examples.held_out, 5)):
        assert data.x.shape == (2, 2 * n, 64, 192)
        assert int(data.labels["near"].sum()) == n
    assert len(examples.captions) == 18
    assert sum(holds(caption, "near") for caption in examples.captions) == 9


def test_an_image_is_in_one_half_with_its_own_label(examples, adapter, sae, source):
    """As activations without noise tell: those of the caption's image at the last timestep are of that image alone."""
    captions = {caption: images[i] for images, own in source for i, caption in enumerate(own)}
    text = adapter.encode_prompts(list(examples.captions), 24)
    latents = adapter.encode_images(torch.stack([captions[caption] for caption in examples.captions]))
    seen = []
    t = float(examples.fit.timesteps[-1])
    with tap(adapter, {6: lambda x, call: seen.append(x.clone())}), torch.no_grad():
        adapter.denoise(adapter.add_noise(latents, torch.zeros_like(latents), t), t, text)
    own = seen[0].flatten(1)
    found = []
    for data in (examples.fit, examples.held_out):
        nearest = torch.cdist(data.x[-1].flatten(1), own).argmin(1).tolist()
        assert [holds(examples.captions[i], "near") for i in nearest] == data.labels["near"].tolist()
        found += nearest
    assert sorted(found) == list(range(18))


def test_of_large_images_some_tokens_are_read(adapter, sae, source, monkeypatch):
    monkeypatch.setattr("tide.interpretation.caption_activations.PER_IMAGE", 10)
    options = {"images_per_concept": 8, "timesteps": 1, "batch_size": 8}
    assert caption_examples(adapter, sae, source, "near", **options).fit.x.shape == (1, 8, 10, 192)


def test_too_few_images_are_refused(adapter, sae, source):
    with pytest.raises(TideError, match=r"3 captions hold 'near' and 3 .*a guard takes 8 of each at least"):
        caption_examples(adapter, sae, source, "near", images_per_concept=3)
    with pytest.raises(TideError, match="no caption holds 'tractor'"):
        caption_examples(adapter, sae, source, "tractor")
