"""What a GPU's trainer reads one step late: here the same logic on a CPU."""

from __future__ import annotations

import math
import signal
from itertools import count

import pytest
import torch

from tests.helpers.ranks import run_ranks
from tests.helpers.trainings import ROWS, assert_same, batch, model, state, stream, trainer
from tide.errors import Interrupted, TideError
from tide.sae import TIDE
from tide.sae.revival import Revival
from tide.training import LossConfig, RevivalConfig
from tide.training.dead import DeadBucket
from tide.world import World
from tide_kernels.dead import bucket_for


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
        sizes.append(bucket.size(64))
        n_dead = int(revival.dead.sum())
        assert n_dead <= sizes[-1]
        assert sizes[-1] == bucket_for(sizes[-1])
        revival.count((torch.rand(200, generator=generator) > 0.5 + 0.5 * quiet).long(), 64)
        bucket.count(64)
    assert sizes[0] == 1
    assert max(sizes) > 8


def sizes_in_a_row() -> list[int | None]:
    """The sizes on a rank of two that divide 200 latents, of which all of rank 1 fall silent."""
    import torch.distributed as dist

    among = World(dist.get_rank(), dist.get_world_size())
    revival, found = Revival(100, after_tokens=128), []
    bucket = DeadBucket(revival, late=True, among=among)
    for _ in range(4):
        found.append(bucket.size(64))
        revival.count(torch.full((100,), int(among.number == 0)), 64)
        bucket.count(64)
    return found


def test_ranks_that_divide_the_latents_have_one_bucket():
    """With room for the dead latents of both: a step before they count as dead it is there."""
    one, other = run_ranks(sizes_in_a_row, 2)
    assert one == other == [1, 1, bucket_for(100), bucket_for(100)]


def test_on_a_cpu_the_loss_counts():
    bucket = DeadBucket(Revival(8, 1), late=False)
    bucket.restore([3, 3])  # of a training that began on a GPU, and may go on there: by then they would be wrong
    assert bucket.counts() == []
    assert bucket.size(4) is None


AUXK = {"loss": LossConfig(auxk=0.1, k_aux=4), "revival": RevivalConfig(after_tokens=2 * ROWS, every=0)}


def rooms(job, source=stream, **how) -> list[tuple[int, int]]:
    """Of each step of a training: the bucket's size, and how many latents are dead."""
    seen, size = [], job._dead_bucket.size

    def watched(n_tokens):
        seen.append((size(n_tokens), int(job.revival.dead.sum())))
        return seen[-1][0]

    job._dead_bucket.size = watched
    late(job).fit(source, **how)
    return seen


@pytest.mark.parametrize("where", ["at a checkpoint", "before the size changes"])
def test_a_training_that_a_signal_stops_resumes_with_the_same_buckets_and_bits(tmp_path, where):
    whole = trainer(tmp_path / "a", **AUXK)
    expected = rooms(whole)
    changes = [i for i in range(21, 59) if expected[i][0] != expected[i + 1][0]]
    stopped = 20 if where == "at a checkpoint" else changes[0]

    def until_then(start):
        yield from (batch(i) for i in range(start, stopped))
        signal.raise_signal(signal.SIGINT)
        yield batch(stopped)

    with pytest.raises(Interrupted):
        late(trainer(tmp_path / "b", **AUXK)).fit(until_then)
    again = trainer(tmp_path / "b", TIDE(model().config, seed=77), **AUXK)
    assert rooms(again, resume=True) == expected[stopped:]
    assert_same(state(again.model), state(whole.model))


def test_checkpoints_change_no_bucket(tmp_path):
    often, never = (trainer(tmp_path / str(every), checkpoint_every=every, **AUXK) for every in (1, 100))
    assert rooms(often) == rooms(never)


def test_a_state_without_counts_resumes(tmp_path):
    """One of a CPU or of an older version: the first step counts, with room for all dead latents."""
    with pytest.raises(TideError, match="ended after 40"):
        trainer(tmp_path, **AUXK).fit(batch(i) for i in range(40))
    found = rooms(trainer(tmp_path, **AUXK), resume=True)
    assert len(found) == 20
    assert all(n_dead <= size for size, n_dead in found)
