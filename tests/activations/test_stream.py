"""The live stream: fixed-size mixed batches with all that belongs to their rows."""

from __future__ import annotations

import pytest
import torch

from tide.activations.batch import ActivationBatch
from tide.activations.stream import ActivationBuffer, stream
from tide.errors import TideError


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
        ("would part a pair", (collected(3), 3), {}),
        ("batch_size 0 does not fit", (collected(3), 0), {}),
        (r"batch_size 40 does not fit; give 1\.\.32", (collected(3), 40), {"buffer_rows": 64}),
        ("a buffer of 1 rows", (collected(3), 1), {"buffer_rows": 1}),
        ("no activations in epoch 0", (lambda epoch: [], 4), {}),
    ]:
        with pytest.raises(TideError, match=match):
            next(stream(*arguments, **kwargs))
