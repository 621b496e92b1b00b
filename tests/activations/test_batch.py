"""Rows, groups and pairs of an activation batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tide.activations.batch import ActivationBatch
from tide.errors import TideError


def make(n: int = 8, n_groups: int = 4, *, paired: bool = False, conditioned: bool = True, **kwargs) -> ActivationBatch:
    """Row i is [i, i, i]; its group is i % n_groups, whose timestep is 100 * group."""
    return ActivationBatch(
        **{
            "x": torch.arange(n, dtype=torch.float32)[:, None].repeat(1, 3),
            "timestep": torch.arange(n_groups, dtype=torch.float32) * 100,
            "group": torch.arange(n, dtype=torch.int32) % n_groups,
            "conditioning": torch.arange(n_groups)[:, None].float() if conditioned else None,
            "sample": torch.arange(n) // 2,
            "token": torch.arange(n, dtype=torch.int32) + 10,
            "paired": paired,
            **kwargs,
        }
    )


def timesteps(batch: ActivationBatch) -> list[float]:
    return batch.timestep[batch.group.long()].tolist()


def test_take_and_compacted():
    batch = make().take(torch.tensor([7, 2, 6]))
    assert len(batch) == 3
    assert len(batch.timestep) == 4
    small = batch.compacted()
    assert small.x[:, 0].tolist() == [7, 2, 6]
    assert small.token.tolist() == [17, 12, 16]
    assert small.sample.tolist() == [3, 1, 3]
    assert timesteps(small) == timesteps(batch) == [300.0, 200.0, 200.0]
    assert small.timestep.tolist() == [200.0, 300.0]
    assert small.conditioning[small.group.long()][:, 0].tolist() == [3, 2, 2]
    assert small.group.dtype == torch.int32


@pytest.mark.parametrize(
    ("rows", "paired"),
    [
        (torch.tensor([2, 3, 6, 7]), True),
        (torch.tensor([6, 7, 0, 1]), True),
        (slice(2, 6), True),
        (torch.tensor([3, 2]), False),
        (torch.tensor([1, 2]), False),
        (slice(1, 3), False),
        (torch.tensor([0, 1, 2]), False),
        (torch.arange(8) < 4, True),
    ],
)
def test_take_keeps_pairs_or_says_that_it_did_not(rows, paired):
    assert make(paired=True).take(rows).paired is paired
    assert not make().take(rows).paired


def test_cat_keeps_every_rows_timestep():
    parts = [make(4, 2), make(6, 3).take(slice(1, 5)), make(2, 1)]
    whole = ActivationBatch.cat(parts)
    assert timesteps(whole) == [t for part in parts for t in timesteps(part)]
    assert len(whole.conditioning) == 6
    assert ActivationBatch.cat([make(paired=True), make(paired=True)]).paired
    assert not ActivationBatch.cat([make(paired=True), make()]).paired
    with pytest.raises(TideError, match="do not mix models"):
        ActivationBatch.cat([make(), make(conditioned=False)])
    with pytest.raises(TideError, match="at least one batch"):
        ActivationBatch.cat([])


def test_to_casts_activations_only():
    batch = make().to("cpu", torch.bfloat16)
    assert batch.x.dtype == torch.bfloat16
    assert (batch.timestep.dtype, batch.group.dtype, batch.sample.dtype) == (
        torch.float32,
        torch.int32,
        torch.int64,
    )
    assert make().to(dtype=torch.float64).x.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"group": torch.zeros(3, dtype=torch.int32)},
            r"group has shape \[3\]; 8 rows of activations need \[8\]",
        ),
        ({"token": torch.zeros(8, 1)}, r"token has shape \[8, 1\]"),
        ({"conditioning": torch.zeros(3, 2)}, "3 conditionings, 4 timesteps"),
    ],
)
def test_shapes_are_checked(change, match):
    with pytest.raises(TideError, match=match):
        make(**change)


def test_pairs_need_an_even_number_of_rows():
    with pytest.raises(TideError, match="keep pairs together"):
        make(7, paired=True)


@pytest.mark.parametrize(("value", "name"), [(float("nan"), "NaN"), (float("inf"), "inf"), (-float("inf"), "inf")])
def test_check_finite(value, name):
    batch = make()
    batch.check_finite("block 6")
    batch.x[5, 2] = value
    with pytest.raises(TideError) as error:
        batch.check_finite("block 6")
    assert str(error.value) == (
        f"activations of block 6 hold {name} at timestep 100; use a wider dtype (bf16 instead of fp16) or another block"
    )


def test_finite_values_whose_sum_overflows_pass():
    make(x=torch.full((8, 3), 3e38)).check_finite("block 6")


def with_targets(**kwargs) -> ActivationBatch:
    """Row i has the target [-i, -i, -i]."""
    batch = make(**kwargs)
    return replace(batch, target=-batch.x)


def test_targets_stay_with_their_rows():
    batch = with_targets()
    changed = [
        batch.take(torch.tensor([7, 2, 6])),
        batch.take(slice(3, 5)).compacted(),
        batch.merged(),
        ActivationBatch.cat([batch.take(slice(4, None)), batch]),
        batch.to(dtype=torch.float64),
    ]
    for each in changed:
        assert torch.equal(each.target, -each.x)
        assert each.target.dtype == each.x.dtype
        assert each.wanted is each.target
    assert make().wanted is not None
    assert make().take(slice(2)).target is None


def test_bad_targets():
    with pytest.raises(TideError, match=r"^targets have shape \[7, 3\] and x \[8, 3\]; give x's shape$"):
        make(target=torch.zeros(7, 3))
    with pytest.raises(TideError, match=r"^some activations have targets and some have none; collect all in one way$"):
        ActivationBatch.cat([make(), with_targets()])
    bad = with_targets()
    bad.target[5, 1] = float("nan")
    with pytest.raises(TideError, match=r"^activations of block 6 hold NaN at timestep 100; use a wider dtype"):
        bad.check_finite("block 6")
