"""Guards of the bundled pipeline, made from rendered scenes."""

from __future__ import annotations

from dataclasses import replace

import torch

from tide.adapters import Adapter
from tide.errors import TideError
from tide.guards import Guard
from tide.guards.making import Examples, make_guard
from tide.interpretation import Annotated
from tide.sae import TIDE
from tide.scenes.annotate import N_SAMPLING_STEPS, annotated_scenes
from tide.scenes.scene import ATTRIBUTES, Split, prompts, scenes

#: Attributes whose values may be guarded.
KINDS = ("class", "style")
#: Scenes that a detector is fitted on.
IMAGES = 512
#: Captions that the map of words is fitted on.
CAPTIONS = 2048


def scene_guard(
    adapter: Adapter,
    model: TIDE,
    concept: str,
    put: str,
    *,
    examples: Examples | None = None,
    n_images: int = IMAGES,
    seed: int = 0,
) -> Guard:
    """A guard of a class or a style, from ``examples`` (default: :func:`scene_examples` of ``n_images``). The refuge's
    caption is short and names nothing else.

    Raises :class:`~tide.errors.TideError` for two words that are not of one kind, and as
    :func:`~tide.guards.making.make_guard`.
    """
    kinds = [kind for kind in KINDS if {concept, put} <= set(ATTRIBUTES[kind])]
    if not kinds or concept == put:
        known = "; ".join(f"{kind}: {', '.join(ATTRIBUTES[kind])}" for kind in KINDS)
        raise TideError(f"{concept!r} and {put!r} are not two values of one kind; scenes have {known}")
    if examples is None:
        examples = scene_examples(adapter, model, n_images=n_images, seed=seed)
    return make_guard(adapter, model, examples, concept, put, neutral=f"a {put}" if kinds == ["class"] else put)


def scene_examples(adapter: Adapter, model: TIDE, *, n_images: int = IMAGES, seed: int = 0) -> Examples:
    """``n_images`` training scenes and half as many development scenes at every step of the sampling run, labelled with
    their classes and styles, and captions of further training scenes. Raises :class:`~tide.errors.TideError` for a
    model of another tensor than a block's output."""
    if model.config.tensor != "output":
        raise TideError(f"scenes are read at a block's output and this SAE was trained on {model.config.tensor}")
    block = adapter.resolve_block(model.config.trained_block)
    captions = [caption for _, caption in prompts("train", CAPTIONS, seed + 31)]
    return Examples(
        _labelled(adapter, block, "train", n_images, seed + 29),
        _labelled(adapter, block, "dev", n_images // 2, seed + 30),
        captions,
    )


def _labelled(adapter: Adapter, block: int, split: Split, n: int, seed: int) -> Annotated:
    items = list(scenes(split, n, seed))
    found = annotated_scenes(adapter, items, [block], adapter.sampling_timesteps(N_SAMPLING_STEPS), seed=seed)[block]
    labels = {
        value: torch.tensor([scene[kind] == value for scene in items]) for kind in KINDS for value in ATTRIBUTES[kind]
    }
    return replace(found, masks={}, labels=labels)
