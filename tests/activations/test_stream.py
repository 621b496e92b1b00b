"""The live stream: fixed-size mixed batches with all that belongs to their rows."""

from __future__ import annotations

import gc
import sys
from collections import Counter, deque
from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tide.activations.batch import ActivationBatch
from tide.activations.block_batch import BlockBatch
from tide.activations.stream import HELD, ActivationBuffer, LiveStream, cut, shuffled, stream
from tide.errors import TideError

BLOCK = 6


def collected(n_batches: int, n: int = 20, *, paired: bool = True, first: int = 0) -> list[ActivationBatch]:
    """Row r of batch b has x = timestep + token / 1000 and its sample number is b."""
    out = []
    for b in range(first, first + n_batches):
        timestep = torch.tensor([10.0 * b, 10.0 * b + 1])
        group = torch.arange(n, dtype=torch.int32) % 2
        token = torch.arange(n, dtype=torch.int32) // 2
        out.append(
            ActivationBatch(
                x=(timestep[group.long()] + token / 1000)[:, None],
                timestep=timestep,
                group=group,
                conditioning=-timestep[:, None],
                sample=torch.full((n,), b),
                token=token,
                paired=paired,
            )
        )
    return out


def check_rows(batch: ActivationBatch) -> None:
    timestep = batch.timestep[batch.group.long()]
    torch.testing.assert_close(batch.x[:, 0], timestep + batch.token / 1000)
    torch.testing.assert_close(batch.conditioning[batch.group.long(), 0], -timestep)
    assert len(batch.timestep) == len(batch.group.unique())
    if batch.paired:
        assert torch.equal(batch.token[::2], batch.token[1::2])
        torch.testing.assert_close(timestep[1::2], timestep[::2] + 1)


@pytest.mark.parametrize("paired", [True, False])
def test_every_row_once_in_fixed_size_batches(paired):
    batches = list(stream(collected(10, paired=paired), 16, buffer_rows=64))
    assert [len(b) for b in batches] == [16] * 12  # 200 rows, 8 left out
    for batch in batches:
        assert batch.paired is paired
        check_rows(batch)
    seen = torch.cat([b.x[:, 0] for b in batches])
    assert len(seen.unique()) == len(seen) == 192


def test_mixes_samples_and_stays_within_the_buffer():
    taken = []

    def source():
        for batch in collected(40):
            taken.append(len(batch))
            yield batch

    given = 0
    for batch in stream(source(), 16, buffer_rows=100):
        assert len(batch.sample.unique()) >= 3
        given += len(batch)
        assert sum(taken) - (given - len(batch)) <= 100 + 20
    assert given == 800


def test_deterministic_by_seed():
    one, two, other = (torch.cat([b.x for b in stream(collected(10), 16, buffer_rows=64, seed=s)]) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_function_of_the_epoch_has_no_end():
    epochs = []

    def source(epoch):
        epochs.append(epoch)
        return collected(2, first=2 * epoch)

    batches = stream(source, 10, buffer_rows=40)
    samples = torch.cat([next(batches).sample for _ in range(30)])
    assert epochs[:5] == [0, 1, 2, 3, 4]
    assert samples.max() > 12


def test_buffer():
    buffer = ActivationBuffer(64)
    for batch in collected(2):
        buffer.add(batch)
    assert len(buffer) == 40
    first = buffer.draw(30)
    check_rows(first)
    assert len(buffer) == 10
    buffer.add(collected(1, first=5)[0])
    second = buffer.draw(30)
    check_rows(second)
    assert len(buffer) == 0
    assert len(torch.cat([first.x, second.x]).unique()) == 60
    with pytest.raises(TideError, match="1 rows asked for and the buffer holds 0"):
        buffer.draw(1)


def test_bad_input():
    for match, arguments, kwargs in [
        ("would separate a pair", (collected(3), 3), {}),
        ("batch_size 0 does not fit", (collected(3), 0), {}),
        (r"batch_size 40 does not fit; give 1\.\.32", (collected(3), 40), {"buffer_rows": 64}),
        ("a buffer of 1 rows", (collected(3), 1), {"buffer_rows": 1}),
        ("no activations in epoch 0", (lambda epoch: [], 4), {}),
    ]:
        with pytest.raises(TideError, match=match):
            next(stream(*arguments, **kwargs))


# -- a stream that can be resumed ---------------------------------------------------------------------------


def passes(seed: int, start: int, *, n_samples: int, per_pass: int, rows: int, paired: bool = True):
    """Passes of ``per_pass`` samples from ``start`` on, as collection cuts them; x tells pass, sample and epoch."""
    for first in range(start, n_samples, per_pass):
        batches = []
        for sample in range(first, min(first + per_pass, n_samples)):
            (batch,) = collected(1, rows, first=sample, paired=paired)
            batch.x = batch.x + (seed % 1000) + 1e4 * (min(first + per_pass, n_samples) - first)
            batches.append(batch)
        yield BlockBatch({BLOCK: ActivationBatch.cat(batches)})


@settings(max_examples=60, deadline=None)
@given(
    n_samples=st.integers(1, 30),
    per_pass=st.integers(1, 9),
    rows=st.integers(1, 5).map(lambda n: 2 * n),
    batch=st.integers(1, 70).map(lambda n: 2 * n),
    buffer=st.sampled_from([1, 40, 100, 10**6]),
    reuse=st.integers(1, 3),
    start=st.integers(0, 40),
)
def test_a_live_stream_goes_on_from_any_step_with_the_same_bits(n_samples, per_pass, rows, batch, buffer, reuse, start):
    asked = []

    def collect(seed: int, first: int):
        asked.append(first)
        return passes(seed, first, n_samples=n_samples, per_pass=per_pass, rows=rows)

    sizes = {"n_samples": n_samples, "rows_per_sample": rows, "per_pass": per_pass, "buffer_rows": buffer}
    live = LiveStream(collect, batch, **sizes, seed=3, reuse=reuse)
    whole = list(islice(live.from_step(0), start + 3))
    assert set(asked) == {0}
    asked.clear()
    for resumed, uninterrupted in zip(islice(live.from_step(start), 3), whole[start:], strict=True):
        one, other = resumed[BLOCK], uninterrupted[BLOCK]
        assert len(one) == batch
        assert one.paired
        for name in ("x", "sample", "token", "group", "timestep", "conditioning"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    # Collected again from the window of that batch on: no more than a window, or a pass, before its first row.
    first_row = start * batch % (n_samples * rows * reuse)
    assert asked[0] * rows * reuse <= first_row < (asked[0] * rows + max(buffer, per_pass * rows)) * reuse
    assert asked[0] % per_pass == 0


def test_the_passes_of_one_window_are_read_ahead():
    """Three windows of 4, 4 and 2 samples in passes of 2: two passes at the most."""
    asked = []

    def ahead(passes, depth):
        asked.append(depth)
        yield from passes

    sizes = {"n_samples": 10, "rows_per_sample": 20, "per_pass": 2, "buffer_rows": 80}

    def batches(**more):
        live = LiveStream(
            lambda seed, first: passes(seed, first, n_samples=10, per_pass=2, rows=20), 50, **sizes, **more
        )
        return [each[BLOCK].x for each in islice(live.from_step(1), 8)]

    assert all(map(torch.equal, batches(ahead=ahead), batches()))
    assert asked == [2]


@pytest.mark.parametrize("reuse", [1, 2])
def test_how_many_windows_of_rows_are_held_at_most(monkeypatch, reuse):
    """While rows are mixed: those that are trained on, those of the passes, and those in their new order; and the
    next ones, where the thread that reads ahead has been fast."""
    held = []

    def seven_wide():
        return [each for each in gc.get_objects() if type(each) is torch.Tensor and each.shape[1:] == (7,)]

    others = seven_wide()  # kept alive, so that no tensor of this test gets the identity of one of them
    of_others = {id(each) for each in others}

    def counting(batch, generator):
        mixed = shuffled(batch, generator)
        tensors = [each for each in seven_wide() if id(each) not in of_others]
        memory = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        held.append(sum(memory.values()))
        return mixed

    def wide(seed, first):
        for each in passes(seed, first, n_samples=40, per_pass=2, rows=10):
            yield BlockBatch({BLOCK: replace(each[BLOCK], x=each[BLOCK].x.expand(-1, 7).contiguous())})

    def full(passes, depth):
        read = deque(islice(passes, depth))
        while read:
            yield read.popleft()
            read.extend(islice(passes, 1))

    monkeypatch.setattr(sys.modules[LiveStream.__module__], "shuffled", counting)
    sizes = {"n_samples": 40, "rows_per_sample": 10, "per_pass": 2, "buffer_rows": 100}
    live = LiveStream(wide, 50, **sizes, reuse=reuse, ahead=full)
    for batch in islice(live.from_step(0), 40 * reuse):
        assert len(batch[BLOCK]) == 50  # held until the next, as a training does
    assert max(held) == (HELD * 100 - 20) * 7 * 4  # the read-ahead lacks the pass that was taken last


def test_a_live_stream_gives_every_row_once_an_epoch():
    live = LiveStream(
        lambda seed, first: passes(seed, first, n_samples=10, per_pass=4, rows=20),
        50,
        n_samples=10,
        rows_per_sample=20,
        per_pass=4,
        buffer_rows=80,
    )
    assert live.bounds == [0, 4, 8, 10]
    epochs = [[each[BLOCK] for each in islice(live.from_step(first), 4)] for first in (0, 4)]
    for epoch in epochs:
        counts = Counter((int(s), int(t)) for b in epoch for s, t in zip(b.sample, b.token, strict=True))
        assert counts == {(sample, token): 2 for sample in range(10) for token in range(10)}
    assert not torch.equal(epochs[0][0].x, epochs[1][0].x)
    assert len(epochs[0][0].sample.unique()) >= 3


def test_rows_are_used_again_in_another_order_before_the_next_pass():
    asked = []

    def collect(seed: int, first: int):
        for batch in passes(seed, first, n_samples=10, per_pass=5, rows=20):
            asked.append(batch)
            yield batch

    sizes = {"n_samples": 10, "rows_per_sample": 20, "per_pass": 5, "buffer_rows": 100}
    stream_of = LiveStream(collect, 100, **sizes, reuse=3).from_step(0)
    first, second, third, fourth = (next(stream_of)[BLOCK] for _ in range(4))
    assert len(asked) == 2  # the fourth batch is the first of the second pass
    rows = [sorted(each.x[:, 0].tolist()) for each in (first, second, third)]
    assert rows[0] == rows[1] == rows[2] != sorted(fourth.x[:, 0].tolist())
    assert not torch.equal(first.x, second.x)
    assert not torch.equal(second.x, third.x)
    once = next(LiveStream(collect, 100, **sizes).from_step(0))[BLOCK]
    assert torch.equal(once.x, first.x)


def test_cut_keeps_the_order_and_every_row():
    pieces = collected(5, 20)
    batches = list(cut(pieces, 36))
    assert [len(batch) for batch in batches] == [36, 36, 28]
    assert torch.equal(torch.cat([b.x for b in batches]), torch.cat([p.x for p in pieces]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"rows": 0}, "rows = 0 is too small; give at least 1"),
        ({"n_samples": 0}, "n_samples = 0 is too small"),
        ({"rows": 5}, "a batch of 5 rows would separate a pair; give an even number"),
        ({"n_samples": 11}, "the data gave 200 rows where 220 were announced"),
        ({"n_samples": 9}, "the data gave 200 rows where 180 were announced"),
        ({"rows_per_sample": 22}, "the data gave 200 rows where 220 were announced"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_a_live_stream_of_other_sizes_than_announced_is_refused(sizes, message):
    arguments = {"rows": 10, "n_samples": 10, "rows_per_sample": 20, "per_pass": 4, **sizes}
    with pytest.raises(TideError, match=message):
        list(
            islice(
                LiveStream(
                    lambda seed, first: passes(seed, first, n_samples=10, per_pass=4, rows=20), **arguments
                ).from_step(0),
                50,
            )
        )
