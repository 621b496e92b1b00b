# %% [markdown]
# # Write a backend
#
# `tide_kernels` computes the loss of a sparse autoencoder and its gradients. The backward pass is written once, over
# small functions called *primitives*: `select`, `gather`, `scatter` and some more. A *backend* is an object that
# brings its own version of some primitives. Plain PyTorch code, the *reference*, serves the others.
#
# This notebook writes a backend with one primitive, finds the mistakes in it, checks gradients, and times it. It
# needs a CPU and less than a minute. What it does for one primitive, you would do for each one of a real backend.

# %%
import statistics
import time

import torch

import tide_kernels
from tide_kernels import LossWeights, encode_topk, reference, tide_loss
from tide_kernels.dispatch import Primitives
from tide_kernels.testing import adversarial_rows, assert_close, random_problem

for name, reason in tide_kernels.backend_status().items():
    print(f"{name:10} {'can run here' if reason is None else reason}")

# %% [markdown]
# ## The contract
#
# `tide_kernels/reference.py` is the contract: what a primitive does there, it has to do in every backend. `select`
# keeps the k largest entries of each row. Its docstring has the details that matter.

# %%
print(reference.select.__doc__)

# %% [markdown]
# ## A first attempt
#
# `torch.topk` finds the k largest, so this looks right. A backend also says whether it can run on this machine
# (`unavailable`) and whether it can serve a problem (`refuses`). Both answer None for "yes", or a reason.


# %%
class WithTopk:
    """A backend with one primitive."""

    def unavailable(self):
        return None

    def refuses(self, device, dtype, n_latents, k):
        return None if device.type == "cpu" else "it is a toy for CPUs"

    def select(self, pre, k):
        values, indices = pre.topk(k, dim=1)
        indices, order = indices.sort(dim=1)
        return values.gather(1, order), indices.int()


pre = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
for got, wanted in zip(WithTopk().select(pre, 8), reference.select(pre, 8), strict=True):
    assert torch.equal(got, wanted)
print("On random numbers it agrees with the reference.")

# %% [markdown]
# Random numbers are kind: they have no ties, no NaN, and enough positive entries. `adversarial_rows` are rows on
# which selections tend to go wrong. A value at an unused place (index -1) does not count, so both sides set it to 0.


# %%
def same_code(got, wanted):
    """Whether two codes have the same indices and, where a place is used, the same values."""
    used = wanted[1] >= 0
    values = (torch.where(used, each[0], 0) for each in (got, wanted))
    return torch.equal(got[1], wanted[1]) and torch.allclose(*values, rtol=0, atol=0, equal_nan=True)


def failures(backend, n_latents=40, ks=(1, 7, 40)):
    """Names of the rows on which a backend's selection is not the reference's."""
    found = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for name, row in adversarial_rows(n_latents, dtype).items():
            for k in ks:
                pre = row.repeat(3, 1)
                if not same_code(backend.select(pre, k), reference.select(pre, k)):
                    found.append(name)
    return sorted(set(found))


wrong = failures(WithTopk())
print(f"{len(wrong)} kinds of rows go wrong:", ", ".join(wrong))
assert "all negative" in wrong
assert "few levels, many ties" in wrong

# %% [markdown]
# It keeps negative numbers, which the ReLU removes, and of equal numbers it keeps any. Both would matter: the
# backends of this package select the same latents for the same numbers, so a run can move from one to another.
#
# ## A correct one
#
# A *stable* sort keeps equal numbers in their order, so ties go to the lowest index. What is not positive becomes an
# unused place. PyTorch's sort takes NaN for the largest number, as the contract asks.


# %%
class WithSort(WithTopk):
    """The same with a stable sort."""

    def select(self, pre, k):
        values, indices = (each[:, :k] for each in pre.sort(dim=1, descending=True, stable=True))
        used = (values > 0) | values.isnan()
        indices, order = torch.where(used, indices, pre.shape[1]).sort(dim=1)  # unused places last
        used = indices < pre.shape[1]
        values = torch.where(used, values.gather(1, order), 0)
        return values, torch.where(used, indices, -1).int()


assert failures(WithSort()) == []
print("All rows agree, in float32, float64 and bfloat16.")

# %% [markdown]
# ## Make it known
#
# `register_backend` takes an object or the name of a module. A name can be registered once. With `first=False` the
# backend is tried after the others when `backend="auto"`; asked for by name, it always serves.

# %%
if "sorted" not in tide_kernels.backend_status():  # this cell can be run again
    tide_kernels.register_backend("sorted", WithSort(), first=False)

own = Primitives.of(WithSort())
served = [
    name for name in ("gather", "sampled", "transpose", "scatter") if getattr(own, name) is getattr(reference, name)
]
print("The reference serves", ", ".join(served), "and everything else that WithSort leaves out.")
assert len(served) == 4
assert own.select is not reference.select

# %% [markdown]
# A backend that refuses is asked no further, and the reason is told to whoever named it:


# %%
class OnlyNarrow(WithSort):
    def refuses(self, device, dtype, n_latents, k):
        return "it sorts at most 1000 latents" if n_latents > 1000 else super().refuses(device, dtype, n_latents, k)


if "narrow" not in tide_kernels.backend_status():
    tide_kernels.register_backend("narrow", OnlyNarrow(), first=False)
wide = random_problem(4, 16, 1001, 8, dtype=torch.float32, requires_grad=False)
try:
    encode_topk(wide.x, wide.W_enc, wide.b_enc, wide.k, backend="narrow")
    raise AssertionError("a problem that is refused was served")
except tide_kernels.BackendError as error:
    print(error)

# %% [markdown]
# ## Compare with the equations, in float64
#
# The reference could be wrong, too. The second opinion is the loss as the paper writes it, with PyTorch's own
# derivatives. Here is its reconstruction: modulate (eq. 8), encode, keep the k largest (eqs 1 and 2), decode, and
# compare by mean square and cosine (eqs 13 and 14). `random_problem` makes tokens and weights in float64, where
# rounding is too small to hide a mistake.


# %%
def written_out(p):
    """Mean square and cosine distance of the reconstruction, by autograd."""
    x_mod = p.x * (1 + p.scale[p.group]) + p.shift[p.group]
    pre = (x_mod @ p.W_enc.T + p.b_enc).relu()
    top = pre.topk(p.k, dim=1).indices  # random numbers: no ties
    z = torch.zeros_like(pre).scatter(1, top, pre.gather(1, top))
    x_hat = z @ p.W_dec + p.b_dec
    return (x_hat - p.x).square().mean() + (1 - torch.cosine_similarity(x_hat, p.x)).mean()


problem = random_problem(n_tokens=64, d_model=24, n_latents=200, k=12, groups=5)
parameters = problem.parameters()
weights = LossWeights(mse=1, cosine=1)
wanted = written_out(problem)
wanted_gradients = torch.autograd.grad(wanted, list(parameters.values()))

for regime in ("sparse", "dense"):  # a step can work on compact codes or on masked matrices
    terms = tide_loss(**problem.arguments(), weights=weights, backend="sorted", regime=regime)
    assert_close(terms.total, wanted, 1e-12, "loss")
    gradients = torch.autograd.grad(terms.total, list(parameters.values()))
    for name, got, expected in zip(parameters, gradients, wanted_gradients, strict=True):
        assert_close(got, expected, 1e-10, f"gradient of {name}")
        off = (got - expected).abs().max() / expected.square().mean().sqrt()
        print(f"{regime:7} gradient of {name:6} off by at most {float(off):.0e} of its size")

# %% [markdown]
# `assert_close` compares with the size (RMS) of the whole tensor: an error of 1e-10 of it is allowed.
#
# The third opinion needs no formula at all. Move all weights a little in a random direction: the loss has to change
# as the gradient says.

# %%
generator = torch.Generator().manual_seed(0)
moves = {name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in parameters.items()}
step = 1e-6


def loss_at(factor):
    moved = {name: value.detach() + factor * moves[name] for name, value in parameters.items()}
    return float(tide_loss(**{**problem.arguments(), **moved}, weights=weights, backend="sorted").total)


measured = (loss_at(step) - loss_at(-step)) / (2 * step)
predicted = float(sum((g * moves[name]).sum() for name, g in zip(parameters, gradients, strict=True)))
print(f"slope measured {measured:.8f}, by the gradient {predicted:.8f}")
assert abs(measured - predicted) < 1e-6 * abs(predicted)

# %% [markdown]
# This step is so small that no token changes its selection. Where one does, the loss jumps, and no gradient knows of
# it.
#
# ## Train with it
#
# Both backends select the same latents, and the reference does the rest. So a short training has to end with the same
# bits, not just with similar numbers.


# %%
def trained(backend, steps=40):
    p = random_problem(256, 32, 256, 8, dtype=torch.float32)
    optimizer = torch.optim.Adam(p.parameters().values(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = tide_loss(**p.arguments(), weights=weights, backend=backend, regime="sparse").total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, p


losses, p = trained("sorted")
losses_of_reference, q = trained("reference")
assert losses == losses_of_reference
assert torch.equal(p.W_enc, q.W_enc)
assert losses[-1] < losses[0] / 2
print(f"The loss falls from {losses[0]:.2f} to {losses[-1]:.2f}, with the same bits as by the reference.")

# %% [markdown]
# ## Time it fairly
#
# A fair comparison has the same numbers, the same threads, no first call (which allocates memory), turns (so that
# what else the machine does hits all), and a middle value in place of the best one. The result has to be right first:
# we checked that above. The numbers have the size of the bundled pipeline's autoencoder.

# %%
selects = {"sorted": WithSort().select, "reference": reference.select}
if tide_kernels.backend_status()["native"] is None:  # compiled C++, where it is installed
    from tide_kernels import native

    selects["native"] = native.select
pre = torch.randn(512, 3072, generator=torch.Generator().manual_seed(1))
wanted = reference.select(pre, 64)
seconds = {name: [] for name in selects}
for turn in range(12):
    for name, select in selects.items():
        started = time.perf_counter()
        code = select(pre, 64)
        if turn:  # the first turn warms up
            seconds[name].append(time.perf_counter() - started)
        assert same_code(code, wanted)
middle = {name: 1000 * statistics.median(each) for name, each in seconds.items()}
for name, each in middle.items():
    print(f"{name:10} {each:6.1f} ms   {middle['reference'] / each:5.2f} times as fast as the reference")
print(f"on {torch.get_num_threads()} threads")

# %% [markdown]
# The cell asserts that all are right, and not which is fastest: on another machine, or a busy one, that may differ.
# A full sort does more than is asked, so this backend stays a toy. A backend is worth keeping when it is right *and*
# faster on the problems that it accepts.
#
# ## Next
#
# - `tide_kernels/dispatch.py` says what a backend can bring, fusions of several primitives included.
# - `tests/kernels/test_agreement.py` draws random problems with ties, NaN and odd sizes for every backend; add yours
#   to its list.
# - `CONTRIBUTING.md`, "A new backend".
