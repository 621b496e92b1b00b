"""What does not fit the pipeline, its block or its run, refused by name."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.edit_samples import K, N, assert_untouched, draw
from tide.editing import Erase, Inject, Scale, Steer, Target, edit
from tide.errors import TideError
from tide.sae import TIDE, TIDEConfig


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (Scale([N], 2.0), {}, rf"feature {N} does not exist; this SAE has latents 0\.\.{N - 1}"),
        (Inject(Target(torch.tensor([1.0]), torch.zeros(1, 7))), {}, f"the target has 7 latents and the SAE {N}"),
        (Scale([1], 2.0), {"steps": (-0.1, 0.5)}, r"steps = \(-0.1, 0.5\) must be two fractions"),
        (Scale([1], 2.0), {"steps": (0.5, 1.5)}, "must be two fractions of the sampling run"),
        (Scale([1], 2.0), {"steps": (0.5, 0.5)}, "0 <= first < last <= 1"),
        (Scale([1], 2.0), {"branch": "negative"}, "branch = 'negative' is unknown; use 'conditional'"),
        (Scale([1], 2.0), {"block": 5}, "the SAE was trained on block 6, not 5"),
        (Scale([1], 2.0), {"block": 12}, "block 12 does not exist"),
        (Scale([1], 2.0), {"tokens": torch.ones(64)}, r"tokens is torch.float32 \[64\]; it must be bool"),
        (Scale([1], 2.0), {"tokens": torch.ones(1, 8, 8, dtype=torch.bool)}, "it must be bool"),
        (Steer(torch.tensor([1.0]), torch.zeros(1, 7)), {}, "the direction has width 7 and the transformer 192"),
        (lambda z, place: z, {}, "function is not an edit; give one of tide.editing"),
    ],
    ids=[
        "feature", "target", "steps below 0", "steps above 1", "no steps", "branch", "another block",
        "block out of range", "mask of floats", "mask of three dimensions", "steering of another width", "a function",
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_before_the_run(alpha, sae, change, options, message):
    with pytest.raises(TideError, match=message), edit(alpha, sae, change, **options):
        raise AssertionError("entered")


def test_the_block_by_name_or_from_the_end(alpha, sae):
    for block in (6, -2, "penultimate"):
        with edit(alpha, sae, Erase([1]), block=block):
            pass


def test_an_sae_that_does_not_fit(alpha, sae):
    for config, message in (
        (TIDEConfig(48, N, K, block=6), "the SAE has width 48 and the transformer 192; use its own SAE"),
        (TIDEConfig(192, N, K, block=6, family="flux"), "the SAE was trained on flux, this is pixart"),
        (TIDEConfig(192, N, K), "which block to edit is not known; pass block="),
        (TIDEConfig(192, N, K, sae.config.modulation, undo=True, block=6), "train one with undo=False"),
        (
            TIDEConfig(192, N, K, block=6, tensor="feed_forward_input", target="feed_forward"),
            "the SAE is a transcoder of feed_forward: its latents decode to another tensor than it encodes, so ",
        ),
    ):
        with pytest.raises(TideError, match=message), edit(alpha, TIDE(config), Erase([1])):
            raise AssertionError("entered")


def test_without_an_sae(alpha):
    steer = Steer(torch.tensor([1.0]), torch.zeros(1, 192))
    with pytest.raises(TideError, match="pass block="), edit(alpha, None, steer):
        raise AssertionError("entered")
    with (
        pytest.raises(TideError, match="only Steer and its like work"),
        edit(alpha, None, Erase([1]), block=3),
    ):
        raise AssertionError("entered")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.ones(63, dtype=torch.bool), r"tokens is \[63\] and the image has 64 tokens; make a mask of its size"),
        (torch.ones(1, 256, dtype=torch.bool), r"tokens is \[1, 256\] and the image has 64 tokens"),
        (torch.ones(2, 64, dtype=torch.bool), "tokens holds 2 masks and the pipeline draws 4 images; give one"),
        (torch.ones(8, 64, dtype=torch.bool), "tokens holds 8 masks and the pipeline draws 4 images; give one"),
    ],
    ids=["one token short", "of another resolution", "one a prompt, not an image", "one a row, not an image"],
)
def test_masks_that_do_not_fit_the_run(alpha, sae, plain, tokens, message):
    with pytest.raises(TideError, match=message), edit(alpha, sae, Erase([1]), tokens=tokens):
        draw(alpha, ("a tree", "a house"), guidance=3.0, num_images_per_prompt=2, n_steps=2)
    assert_untouched(alpha, plain)


def test_a_target_map_of_another_resolution(alpha, sae):
    target = Target(torch.tensor([1.0]), torch.zeros(1, 256, N))
    with pytest.raises(TideError, match="the target has 256 tokens and the image 64"), edit(alpha, sae, Inject(target)):
        draw(alpha, n_steps=2)


def test_an_sae_on_another_device(alpha, sae):
    far = TIDE(sae.config).to("meta")
    message = "the SAE is on meta and the transformer on cpu; move it"
    with pytest.raises(TideError, match=message), edit(alpha, far, Erase([1])):
        draw(alpha, n_steps=2)
