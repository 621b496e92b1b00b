"""Linear layers of quantised models, as the numbers that they compute with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tide.errors import TideError

#: How far a layer may be from its measured weights on random inputs: the roundings of eight bits stay below, those of
#: inputs in four do not.
_TOLERANCE = 1 / 16
#: Rows of the identity a run, and their height: a power of two, so that it rounds nothing, above the bias.
_ROWS, _HEIGHT = 256, 64.0


def is_plain(linear: Any) -> bool:
    """Whether the layer computes with its ``weight`` as it is: nothing packs, scales or splits it."""
    weight: Any = getattr(linear, "weight", None)
    return (
        type(weight) in (Tensor, nn.Parameter)
        and weight.is_floating_point()
        and getattr(type(linear), "forward", None) is nn.Linear.forward
    )


def dequantised(linear: Any) -> Tensor | None:
    """The weight ``[out, in]`` that a layer of a known quantiser computes with; None for others.

    The layer tells its quantiser by its own class and by that of its weight, so that no package is imported that has
    not made the layer.
    """
    found = _dequantised(linear)
    dtype = getattr(linear, "compute_dtype", None)
    return found if found is None or dtype is None else found.detach().to(dtype)


def _dequantised(linear: Any) -> Tensor | None:
    weight: Any = getattr(linear, "qweight" if _is_a(linear, "QModuleMixin") else "weight", None)
    if _is_a(weight, "GGUFParameter"):
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        return dequantize_gguf_tensor(weight)
    if _is_a(weight, "Params4bit"):
        return _of_four_bits(weight)
    if _is_a(weight, "Int8Params"):
        return _of_eight_bits(linear, weight)
    if _is_a(linear, "BFLFP8RLinear"):
        return weight.float() * linear.weight_scale[:, None]
    if _is_a(linear, "BFLNVFP4Linear"):
        from diffusers.quantizers.bfl.utils import dequantize_nvfp4

        return dequantize_nvfp4(weight, linear.weight_scale, linear.weight_scale_2)
    own = getattr(type(weight), "dequantize", Tensor.dequantize)  # of torchao's and quanto's tensors
    return None if own is Tensor.dequantize else weight.dequantize()


def _is_a(thing: Any, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(thing).__mro__)


def _of_four_bits(weight: Any) -> Tensor | None:
    state = weight.quant_state
    if state is None or getattr(state, "packing_format_for_cpu", False):  # not quantised yet, or in the order of a CPU
        return None
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state)


def _of_eight_bits(linear: Any, weight: Any) -> Tensor | None:
    # The first run of the layer moves the scales of its rows from the weight to the layer's state.
    scales = weight.SCB if weight.SCB is not None else linear.state.SCB
    if scales is None or weight.dtype != torch.int8:
        return None
    return weight.data.float() * (scales.float() / 127)[:, None]


@torch.no_grad()
def measured(linear: Any, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight ``[out, in]`` and bias ``[out]`` of a layer that does not show them, float32, from what it makes of the
    rows of the identity, in ``dtype``.

    Raises :class:`~tide.errors.TideError`, which calls the layer ``name``, where it does not run, or is not linear to
    the rounding of eight bits.
    """
    width, device = getattr(linear, "in_features", None), _device_of(linear)
    if not isinstance(width, int) or device is None:
        raise _unreadable(linear, name)

    def run(x: Tensor) -> Tensor:
        return linear(x.to(device, dtype)).float()

    try:
        bias = run(torch.zeros(1, width))[0]
        rows = torch.eye(width).mul(_HEIGHT).split(_ROWS)
        weight = torch.cat([run(some) - bias for some in rows]).T / _HEIGHT
        x = torch.randn(32, width, generator=torch.Generator().manual_seed(0)).to(dtype)
        expected, found = x.to(device).float() @ weight.T, run(x) - bias
    except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError, IndexError) as error:
        raise _unreadable(linear, name) from error
    if not (found - expected).norm() <= _TOLERANCE * found.norm():
        raise TideError(
            f"{name} is a {_kind_of(linear)}, which is not linear to the rounding of eight bits; load the timestep "
            "embedding and the norms unquantised, or the model in more bits"
        )
    return weight, bias


def _device_of(linear: Any) -> torch.device | None:
    if not isinstance(linear, nn.Module):
        return None
    return next((each.device for each in [*linear.parameters(), *linear.buffers()] if not each.is_meta), None)


def _kind_of(linear: Any) -> str:
    """The class of a layer, and what its weight is."""
    weight: Any = getattr(linear, "weight", None)
    if not isinstance(weight, Tensor):
        return type(linear).__name__
    kind = weight.dtype if type(weight) in (Tensor, nn.Parameter) else type(weight).__name__
    return f"{type(linear).__name__} ({kind})"


def _unreadable(linear: Any, name: str) -> TideError:
    if isinstance(getattr(linear, "weight", None), Tensor):
        return TideError(
            f"the weights of {name} are quantised, a {_kind_of(linear)} that does not run by itself; load the "
            "transformer without that"
        )
    return TideError(f"{name} is a {_kind_of(linear)}, whose weights cannot be read; load the plain model")


def plain_tensors(tensor: Any) -> Iterator[Tensor]:
    """The plain tensors that a quantiser's tensor is made of; a plain tensor is itself one."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(tensor, name))
    else:
        yield tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
