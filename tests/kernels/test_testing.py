"""The helpers of kernel tests: a comparison that fails where it should, poison, and problems."""

import pytest
import torch

from tide_kernels.testing import adversarial_rows, assert_close, poisoned, random_problem

WANTED = torch.tensor([3.0, -4.0, 0.0, 5.0])


def test_the_tolerance_is_relative_to_the_rms():
    rms = float(WANTED.square().mean().sqrt())
    off = torch.tensor([0.0, 0.0, 1e-3, 0.0])
    assert_close(WANTED + off, WANTED, 1.01e-3 / rms)
    with pytest.raises(AssertionError, match=r"grad: 0\.001 at \[2\], not 0; off by .* of the RMS 3\.54"):
        assert_close(WANTED + off, WANTED, 0.99e-3 / rms, "grad")


def test_dtypes_may_differ():
    assert_close(WANTED.half(), WANTED.double(), 0.0)


def test_shapes_may_not_differ():
    with pytest.raises(AssertionError, match=r"result: shape \[1, 4\], not \[4\]"):
        assert_close(WANTED[None], WANTED, 1.0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_elements_that_are_not_finite_have_to_be_the_same(value):
    odd = WANTED.clone()
    odd[1] = value
    assert_close(odd, odd, 0.0)
    for got, want in ((odd, WANTED), (WANTED, odd), (-odd.nan_to_num(posinf=torch.inf), odd)):
        with pytest.raises(AssertionError, match="non-finite elements differ"):
            assert_close(got, want, 1.0)


def test_zeros_have_to_be_met_exactly():
    assert_close(torch.zeros(3), torch.zeros(3), 1.0)
    with pytest.raises(AssertionError):
        assert_close(torch.full((3,), 1e-30), torch.zeros(3), 1.0)


def test_tensors_without_elements_are_equal():
    assert_close(torch.empty(0, 3), torch.empty(0, 3), 0.0)


def test_poison_shows():
    assert poisoned((2, 3), torch.float16).isnan().all()
    assert (poisoned((2, 3), torch.int32) == torch.iinfo(torch.int32).min).all()


def test_equal_arguments_make_equal_problems():
    first, second = (random_problem(4, 3, 8, 2, groups=3, seed=5) for _ in range(2))
    for name, value in first.arguments().items():
        assert value == second.k if name == "k" else torch.equal(value, second.arguments()[name]), name
    assert all(parameter.requires_grad for parameter in first.parameters().values())
    assert not torch.equal(random_problem(4, 3, 8, 2).x, random_problem(4, 3, 8, 2, seed=1).x)


def test_a_problem_may_lack_modulation_and_biases():
    p = random_problem(4, 3, 8, 2, modulated=False, biases=False)
    assert set(p.parameters()) == {"W_enc", "W_dec"}
    assert p.group is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_adversarial_rows_are_what_their_names_say(dtype):
    rows = adversarial_rows(40, dtype)
    assert all(row.shape == (40,) and row.dtype == dtype for row in rows.values())
    assert not (rows["all negative"] >= 0).any()
    assert rows["all NaN"].isnan().all()
    assert rows["all negative zero"].signbit().all()
    assert (rows["one positive, last"] > 0).nonzero().tolist() == [[39]]
    signs = rows["NaN of both signs"][rows["NaN of both signs"].isnan()].signbit()
    assert signs.any()
    assert not signs.all()
