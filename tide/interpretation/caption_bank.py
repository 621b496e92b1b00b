"""A bank of the words of captions: all tokens of the images whose caption says a word stand for it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from tide.activations.source import Source, check_source
from tide.adapters import Adapter
from tide.adapters.sizes import caption_length
from tide.editing.bank import Difference
from tide.editing.prompts import changed_prompt
from tide.editing.record import record_contrast
from tide.errors import TideError
from tide.evaluation.table import trained_on
from tide.interpretation.banking import RecordedBank, difference, record_bank
from tide.interpretation.caption_activations import caption_activations
from tide.interpretation.captioned import Captioned, pick_images
from tide.interpretation.timesteps import spread_timesteps
from tide.sae.model import TIDE

#: Images that a contrast is recorded on.
REFERENCES = 16


def caption_bank(
    adapter: Adapter,
    model: TIDE,
    source: Source,
    words: Sequence[str],
    contrasts: Sequence[tuple[str, str]] = (),
    *,
    images_per_concept: int = 64,
    timesteps: int = 10,
    n_tokens: int = 128,
    seed: int = 0,
    batch_size: int = 4,
) -> RecordedBank:
    """The words of captions as concepts: recorded on one half of the images, scored on the other.

    A detector tells tokens of images with the word from tokens of images without, which is less than where in an image
    it is. Contrasts (source, target) are recorded on images whose caption says the target, with the source's word in
    its place. Images that trained the model are left out where enough remain.

    Raises:
        TideError: no caption says a word, or every one does; the model does not know its block.
    """
    check_source(source)
    adapter.resolve_block(model.config.trained_block)
    at = spread_timesteps(adapter, timesteps)
    wanted = list(dict.fromkeys([*words, *(target for _, target in contrasts)]))
    images = pick_images(adapter, source, wanted, images_per_concept, trained_on([model])).images
    recorded = {pair: _contrast(adapter, model, pair, images, at, n_tokens, seed, batch_size) for pair in contrasts}
    fit, held_out = (
        caption_activations(adapter, model, images, part, words, at, seed=seed, batch_size=batch_size)
        for part in halves_by_words(images, words, seed)
    )
    return record_bank(model, fit, held_out, words, recorded, n_tokens=n_tokens, seed=seed)


def halves_by_words(images: Sequence[Captioned], words: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """The numbers of the images of two random halves, each with half of the images of every combination of words."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    order.sort(key=lambda i: [word in images[i].words for word in words])
    return sorted(order[0::2]), sorted(order[1::2])


def _contrast(
    adapter: Adapter,
    model: TIDE,
    pair: tuple[str, str],
    images: Sequence[Captioned],
    timesteps: Tensor,
    n_tokens: int,
    seed: int,
    batch_size: int,
) -> Difference:
    source, target = pair
    said = re.compile(rf"(?<!\w){re.escape(target)}(?!\w)")
    # Other captions say the word in capitals, which the other prompt would then keep.
    chosen = [each for each in images if target in each.words and said.search(each.caption)][:REFERENCES]
    if not chosen:
        raise TideError(f"no caption says {target!r} as it is written here; name a word that some of them hold")
    captions = [each.caption for each in chosen]
    block = adapter.resolve_block(model.config.trained_block)
    recorded = record_contrast(
        adapter,
        (block,),
        torch.cat([each.prepared.latents for each in chosen]),
        (captions, [changed_prompt(caption, target, source) for caption in captions]),
        timesteps,
        tensor=model.config.tensor,
        seed=seed,
        max_sequence_length=caption_length(adapter),
        batch_size=batch_size,
    )[block]
    everywhere = torch.ones(len(chosen), recorded.present.shape[3], dtype=torch.bool)
    return difference(recorded, everywhere, n_tokens=n_tokens, seed=seed)
