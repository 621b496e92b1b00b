"""What ``tide edit`` edits towards: a prompt's own run, an image, or latents that were kept."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tide.activations.data import to_tensor
from tide.adapters import Adapter
from tide.commands import common
from tide.editing import Contrast, Edit, Keep, Replace, ScaleTarget, Target
from tide.editing.masks import token_mask
from tide.editing.progress import is_within, step_range
from tide.editing.record import check_target_size, record_contrast, record_targets, run_noised
from tide.editing.target_file import load_target, save_target
from tide.errors import TideError
from tide.pictures import open_picture
from tide.sae import TIDE

#: Draws a prompt at the run's seed, size and steps.
Run = Callable[[str], Any]


class Change(NamedTuple):
    """From a strength to the edit, and the maps of latents that it moves between."""

    edit: Callable[[float], Edit]
    maps: Callable[[], tuple[Target, Target]]


def check(args: argparse.Namespace) -> None:
    """Raises for options that do not go together; fills in ``--towards`` from ``--change``."""
    if args.change is not None:
        args.towards = changed_prompt(args.prompt, *args.change)
    if args.contrast and args.towards_image is None:
        raise TideError("--contrast records on an image; give --towards-image")
    if args.altered and len(args.strength) > 1:
        raise TideError("--altered goes with one --strength; give one")
    _check_different("--strength", [f"{strength:g}" for strength in args.strength])
    _check_different("--altered", [str(n) for n in args.altered or ()])
    if args.save_target is not None and Path(args.save_target).is_dir():
        raise TideError(f"{args.save_target} is a folder; give --save-target the name of a file")
    if args.steps is not None:
        _check_steps((args.steps[0], args.steps[1]), args.n_steps)


def _check_different(option: str, names: list[str]) -> None:
    """Each value of an option has a picture, which its six first digits name."""
    if repeated := [name for name in names if names.count(name) > 1]:
        raise TideError(f"{option} has {repeated[0]} twice, and each has one picture; give different ones")


def _check_steps(steps: tuple[float, float], n_steps: int) -> None:
    first, last = step_range(steps)
    if not any(is_within(step, n_steps, (first, last)) for step in range(n_steps)):
        raise TideError(
            f"--steps {first:g} {last:g} holds none of the {n_steps} sampling steps; give fractions {1 / n_steps:g} "
            "apart or more"
        )


def changed_prompt(prompt: str, source: str, target: str) -> str:
    """The prompt with the word ``source`` replaced by ``target``."""
    said = rf"(?<!\w)(?:([Aa])n? )?{re.escape(source)}(?!\w)"
    changed, n = re.subn(said, lambda found: _in_place(found[1], target), prompt)
    if not n:
        raise TideError(f"the prompt {prompt!r} does not say {source!r}; name a word that it says")
    return changed


def _in_place(article: str | None, target: str) -> str:
    """The word that takes another's place, after the article that goes with it if there was one."""
    if article is None:
        return target
    vowel = re.match(r"(?!uni|us[aeiu]|eu|one)[aeiou]", target, re.IGNORECASE)
    return f"{article}{'n' if vowel else ''} {target}"


def change_towards(adapter: Adapter, model: TIDE, args: argparse.Namespace, size: tuple[int, int], run: Run) -> Change:
    """What ``--towards``, ``--change`` or ``--target`` ask for."""
    if args.contrast:
        pair = _record_contrast(adapter, model, args, size)
        pair = (pair[0].pooled(), pair[1].pooled()) if args.towards_pooled else pair
        return Change(lambda strength: Contrast(*pair, strength) + Keep(model.config.k), lambda: pair)
    if args.target is not None:
        target = load_target(args.target, model)
        target = target.pooled() if args.towards_pooled else target
    else:
        target = _record(adapter, model, args, size, run, args.towards)
    if args.save_target is not None:
        save_target(args.save_target, target, model)
        args.interrupted = f"the target is kept in {args.save_target}"

    def maps() -> tuple[Target, Target]:
        return _record(adapter, model, args, size, run, args.prompt), target

    if args.towards_top is not None:
        return Change(lambda strength: ScaleTarget(target, args.towards_top, strength), maps)
    return Change(lambda strength: Replace(target, strength), maps)


def _record(
    adapter: Adapter, model: TIDE, args: argparse.Namespace, size: tuple[int, int], run: Run, prompt: str
) -> Target:
    """A prompt's latents at every step: along its own sampling run from the same seed, or on the target image."""
    steps = adapter.sampling_timesteps(args.n_steps)
    n_tokens = 1 if args.towards_pooled else common.n_tokens(adapter, size)
    check_target_size(len(steps), n_tokens, model.n_latents, "add --towards-pooled or lower --n-steps")
    draw = partial(run, prompt)
    if args.towards_image:
        image, length = _reference(adapter, args, size), common.caption_length(adapter)
        draw = partial(run_noised, adapter, image, [prompt], steps, seed=args.seed, max_sequence_length=length)
    return record_targets(adapter, model, draw, pooled=args.towards_pooled, dtype=torch.float32).targets[0]


def _record_contrast(
    adapter: Adapter, model: TIDE, args: argparse.Namespace, size: tuple[int, int]
) -> tuple[Target, Target]:
    """The latents of ``--towards-image``, in half precision, under the prompt ``--towards`` and under ``--prompt``."""
    steps = adapter.sampling_timesteps(args.n_steps)
    check_target_size(len(steps), common.n_tokens(adapter, size), model.n_latents, "lower --n-steps")
    block = model.config.trained_block
    found = record_contrast(
        adapter,
        [block],
        _reference(adapter, args, size),
        ([args.towards], [args.prompt]),
        steps,
        tensor=model.config.tensor,
        seed=args.seed,
        max_sequence_length=common.caption_length(adapter),
    )
    return found[adapter.resolve_block(block)].targets(model)[0]


def _reference(adapter: Adapter, args: argparse.Namespace, size: tuple[int, int]) -> Tensor:
    """``--towards-image`` through the VAE, ``[1, c, h, w]``."""
    pixels = to_tensor(open_picture(Path(args.towards_image)), size)[None]
    return adapter.encode_images(pixels)


def mask_of(path: str, adapter: Adapter, size: tuple[int, int]) -> Tensor:
    """bool ``[tokens]``: where the picture ``path``, of the image's size, is bright. What is transparent is dark."""
    picture = open_picture(Path(path), background="black").convert("L")
    if (picture.height, picture.width) != size:
        raise TideError(
            f"{path} is {picture.height} x {picture.width} pixels and the image {size[0]} x {size[1]}; make the "
            "mask of the image's size"
        )
    scale = adapter.pixels_per_latent
    pixels = torch.from_numpy(np.asarray(picture) > 127)
    tokens = token_mask(pixels, adapter.token_grid(size[0] // scale, size[1] // scale))
    if not tokens.any():
        raise TideError(f"{path} covers more than half of no token; make the mask larger or brighter")
    return tokens
