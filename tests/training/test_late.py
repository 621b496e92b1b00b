"""What a GPU's trainer reads one step late: here the same logic on a CPU."""

from __future__ import annotations

import math
from itertools import count

import pytest
import torch

from tests.helpers.trainings import ROWS, assert_same, batch, model, state, stream, trainer
from tide.errors import TideError
from tide.sae import TIDE
from tide.sae.revival import Revival
from tide.training import LossConfig, RevivalConfig
from tide.training.dead import DeadBucket


def late(job):
    """A trainer that checks as on a GPU."""
    job._finite.late = job._dead_bucket.late = True
    return job


def spoilt(at: int, value: float):
    for i in count():
        good = batch(i)
        if i == at:
            good.x[5, 2] = value
        yield good


def test_late_checks_change_no_result(tmp_path):
    """Clipping divides by 1 here, where a CPU does not divide."""
    early, other = trainer(tmp_path / "early"), late(trainer(tmp_path / "late"))
    early.fit(stream())
    other.fit(stream())
    assert_same(state(early.model), state(other.model))
    assert early.history == other.history


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e20], ids=["NaN", "inf", "squares overflow"])
@pytest.mark.parametrize("at", [22, 39, 59], ids=["between", "at a checkpoint", "the last"])
def test_a_bad_step_is_named_and_damages_nothing(tmp_path, value, at):
    """Neither the checkpoint nor the model's weights; a step later the message still names the bad one."""
    job, seen = late(trainer(tmp_path, log_every=1000, revival=RevivalConfig(every=0))), []
    message = f"loss is not finite at step {at}; lower lr" if value == 1e20 else "activations of block 6 hold"
    with pytest.raises(TideError, match=message):
        job.fit(spoilt(at, value), watch=lambda _, step: seen.append(step))
    assert seen[-1] == (at + 1 if at == 22 else at)  # before a checkpoint it is read at once
    assert job.saved == (at + 1 if at == 22 else at) // 20 * 20
    for each in (TIDE.from_pretrained(tmp_path), job.model):
        assert all(value.isfinite().all() for value in each.state_dict().values())


def test_a_bad_batch_revives_nothing(tmp_path):
    job = late(trainer(tmp_path, revival=RevivalConfig(after_tokens=1, every=1), log_every=1000))
    with pytest.raises(TideError, match="at timestep"):
        job.fit(spoilt(22, math.nan))
    assert job.step == 22
    assert all(value.isfinite().all() for value in job.model.state_dict().values())


# -- the bucket of dead latents ---------------------------------------------------------------------------------


def test_the_bucket_always_has_room():
    """For every latent that is dead, whatever fired in the step that has not been read yet."""
    revival = Revival(200, after_tokens=640)
    bucket = DeadBucket(revival, late=True)
    generator = torch.Generator().manual_seed(0)
    quiet = torch.rand(200, generator=generator)
    sizes = []
    for _ in range(60):
        sizes.append(bucket.size())
        n_dead = int(revival.dead.sum())
        assert n_dead <= sizes[-1]
        assert sizes[-1] & (sizes[-1] - 1) == 0
        revival.count((torch.rand(200, generator=generator) > 0.5 + 0.5 * quiet).long(), 64)
        bucket.count(64)
    assert sizes[0] == 1
    assert max(sizes) > 8


def test_on_a_cpu_the_loss_counts():
    assert DeadBucket(Revival(8, 1), late=False).size() is None


def test_the_bucket_is_the_same_after_a_resumption(tmp_path):
    """It depends on the steps since the last checkpoint alone."""
    options = {"loss": LossConfig(auxk=0.1, k_aux=4), "revival": RevivalConfig(after_tokens=2 * ROWS, every=0)}

    def sizes(job, **how):
        seen, size = [], job._dead_bucket.size
        job._dead_bucket.size = lambda: (seen.append(size()), seen[-1])[1]
        late(job).fit(stream, **how)
        return seen

    whole = sizes(trainer(tmp_path / "a", **options))
    with pytest.raises(TideError, match="ended after 40"):
        late(trainer(tmp_path / "b", **options)).fit(batch(i) for i in range(40))
    again = trainer(tmp_path / "b", TIDE(model().config, seed=77), **options)
    assert sizes(again, resume=True) == whole[40:]
    assert len(set(whole)) > 1
