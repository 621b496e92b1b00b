"""For tests of kernels: a scaled comparison, poisoned buffers that expose unwritten elements, and random problems."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, name: str = "result") -> None:
    """Every element of ``actual`` lies within ``tolerance`` times the RMS of ``expected`` of its counterpart.

    Dtypes may differ. Shapes may not, and non-finite elements have to be equal and in the same positions. If all
    expected elements are 0, all actual ones have to be 0.

    Raises:
        AssertionError: naming the tensor, the worst element and the error in units of the RMS.
    """
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, not {list(expected.shape)}"
    if not actual.numel():
        return
    got, want = actual.detach().cpu().double(), expected.detach().cpu().double()
    finite = want.isfinite()
    same = torch.equal(got.isfinite(), finite) and torch.allclose(got[~finite], want[~finite], equal_nan=True)
    assert same, f"{name}: non-finite elements differ"
    rms = want[finite].square().mean().sqrt() if finite.any() else want.new_zeros(())
    error = torch.where(finite, got - want, 0).abs()
    worst = int(error.argmax())
    where = [int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape)]
    assert float(error.max()) <= tolerance * float(rms), (
        f"{name}: {got.flatten()[worst]:.6g} at {where}, not {want.flatten()[worst]:.6g}; "
        f"off by {float(error.max() / rms):.3g} of the RMS {float(rms):.3g}, allowed {tolerance:.3g}"
    )


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A buffer filled with NaN, or with the least integer, which exposes elements that are never written."""
    value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min
    return torch.full(shape, value, dtype=dtype, device=device)


@dataclass
class Problem:
    """Tokens and parameters of a sparse autoencoder; the fields are arguments of `tide_kernels.tide_loss`."""

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor | None
    W_dec: Tensor
    b_dec: Tensor | None
    k: int
    scale: Tensor | None
    shift: Tensor | None
    group: Tensor | None

    def arguments(self) -> dict[str, Tensor | int | None]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def parameters(self) -> dict[str, Tensor]:
        named = {name: value for name, value in self.arguments().items() if name not in ("x", "k", "group")}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def random_problem(
    n_tokens: int,
    d_model: int,
    n_latents: int,
    k: int,
    *,
    groups: int | None = None,
    modulated: bool = True,
    biases: bool = True,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    requires_grad: bool = True,
    seed: int = 0,
) -> Problem:
    """A problem with normal entries of the size of a trained autoencoder's; equal arguments make equal problems.

    Args:
        groups: rows of scale and shift, to which tokens are assigned at random; None for one row and no ``group``.
        modulated, biases: whether there are scale and shift, b_enc and b_dec.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, size: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * size
        return values.to(device=device, dtype=dtype).requires_grad_(requires_grad)

    rows = groups or 1
    return Problem(
        x=normal(n_tokens, d_model).detach(),
        W_enc=normal(n_latents, d_model, size=d_model**-0.5),
        b_enc=normal(n_latents, size=0.1) if biases else None,
        W_dec=normal(n_latents, d_model, size=d_model**-0.5),
        b_dec=normal(d_model, size=0.1) if biases else None,
        k=k,
        scale=normal(rows, d_model, size=0.3) if modulated else None,
        shift=normal(rows, d_model, size=0.3) if modulated else None,
        group=torch.randint(rows, (n_tokens,), generator=generator).to(device) if groups else None,
    )


def adversarial_rows(n_latents: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Rows of pre-activations on which selections tend to go wrong, named by what is special about them."""
    generator = torch.Generator().manual_seed(n_latents)
    normal = torch.randn(n_latents, generator=generator, dtype=torch.float64)
    place = torch.arange(n_latents)
    tiny = torch.finfo(dtype).smallest_normal
    rows = {
        "normal": normal,
        "all equal": torch.ones(n_latents),
        "all zero": torch.zeros(n_latents),
        "all negative zero": torch.full((n_latents,), -0.0),
        "all negative": -normal.abs() - 1,
        "one positive, last": torch.where(place == n_latents - 1, 1.0, -1.0),
        "zeros of both signs among few positives": torch.where(place % 5 == 0, 1.0, (place % 2 - 1.0) * 0),
        "few levels, many ties": (normal * 2).round(),
        "two levels": torch.where(place % 2 == 0, 2.0, 1.0),
        "ascending": place.double(),
        "descending": -place.double() + n_latents / 2,
        "infinities": torch.where(place % 3 == 0, torch.inf, normal),
        "minus infinity": torch.where(place % 2 == 0, -torch.inf, normal),
        "one NaN": torch.where(place == n_latents // 2, torch.nan, normal),
        "NaN and infinity": torch.where(place % 2 == 0, torch.nan, torch.inf),
        "all NaN": torch.full((n_latents,), torch.nan),
        "subnormal": normal * tiny * 0.5,
        "least positive among negatives": torch.where(
            place % 4 == 0, tiny * torch.finfo(dtype).eps, -torch.ones(n_latents).double()
        ),
        "largest finite": normal.sign() * torch.finfo(dtype).max,
    }
    converted = {name: row.to(dtype) for name, row in rows.items()}
    converted["NaN of both signs"] = torch.where(
        place % 4 == 0, torch.tensor(torch.nan, dtype=dtype).copysign(normal.to(dtype)), normal.to(dtype)
    )
    return converted
