"""What the ops refuse: the type of the error, and its message, one line that names the argument and the remedy."""

import pytest
import torch

from tide_kernels import LossWeights, decode, encode_threshold, encode_topk, modulate, tide_loss
from tide_kernels.testing import random_problem

N, D, LATENTS = 6, 4, 10
HALF = torch.zeros(LATENTS, dtype=torch.float32)

JUMP = {"activation": "jumprelu"}
BATCH = {"activation": "batch_topk"}

BAD_LOSS = [
    ({"x": torch.zeros(N, D, dtype=torch.int64)}, TypeError, r"x is int64: pass a tensor of float16"),
    ({"x": [1.0]}, TypeError, r"x is list: pass a tensor"),
    ({"x": torch.zeros(2, 3, D)}, ValueError, r"x has shape \[2, 3, 4\]: reshape it to \[n_tokens, d"),
    ({"W_enc": torch.zeros(LATENTS, D + 1)}, ValueError, r"W_enc .*\[10, 5\].*\[n_latents, 4\]"),
    ({"W_dec": torch.zeros(LATENTS + 1, D)}, ValueError, r"W_dec .*\[11, 4\].*\[10, 4\]"),
    ({"W_dec": torch.zeros(LATENTS, D).half()}, TypeError, r"W_enc .*W_dec .*one dtype"),
    ({"W_dec": torch.zeros(LATENTS, D, device="meta")}, ValueError, r"W_dec is on meta and not on cpu"),
    ({"b_enc": torch.zeros(D)}, ValueError, r"b_enc .*\[10\]"),
    ({"b_dec": torch.zeros(LATENTS)}, ValueError, r"b_dec .*\[4\]"),
    ({"k": 0}, ValueError, r"k = 0 .* from 1 to n_latents = 10"),
    ({"k": LATENTS + 1}, ValueError, r"k = 11 .* from 1 to n_latents = 10"),
    ({"k": 2.0}, TypeError, r"k is a float: pass an int"),
    ({"k": True}, TypeError, r"k is a bool: pass an int"),
    ({"scale": torch.zeros(3, D + 1)}, ValueError, r"scale .*\[groups, 4\]"),
    ({"scale": torch.zeros(3, D), "shift": torch.zeros(2, D)}, ValueError, r"scale has 3 groups, shift 2"),
    ({"group": None}, ValueError, r"3 groups: pass group"),
    ({"group": torch.zeros(N)}, TypeError, r"group is float32: pass a tensor of int32 or int64"),
    ({"group": [0] * N}, TypeError, r"group is list"),
    ({"group": torch.zeros(N + 1, dtype=torch.int64)}, ValueError, r"group .*\[6\]"),
    ({"group": torch.full((N,), 3)}, ValueError, r"group holds 3, scale and shift 3 rows"),
    ({"group": torch.full((N,), -1)}, ValueError, r"group holds -1"),
    ({"x": torch.zeros(N - 1, D), "group": torch.zeros(N - 1, dtype=torch.int32), "paired": True},
     ValueError, r"odd number of rows, 5: pass both rows"),
    ({"x": torch.zeros(N, D, requires_grad=True)}, ValueError, r"x requires grad.*compose encode_topk"),
    ({"weights": LossWeights(temporal=1.0)}, ValueError, r"temporal .*paired=True"),
    ({"weights": LossWeights(auxk=1.0)}, ValueError, r"auxk .*pass dead and k_aux"),
    ({"weights": LossWeights(auxk=1.0), "dead": HALF > 0}, ValueError, r"auxk .*pass dead and k_aux"),
    ({"dead": HALF}, TypeError, r"dead is float32: pass a tensor of bool"),
    ({"dead": torch.ones(3, dtype=torch.bool)}, ValueError, r"dead .*\[10\]"),
    ({"k_aux": LATENTS + 1}, ValueError, r"k_aux = 11"),
    ({"dead_bucket": 0}, ValueError, r"dead_bucket = 0 is out of range: pass one at least 1"),
    ({"dead_bucket": 2.0}, TypeError, r"dead_bucket is a float: pass an int"),
    ({"delta": 0.0}, ValueError, r"delta = 0.0 .*above 0"),
    ({"soft_eps": float("nan")}, ValueError, r"soft_eps = nan"),
    ({"soft_eps": 1e-20}, ValueError, r"soft_eps = 1e-20 .*from 1e-09 to 1e\+09"),
    ({"soft_eps": 1e20}, ValueError, r"soft_eps = 1e\+20"),
    ({"s_target": float("nan")}, ValueError, r"s_target = nan .*finite"),
    ({"weights": (1.0, 1.0, 0.0, 0.0, 0.0)}, TypeError, r"weights is a tuple: pass LossWeights"),
    ({"weights": LossWeights(cosine=float("inf"))}, ValueError, r"weights.cosine = inf .*finite"),
    ({"gradients": {"x": torch.zeros(N, D)}}, ValueError, r"gradients names 'x'.*use W_enc, b_enc"),
    ({"gradients": {"b_dec": torch.zeros(D).half()}}, TypeError, r"gradients\['b_dec'\] is float16: .*float32"),
    ({"gradients": {"b_dec": torch.zeros(2 * D)[::2]}}, ValueError, r"gradients\['b_dec'\] is not contiguous"),
    ({"gradients": {"b_dec": torch.zeros(LATENTS)}}, ValueError, r"gradients\['b_dec'\] has shape"),
    ({"start": 0.0}, ValueError, r"start is about the buffers .*: pass gradients"),
    ({"start": float("nan"), "gradients": {}}, ValueError, r"start = nan .*finite"),
    ({"squares": torch.zeros(())}, ValueError, r"squares is about the buffers .*: pass gradients"),
    ({"squares": torch.zeros(()), "gradients": {}}, TypeError, r"squares is float32: pass a tensor of float64"),
    ({"squares": torch.zeros(2).double(), "gradients": {}}, ValueError, r"squares has shape \[2\]"),
    ({"chunk": 0}, ValueError, r"chunk = 0 .*at least 1"),
    ({"activation": "relu"}, ValueError, r"activation 'relu' is unknown: use one of topk, batch_topk, jumprelu"),
    ({"activation": "jumprelu"}, ValueError, r"activation 'jumprelu' needs thresholds: pass threshold"),
    ({"threshold": HALF}, ValueError, r"activation 'topk' has no thresholds: leave threshold out"),
    ({"activation": "batch_topk", "k": LATENTS + 1}, ValueError, r"k = 11 .* from 1 to n_latents = 10"),
    (JUMP | {"threshold": 0.5}, TypeError, r"threshold is float: pass a tensor of float16"),
    (JUMP | {"threshold": torch.zeros(D)}, ValueError, r"threshold has shape \[4\]: reshape it to \[10\]"),
    (JUMP | {"threshold": torch.zeros(1, 1, LATENTS)}, ValueError, r"threshold .*\[\], \[10\] or \[groups, 10\]"),
    (JUMP | {"threshold": torch.zeros(2, LATENTS)}, ValueError, r"threshold has 2 groups, scale and shift 3: give all"),
    (JUMP | {"threshold": HALF - 1}, ValueError, r"threshold holds -1: pass numbers of at least 0"),
    (JUMP | {"threshold": HALF * torch.nan}, ValueError, r"threshold holds nan: pass numbers of at least 0"),
    (JUMP | {"threshold": HALF, "bandwidth": 0.0}, ValueError, r"bandwidth = 0.0 .*above 0"),
    (BATCH | {"threshold": 0.5}, TypeError, r"threshold is float: pass a tensor of float16"),
    (BATCH | {"threshold": torch.ones(D)}, ValueError, r"threshold has shape \[4\]: reshape it to \[10\]"),
    (BATCH | {"threshold": torch.ones(2, LATENTS)}, ValueError, r"threshold has 2 groups, scale and shift 3: give all"),
    (BATCH | {"threshold": HALF}, ValueError, r"threshold holds 0: pass finite numbers above 0"),
    (BATCH | {"threshold": HALF - 1}, ValueError, r"threshold holds -1: pass finite numbers above 0"),
    (BATCH | {"threshold": HALF + torch.nan}, ValueError, r"threshold holds nan: pass finite numbers above 0"),
    (BATCH | {"threshold": HALF + torch.inf}, ValueError, r"threshold holds inf: pass finite numbers above 0"),
    (BATCH | {"threshold": HALF + 1, "bandwidth": 0.0}, ValueError, r"bandwidth = 0.0 .*above 0"),
    ({"activation": "batch_topk", "capacity": LATENTS + 1}, ValueError, r"capacity = 11 .*n_latents = 10"),
    ({"backend": "cuda"}, ValueError, r"backend 'cuda' is unknown: use one of auto, "),
    ({"regime": "fast"}, ValueError, r"regime 'fast' is unknown: use one of auto, sparse, dense"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "error", "message"), BAD_LOSS, ids=[case[2] for case in BAD_LOSS])
def test_tide_loss(changed, error, message):
    p = random_problem(N, D, LATENTS, 2, groups=3, dtype=torch.float32)
    with pytest.raises(error, match=message) as raised:
        tide_loss(**p.arguments() | changed)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("soft_eps", [1e-9, 1e9])
def test_the_ends_of_soft_eps_give_finite_gradients(soft_eps, regime):
    """Its fourth power is a number in float32, also where a place is unused."""
    p = random_problem(N, D, LATENTS, 8, dtype=torch.float32)
    terms = tide_loss(**p.arguments(), weights=LossWeights(sparsity=1.0), soft_eps=soft_eps, regime=regime)
    terms.total.backward()
    assert terms.total.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in p.parameters().values())


def test_x_may_require_grad_where_no_gradient_is_taken():
    p = random_problem(N, D, LATENTS, 2)
    with torch.no_grad():
        tide_loss(**p.arguments() | {"x": p.x.requires_grad_()})


def test_encode_topk():
    p = random_problem(N, D, LATENTS, 2, groups=3)
    with pytest.raises(ValueError, match=r"k = 11"):
        encode_topk(p.x, p.W_enc, p.b_enc, LATENTS + 1)
    with pytest.raises(ValueError, match=r"group holds 3"):
        encode_topk(p.x, p.W_enc, p.b_enc, 2, scale=p.scale, group=torch.full((N,), 3))


@pytest.mark.parametrize(
    ("threshold", "error", "message"),
    [
        (-0.5, ValueError, r"threshold holds -0.5: pass numbers of at least 0"),
        (float("nan"), ValueError, r"threshold = nan .*finite"),
        ([0.5], TypeError, r"threshold is list: pass a number or a tensor"),
        (torch.zeros(LATENTS + 1), ValueError, r"threshold has shape \[11\]: reshape it to \[10\]"),
        (torch.full((LATENTS,), float("nan")), ValueError, r"threshold holds nan"),
        (torch.zeros(LATENTS).long(), TypeError, r"threshold is int64: pass a tensor of float16"),
        (torch.zeros(3, LATENTS), ValueError, r"threshold has 3 groups: pass group, an index per token"),
    ],
    ids=["negative", "NaN", "a list", "of another size", "a tensor of NaN", "integers", "no group"],
)
def test_encode_threshold(threshold, error, message):
    p = random_problem(N, D, LATENTS, 2, modulated=False)
    with pytest.raises(error, match=message) as raised:
        encode_threshold(p.x, p.W_enc, p.b_enc, threshold)
    assert "\n" not in str(raised.value)


def test_groups_of_thresholds_are_checked_without_modulation():
    p = random_problem(N, D, LATENTS, 2, modulated=False)
    with pytest.raises(ValueError, match=r"group holds 3, threshold 3 rows: number groups from 0"):
        encode_threshold(p.x, p.W_enc, p.b_enc, torch.zeros(3, LATENTS), group=torch.full((N,), 3))


@pytest.mark.parametrize("capacity", [0, LATENTS + 1])
def test_the_capacity_is_checked(capacity):
    p = random_problem(N, D, LATENTS, 2)
    with pytest.raises(ValueError, match=rf"capacity = {capacity} is out of range: pass one from 1 to n_latents = 10"):
        encode_threshold(p.x, p.W_enc, p.b_enc, 0.5, capacity=capacity)


def test_modulate():
    p = random_problem(N, D, LATENTS, 2, groups=3)
    with pytest.raises(ValueError, match=r"shift has shape"):
        modulate(p.x, p.scale, p.shift[:, :2], p.group)
    with pytest.raises(TypeError, match=r"x is int64"):
        modulate(p.x.long(), p.scale, p.shift, p.group)


@pytest.mark.parametrize(
    ("values", "indices", "error", "message"),
    [
        (torch.zeros(2, 3), torch.full((2, 3), LATENTS), ValueError, r"indices holds 10 of 10 latents"),
        (torch.zeros(2, 3), torch.full((2, 3), -2), ValueError, r"indices holds -2 .*unused places by -1"),
        (torch.zeros(2, 3), torch.zeros(2, 3), TypeError, r"indices is float32: pass a tensor of int32"),
        (torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.int32), ValueError, r"indices .*\[2, 3\]"),
        (torch.zeros(2, 3).int(), torch.zeros(2, 3).int(), TypeError, r"values is int32"),
        (torch.zeros(3), torch.zeros(3).int(), ValueError, r"values .*\[n_tokens, k\]"),
        (torch.zeros(2, 0), torch.zeros(2, 0).int(), ValueError, r"values has no places"),
    ],
    ids=["beyond n", "below -1", "float indices", "shapes differ", "int values", "one dimension", "k=0"],
)
def test_decode(values, indices, error, message, regime):
    with pytest.raises(error, match=message):
        decode(values, indices, torch.zeros(LATENTS, D), regime=regime)
