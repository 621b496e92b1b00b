"""Differently distributed scenes: what is different, and what is not."""

from __future__ import annotations

import torch

from tide.scenes.annotate import images_of
from tide.scenes.pipeline import MAX_CAPTION_TOKENS, build_tokenizer
from tide.scenes.scene import SHORT_TEMPLATES, TEMPLATES
from tide.studies.shifted import WORDINGS, _moved, _recoloured, shifted_images, shifted_scenes

ITEMS = shifted_scenes(40, 3)


def test_scenes_are_of_the_test_split():
    assert {scene.split for scene, _, _ in ITEMS} == {"test"}


def test_wordings_are_new_and_the_tokenizer_knows_their_words():
    assert not set(WORDINGS) & {*TEMPLATES, *SHORT_TEMPLATES}
    tokenizer = build_tokenizer()
    for scene, caption, _ in ITEMS:
        tokens = tokenizer(caption).input_ids
        assert tokenizer.unk_token_id not in tokens
        assert len(tokens) <= MAX_CAPTION_TOKENS
        assert all(word in caption for word in (scene.cls, scene.colour, scene.depth, scene.ground, scene.shadow))
    assert len({caption for _, caption, _ in ITEMS}) > 20


def test_images_are_the_same_for_one_seed_and_in_range():
    images = shifted_images(ITEMS)
    assert images.shape == (40, 3, 64, 64)
    assert images.min() >= -1
    assert images.max() <= 1
    assert torch.equal(images, shifted_images(ITEMS))
    # An image depends on its own seed, not on its neighbours.
    assert torch.equal(images[7:9], shifted_images(ITEMS[7:9]))
    assert shifted_scenes(40, 3) == ITEMS
    assert shifted_scenes(40, 4) != ITEMS
    plain = images_of([scene for scene, _, _ in ITEMS])
    assert ((images - plain).abs().mean((1, 2, 3)) > 0.02).all()


def test_palettes_keep_grey_and_turn_colours():
    image = torch.stack([torch.full((4, 4), v) for v in (0.5, 0.5, 0.5)])
    red = torch.stack([torch.full((4, 4), v) for v in (0.86, 0.14, 0.13)])
    for seed in range(20):
        grey = _recoloured(image, seed)[:, 0, 0]
        assert float(grey.max() - grey.min()) < 0.01
        assert 0.4 <= float(grey[0]) <= 0.58
        turned = _recoloured(red, seed)[:, 0, 0]
        assert float((turned - red[:, 0, 0]).abs().max()) > 0.05


def test_layouts_are_mirrored():
    """A bright spot on the left comes out right of where a mere move could bring it."""
    image = torch.zeros(3, 64, 64)
    image[:, 28:36, 4:12] = 1.0
    columns = torch.arange(64) + 0.5
    for seed in range(20):
        moved = _moved(image, seed)[0]
        assert float((moved.sum(0) * columns).sum() / moved.sum()) > 40
