"""Revival: which latents count as dead, and what a restarted one looks like."""

from __future__ import annotations

import pytest
import torch

from tide.sae import TIDE, TIDEConfig
from tide.sae.revival import Revival

D, N = 8, 24


def optimised(sae: TIDE) -> torch.optim.AdamW:
    """An optimiser with moments that are nowhere zero."""
    optimizer = torch.optim.AdamW(sae.parameters(), lr=1e-3)
    for parameter in sae.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def problem(n_rows: int = 64, dead: tuple[int, ...] = (3, 7, 20)):
    sae = TIDE(TIDEConfig(D, N, 4))
    revival = Revival(N, after_tokens=100)
    revival.silent_for[list(dead)] = 100
    x = torch.randn(n_rows, D, generator=torch.Generator().manual_seed(0))
    return sae, optimised(sae), revival, x


def test_silence_is_counted_in_tokens():
    revival = Revival(3, after_tokens=20)
    for fired in ([1, 0, 0], [0, 0, 5], [2, 0, 0]):
        revival.count(torch.tensor(fired), 10)
    assert revival.silent_for.tolist() == [0, 30, 10]
    assert revival.dead.tolist() == [False, True, False]


@pytest.mark.parametrize(("after", "dead"), [(30, True), (31, False)], ids=["just dead", "just alive"])
def test_the_limit_is_reached_not_passed(after, dead):
    revival = Revival(1, after)
    revival.count(torch.zeros(1), 30)
    assert bool(revival.dead) is dead


def test_a_dead_latent_restarts_at_a_residual():
    sae, optimizer, revival, x = problem()
    x_hat = torch.zeros_like(x)
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    alive = torch.ones(N, dtype=torch.bool)
    alive[[3, 7, 20]] = False
    norm = before["W_enc"][alive].norm(dim=1).mean()
    assert revival.revive(sae, optimizer, x, x_hat, torch.Generator().manual_seed(0)) == 3
    rows, encoder = sae.W_dec[~alive].detach(), sae.W_enc[~alive].detach()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    # Each is the direction of one row's residual, and no two of the same row.
    likeness = rows @ torch.nn.functional.normalize(x, dim=1).T
    torch.testing.assert_close(likeness.max(1).values, torch.ones(3))
    assert len(set(likeness.argmax(1).tolist())) == 3
    # The encoder is tied to it, at a share of the living rows' norm.
    torch.testing.assert_close(encoder, rows * norm * Revival.ENCODER_SHARE)
    assert not sae.b_enc[~alive].any()
    for parameter in (sae.W_enc, sae.W_dec, sae.b_enc):
        state = optimizer.state[parameter]
        assert state["step"] == 1
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not state[moment][~alive].any()
            assert state[moment][alive].all()
    for name in ("W_enc", "W_dec", "b_enc"):
        assert torch.equal(sae.state_dict()[name][alive], before[name][alive])
    assert torch.equal(sae.b_dec, before["b_dec"])
    assert not revival.dead.any()


def test_a_transcoders_latent_fires_on_the_input_and_adds_what_was_missing():
    sae, optimizer, revival, y = problem(dead=(5,))
    inputs = torch.randn(len(y), D, generator=torch.Generator().manual_seed(1)) + 3
    y_hat = y.clone()
    y_hat[17] = 0
    generator = torch.Generator().manual_seed(0)
    assert revival.revive(sae, optimizer, y, y_hat, generator, inputs=inputs) == 1
    norm = sae.W_enc[torch.arange(N) != 5].norm(dim=1).mean()
    torch.testing.assert_close(sae.W_dec[5].detach(), torch.nn.functional.normalize(y[17], dim=0))
    deviation = torch.nn.functional.normalize(inputs[17] - inputs.mean(0), dim=0)
    torch.testing.assert_close(sae.W_enc[5].detach(), (deviation * norm * Revival.ENCODER_SHARE).detach())


def test_rows_of_large_error_are_served():
    """A row is drawn in proportion to its squared error: one with all of it is the only one drawn."""
    sae, optimizer, revival, x = problem(dead=(5,))
    x_hat = x.clone()
    x_hat[17] = 0
    assert revival.revive(sae, optimizer, x, x_hat, torch.Generator().manual_seed(0)) == 1
    torch.testing.assert_close(sae.W_dec[5].detach(), torch.nn.functional.normalize(x[17], dim=0))


@pytest.mark.parametrize(
    ("n_rows", "wrong_rows", "expected"),
    [(64, 64, 4), (8, 8, 1), (256, 256, 10), (256, 2, 2), (64, 0, 0)],
    ids=["one a sixteen rows", "at least one", "all of the dead", "as many as rows with error", "no error, no restart"],
)
def test_how_many_are_restarted(n_rows, wrong_rows, expected):
    sae, optimizer, revival, x = problem(n_rows, dead=tuple(range(10)))
    x_hat = x.clone()
    x_hat[:wrong_rows] = 0
    before = sae.W_dec.detach().clone()
    assert revival.revive(sae, optimizer, x, x_hat, torch.Generator().manual_seed(0)) == expected
    assert int((sae.W_dec != before).any(1).sum()) == expected
    assert int(revival.dead.sum()) == 10 - expected


def test_nothing_dead_nothing_done():
    sae, optimizer, revival, x = problem(dead=())
    before = sae.W_dec.detach().clone()
    assert revival.revive(sae, optimizer, x, torch.zeros_like(x), torch.Generator()) == 0
    assert torch.equal(sae.W_dec, before)


def test_all_dead_and_no_biases():
    sae = TIDE(TIDEConfig(D, N, 4, encoder_bias=False, decoder_bias=False))
    revival = Revival(N, after_tokens=0)
    x = torch.randn(16 * N, D)
    assert revival.revive(sae, optimised(sae), x, torch.zeros_like(x), torch.Generator()) == N
    torch.testing.assert_close(sae.W_enc.norm(dim=1), torch.full((N,), Revival.ENCODER_SHARE))


def test_the_same_generator_restarts_alike():
    found = []
    for seed in (0, 0, 1):
        sae, optimizer, revival, x = problem()
        revival.revive(sae, optimizer, x, torch.zeros_like(x), torch.Generator().manual_seed(seed))
        found.append(sae.W_dec.detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
