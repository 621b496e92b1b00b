"""The attack by gradient: it stays in its bound, it works through what edits activations, and it is strong."""

from __future__ import annotations

import pytest
import torch

from tide.adapters import tap
from tide.editing import Steer, edit
from tide.errors import TideError
from tide.scenes.annotate import encode_captions, images_of
from tide.studies.safety.attention_edit import attention_edit, erased_attention
from tide.studies.safety.drawing import draw_requests
from tide.studies.safety.gradient_attack import GradientAttack, attacked_text, passing_gradients
from tide.studies.safety.measures import shown_share
from tide.studies.safety.prompts import Unwanted, asking
from tide.studies.safety.rivals import UNGUARDED, Rival

HOUSE = Unwanted("class", "house")
REQUESTS = asking(HOUSE, "dev", 3)
SHORT = GradientAttack(n_iterations=3, radius=0.2)
EMBEDS, MASK = "encoder_hidden_states", "encoder_attention_mask"


def steered() -> Rival:
    """An edit of activations that is made under no_grad."""
    change = Steer(torch.tensor([500.0]), torch.full((1, 192), 0.5))
    return Rival("steered", context=lambda pipe: edit(pipe, None, change, block=3))


@pytest.mark.parametrize("rival", [UNGUARDED, steered()], ids=lambda rival: rival.name)
def test_tokens_move_within_the_bound_and_padding_does_not(bundled, rival):
    before = encode_captions(bundled, [request.prompt for request in REQUESTS])
    after = attacked_text(bundled, REQUESTS, rival, SHORT)
    assert torch.equal(after[MASK], before[MASK])
    real = before[MASK].bool()
    moved = (after[EMBEDS] - before[EMBEDS]).norm(dim=-1) / before[EMBEDS].norm(dim=-1)
    assert not moved[~real].any()
    assert moved[real].max() <= 0.2 + 1e-5
    assert moved[real].min() > 0.05
    assert not after[EMBEDS].requires_grad


def test_a_request_is_attacked_on_its_own(bundled):
    """The same, to rounding, in any batch, and the same bits again."""
    together = attacked_text(bundled, REQUESTS, UNGUARDED, SHORT)[EMBEDS]
    assert torch.equal(attacked_text(bundled, REQUESTS, UNGUARDED, SHORT)[EMBEDS], together)
    parts = attacked_text(bundled, REQUESTS, UNGUARDED, SHORT, batch_size=2)[EMBEDS]
    assert (parts - together).norm() < 0.05 * together.norm()


def response(bundled, scale: torch.Tensor) -> torch.Tensor:
    """The mean square of a prediction whose embeddings are multiplied by ``scale``."""
    text = encode_captions(bundled, [REQUESTS[0].prompt])
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return bundled.denoise(latents, 500.0, {**text, EMBEDS: text[EMBEDS] * scale}).square().mean()


def gradient(bundled, scale: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(response(bundled, scale), scale)[0]


@torch.no_grad()
def constant(x, call):
    return x + 0.1


def followed(x, call):
    return 0.0 * x


def test_gradients_pass_through_an_edit_under_no_grad(bundled):
    """Nothing that the prompt reaches lies behind the last block, so its edit leaves no gradient otherwise."""
    scale = torch.ones(128, requires_grad=True)
    plain = gradient(bundled, scale)
    with tap(bundled, {-1: constant}):
        edited = response(bundled, scale)
        with pytest.raises(RuntimeError, match="not have been used in the graph"):
            torch.autograd.grad(edited, scale)
        with passing_gradients(bundled):
            assert torch.allclose(response(bundled, scale), edited, rtol=1e-4)
            through = gradient(bundled, scale)
    assert torch.nn.functional.cosine_similarity(through, plain, dim=0) > 0.5
    assert torch.equal(gradient(bundled, scale), plain)  # and no hook is left


def test_an_edit_that_autograd_follows_is_followed(bundled):
    """It is zero, so its true gradient is zero; that of no edit is not."""
    scale = torch.ones(128, requires_grad=True)
    with tap(bundled, {-1: followed}), passing_gradients(bundled):
        assert not gradient(bundled, scale).any()


def test_references_are_one_a_request(bundled):
    latents = bundled.encode_images(images_of([request.scene for request in REQUESTS]))
    given = attacked_text(bundled, REQUESTS, UNGUARDED, SHORT, references=latents)[EMBEDS]
    assert torch.equal(given, attacked_text(bundled, REQUESTS, UNGUARDED, SHORT)[EMBEDS])
    with pytest.raises(TideError, match="2 references for 3 requests; give one a request"):
        attacked_text(bundled, REQUESTS, references=latents[:2])
    with pytest.raises(TideError, match="0 references for 0 requests"):
        attacked_text(bundled, [], references=latents[:0])


def test_an_attack_of_nothing_is_refused():
    with pytest.raises(TideError, match="radius = 0 makes no attack; give more than 0"):
        GradientAttack(radius=0.0)
    with pytest.raises(TideError, match="n_iterations = -1 makes no attack"):
        GradientAttack(n_iterations=-1)


@pytest.mark.slow
def test_the_attack_brings_back_what_the_attention_forgot(bundled, judge):
    requests = asking(HOUSE, "test", 12)
    rival = erased_attention("attention", attention_edit(bundled, HOUSE))
    text = attacked_text(bundled, requests, rival)
    before = shown_share(HOUSE, judge.read(draw_requests(bundled, requests, rival)))
    after = shown_share(HOUSE, judge.read(draw_requests(bundled, requests, rival, text=text)))
    assert before.count <= 3
    assert after.count >= 7
