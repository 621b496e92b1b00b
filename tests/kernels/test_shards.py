"""TopK of latents that several ranks hold is TopK of all latents."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import naive
from tide_kernels.codes import Compact
from tide_kernels.dispatch import choose
from tide_kernels.ranks import Group
from tide_kernels.shards import largest_of_all
from tide_kernels.testing import adversarial_rows

SIZES = {"equal": (8, 8, 8), "one of a single latent": (11, 1, 12), "two": (3, 21)}
LATENTS = 24


class Rank(Group):
    """One of several ranks, which knows what the others give."""

    def __init__(self, number: int, everyone: list[torch.Tensor]) -> None:
        self.count, self.number, self.everyone = len(everyone), number, everyone

    def gathered(self, value: torch.Tensor) -> torch.Tensor:
        assert torch.equal(value.nan_to_num(-1.0), self.everyone[self.number].nan_to_num(-1.0))
        return torch.stack(self.everyone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("k", [1, 2, 7, LATENTS])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_what_stays_is_the_largest_of_all(sizes, k, dtype):
    pre = torch.stack(list(adversarial_rows(LATENTS, dtype).values()))
    choice = choose("reference", "dense", device=pre.device, dtype=dtype, n_latents=LATENTS, k=k)
    ops = choice.ops
    codes = [Compact(*ops.select(part, min(k, part.shape[1]))) for part in pre.split(sizes, 1)]
    everyone = [F.pad(code.values, (0, k - code.values.shape[1])) for code in codes]
    kept = [largest_of_all(ops, code, k, Rank(number, everyone)) for number, code in enumerate(codes)]
    latents = torch.cat([code.unpack(choice, size).z for code, size in zip(kept, sizes, strict=True)], 1)
    assert torch.allclose(latents, naive.topk(pre, k), rtol=0, atol=0, equal_nan=True)


def test_what_stays_is_ascending_and_unused_places_come_last():
    own = Compact(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), torch.tensor([[4, 5, 9, -1]], dtype=torch.int32))
    other = torch.tensor([[2.5, 1.5, 0.0, 0.0]])
    ops = choose("reference", "sparse", device=other.device, dtype=other.dtype, n_latents=10, k=4).ops
    values, indices = largest_of_all(ops, own, 4, Rank(0, [own.values, other]))
    assert values.tolist() == [[3.0, 2.0, 0.0, 0.0]]
    assert indices.tolist() == [[4, 9, -1, -1]]
