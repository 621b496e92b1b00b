"""`transpose` and `transpose_selected`: the places of a code by latent and token, in pieces."""

import importlib

import pytest
import torch

from tide_kernels import reference, triton

PIECE = 16

# n_tokens, k, n_latents
SELECTED = [
    pytest.param((1, 1, 1), id="one of everything"),
    pytest.param((5, 3, 17), id="less than a word of tokens"),
    pytest.param((32, 2, 7), id="a word of tokens"),
    pytest.param((257, 5, 23), id="one token beyond a group of words"),
    pytest.param((1000, 3, 5), id="two counts of groups, the second not full"),
    pytest.param((9, 70, 70), id="every latent on every token"),
    pytest.param((300, 1, 4000), id="most latents on no token"),
]


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch):
    monkeypatch.setattr(importlib.import_module("tide_kernels.triton.layout"), "PIECE", PIECE)


@pytest.fixture
def selected(device, generator):
    """Makes the indices of a code of `select`: distinct, ascending, unused places last; latent 1 is on no token."""

    def make(n_tokens, k, n_latents):
        order = torch.rand(n_tokens, n_latents, generator=generator).argsort(1)[:, :k].to(torch.int32)
        used = torch.randint(k + 1, (n_tokens, 1), generator=generator)
        used[::3] = k
        order[(torch.arange(k) >= used) | (order == 1)] = n_latents
        if n_tokens > 8:
            order[n_tokens // 2] = n_latents
        return order.sort(1).values.masked_fill_(order.sort(1).values == n_latents, -1).to(device)

    return make


def check(layout, indices, n_latents):
    order, tokens, offsets = reference.transpose(indices, n_latents)
    used = int(offsets[-1])
    assert torch.equal(layout.offsets.long(), offsets)
    assert torch.equal(layout.places[:used].long(), order[:used])
    assert torch.equal(layout.tokens[:used].long(), tokens[:used])
    count = -(-layout.offsets.diff() // PIECE)
    assert torch.equal(layout.pieces.diff(), count)
    assert torch.equal(layout.slots.diff(), torch.where(count > 1, count, 0))
    n_pieces = int(layout.pieces[-1])
    assert torch.equal(layout.latent[:n_pieces].long().cpu(), torch.arange(n_latents).repeat_interleave(count.cpu()))
    assert bool((layout.latent[n_pieces:] == n_latents).all())
    assert {t.dtype for t in layout} == {torch.int32}


def test_any_code(sizes, code):
    n_tokens, k, n_latents, _ = sizes
    _, indices = code(n_tokens, k, n_latents, torch.float32)
    check(triton.transpose(indices, n_latents), indices, n_latents)


@pytest.mark.parametrize("n_latents", [2**15 - 1, 2**15, 2**15 + 1], ids=["16-bit keys", "32-bit keys", "one more"])
def test_the_width_of_the_sorted_keys(n_latents, device):
    indices = torch.tensor([[n_latents - 1, 0], [-1, n_latents - 1], [2, -1]], dtype=torch.int32, device=device)
    check(triton.transpose(indices, n_latents), indices, n_latents)


@pytest.mark.parametrize("bitmask", [0, 1], ids=["sorted", "by bits"])
@pytest.mark.parametrize("shape", SELECTED)
def test_a_selected_code(shape, bitmask, selected, monkeypatch):
    layout = importlib.import_module("tide_kernels.triton.layout")
    config = layout.launch.config
    monkeypatch.setattr(layout.launch, "config", lambda *arguments: config(*arguments) | {"bitmask": bitmask})
    indices = selected(*shape)
    check(triton.transpose_selected(indices, shape[-1]), indices, shape[-1])


def test_a_latent_on_every_token(device):
    indices = torch.tensor([[0, 3]] * 600, dtype=torch.int32, device=device)
    check(triton.transpose_selected(indices, 5), indices, 5)


@pytest.mark.parametrize("transpose", [triton.transpose, triton.transpose_selected])
@pytest.mark.parametrize("n_tokens", [0, 40], ids=["no tokens", "no used place"])
def test_nothing_to_order(transpose, n_tokens, device):
    indices = torch.full((n_tokens, 3), -1, dtype=torch.int32, device=device)
    check(transpose(indices, 7), indices, 7)
