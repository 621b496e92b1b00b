"""Latents along a sampling run: what is recorded, and how runs are compared."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tide.adapters import tap
from tide.errors import TideError
from tide.interpretation.trajectory import (
    Trajectory,
    active_shares,
    raw_step_changes,
    record_trajectory,
    run_distances,
    step_changes,
)
from tide.sae import TIDE
from tide.sae.model import Codes, inference
from tide.training import TrainConfig, build_model

N_STEPS = 4


@pytest.fixture(scope="module")
def sae(adapter) -> TIDE:
    return build_model(adapter, 6, TrainConfig(n_latents=96, k=8)).eval()


def draw(adapter, prompts=("a red cube", "a tree"), n_steps=N_STEPS, guidance=2.0, seed=3) -> torch.Tensor:
    return adapter.generate(
        list(prompts),
        n_steps=n_steps,
        guidance_scale=guidance,
        generators=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))],
        height=64,
        width=64,
    )


@pytest.fixture(scope="module")
def run(adapter, sae) -> Trajectory:
    return record_trajectory(adapter, sae, lambda: draw(adapter))


def test_what_is_recorded(adapter, sae, run):
    """The conditional rows of the SAE's block at every step, and the run itself as it is without recording."""
    seen = []
    with tap(adapter, {6: lambda x, call: seen.append((x.clone(), call))}):
        final = draw(adapter)
    assert torch.equal(run.final, final)
    assert run.timesteps.tolist() == [float(call.timestep[0]) for _, call in seen]
    assert (run.n_images, run.n_tokens) == (2, 64)
    for i, (x, call) in enumerate(seen):
        rows = x[call.conditional]
        assert torch.equal(run.raw[i], rows.half())
        with inference(sae):
            expected = sae.encode(rows, call.timestep[call.conditional])
        assert torch.equal(run.codes[i].indices, expected.indices)
        assert torch.equal(run.codes[i].values, expected.values.half())


@pytest.mark.parametrize("guidance", [1.0, 2.0], ids=["one branch", "guided"])
def test_the_last_predicted_image_is_the_final_one(adapter, sae, guidance):
    """DPM-Solver++ ends its run on the clean image that it predicts at the last step."""
    run = record_trajectory(adapter, sae, lambda: draw(adapter, guidance=guidance))
    assert run.clean.shape == (N_STEPS, 2, 4, 16, 16)
    torch.testing.assert_close(run.clean[-1], run.final, rtol=1e-3, atol=1e-3)
    assert (run.clean[0] - run.final).abs().max() > 1e-2


def test_nothing_is_left_behind(adapter, sae):
    def broken() -> torch.Tensor:
        draw(adapter, n_steps=2)
        raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match="out of paper"):
        record_trajectory(adapter, sae, broken)
    assert "step" not in vars(adapter.pipe.scheduler)
    assert not adapter.hook_module(6)._forward_hooks


def test_a_run_without_steps(adapter, sae):
    with pytest.raises(TideError, match="0 calls for the prompt in 0 steps; let it draw in two steps or more"):
        record_trajectory(adapter, sae, lambda: torch.zeros(1, 4, 16, 16))


# -- comparing --------------------------------------------------------------------------------------------


def dense(run: Trajectory, i: int) -> torch.Tensor:
    return Codes(run.codes[i].values.float(), run.codes[i].indices).dense(run.n_latents)


def test_changes_are_those_of_the_dense_latents(run, monkeypatch):
    monkeypatch.setattr("tide.interpretation.trajectory.PIECE", 10 * 96)  # pieces of ten rows, the last one shorter
    cosine, mse = step_changes(run)
    assert cosine.shape == mse.shape == (N_STEPS - 1, 2)
    for i in range(N_STEPS - 1):
        a, b = dense(run, i), dense(run, i + 1)
        expected = F.cosine_similarity(a, b).view(2, 64).mean(1)
        torch.testing.assert_close(cosine[i], expected)
        torch.testing.assert_close(mse[i], (a - b).square().mean(1).view(2, 64).mean(1))
    raw = raw_step_changes(run)
    a, b = run.raw[0].float(), run.raw[1].float()
    torch.testing.assert_close(raw.cosine[0], F.cosine_similarity(a, b, dim=-1).mean(1))


def test_a_run_is_at_no_distance_from_itself_and_at_some_from_another(adapter, sae, run):
    same = run_distances(run, run)
    torch.testing.assert_close(same.cosine, torch.ones(N_STEPS, 2))
    assert not same.mse.any()
    other = run_distances(run, record_trajectory(adapter, sae, lambda: draw(adapter, seed=50)))
    assert (other.cosine < 0.99).all()
    assert (other.mse > 0).all()


def test_tokens_without_any_latent():
    """Two empty tokens are alike, an empty and a full one are not."""
    empty = Codes(torch.zeros(2, 3), torch.full((2, 3), -1, dtype=torch.int32))
    half = Codes(torch.tensor([[1.0, 0, 0], [0, 0, 0]]), torch.tensor([[4, -1, -1], [-1, -1, -1]], dtype=torch.int32))
    raw = torch.zeros(2, 1, 2, 5)
    run = Trajectory(torch.tensor([9.0, 1.0]), [empty, half], raw, raw, raw[0], 8)
    assert step_changes(run).cosine.item() == 0.5
    assert raw_step_changes(run).cosine.item() == 1.0


def test_runs_that_do_not_fit(adapter, sae, run):
    longer = record_trajectory(adapter, sae, lambda: draw(adapter, n_steps=3))
    with pytest.raises(TideError, match="draw both with the same SAE, sizes and schedule"):
        run_distances(run, longer)


def test_shares_of_the_active_latents(run):
    level = torch.arange(96) % 3
    shares = active_shares(run, level, 4)
    assert shares.shape == (N_STEPS, 4)
    torch.testing.assert_close(shares.sum(1), torch.ones(N_STEPS))
    assert not shares[:, 3].any()
    for i in range(N_STEPS):
        active = (dense(run, i) > 0).sum(0).double()
        expected = torch.stack([active[level == j].sum() for j in range(4)]) / active.sum()
        torch.testing.assert_close(shares[i].double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("level", [torch.zeros(95).long(), torch.full((96,), 4)], ids=["too few", "out of range"])
def test_levels_that_do_not_fit(run, level):
    with pytest.raises(TideError, match=r"give each of 96 latents one of 0\.\.3"):
        active_shares(run, level, 4)
