"""The ops as PyTorch sees them: ``torch.library`` ops, their shapes, and one backward for all backends.

A backend brings primitives and no backward of its own. With g = dL/dx_hat, z the sparse code and x_mod the
encoder's input (eqs 1, 2, 8):

* decode:  dW_dec = z^T g,  db_dec = sum g,  dz = g W_dec^T at the selected latents;
* encode:  dpre = dz there and 0 elsewhere (TopK, ReLU and thresholds pass the selected gradients unchanged),
  dW_enc = dpre^T x_mod,  db_enc = sum dpre,  dx_mod = dpre W_enc; `tide_kernels.modulation` continues from there.

Operands of matrix products are rounded to the compute dtype; sums are accumulated in float32 (float64 for float64)
and returned in the dtype of the tensor they belong to. There are no second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from tide_kernels import checks
from tide_kernels.dispatch import BackendError, Choice, choose
from tide_kernels.fused import FusedStep
from tide_kernels.jumprelu import table_of
from tide_kernels.losses import LossTerms
from tide_kernels.modulation import add_modulation_gradients, input_gradient, modulated
from tide_kernels.options import LOSS_SCHEMA, LossArguments, Parameters
from tide_kernels.products import products
from tide_kernels.ranks import ALONE, Ranks
from tide_kernels.reference import accumulator

_F = TypeVar("_F", bound=Callable[..., Any])


def _explicit_dtypes(function: _F) -> _F:
    """Runs ``function(tensor, ...)`` without autocast: all dtypes have been chosen already."""

    @wraps(function)
    def wrapped(first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *rest)

    return wrapped  # type: ignore[return-value]


def _op(name: str, schema: str | None = None) -> Callable[[_F], Any]:
    """Registers ``tide_kernels::name``, by its annotations if no schema is given. It mutates nothing and returns fresh
    tensors."""

    def register(function: _F) -> Any:
        function = _explicit_dtypes(function)
        return torch.library.custom_op(f"tide_kernels::{name}", function, mutates_args=(), schema=schema)

    return register


def _blocks(n_tokens: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, n_tokens, chunk))


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _sums(wanted: bool, parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Zeros to accumulate the gradient of ``parameter`` in, if it is wanted."""
    return parameter.new_zeros(parameter.shape, dtype=dtype) if wanted and parameter is not None else None


def _finished(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor | None]) -> list[Tensor]:
    """Gradients in their parameters' dtypes. An op has to return tensors, so an empty one stands for None."""
    return [
        torch.zeros(0) if gradient is None or parameter is None else gradient.to(parameter.dtype)
        for gradient, parameter in zip(gradients, parameters, strict=True)
    ]


def _faked(wanted: Sequence[bool], parameters: Sequence[Tensor | None]) -> list[Tensor]:
    """Tensors of the shapes and dtypes that `_finished` returns."""
    return [
        torch.empty_like(p, memory_format=torch.contiguous_format) if want and p is not None else torch.zeros(0)
        for want, p in zip(wanted, parameters, strict=True)
    ]


def _spread(ctx: Any, gradients: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """As `_padded`, with None for gradients that are not wanted."""
    return _padded(ctx, [gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)])


def _padded(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """What the backward of an op returns: the gradients of its first arguments, None for the others. An empty list
    counts as a list of tensors, and wants an empty one."""
    others = ctx.needs_input_grad[len(gradients) :]
    return (*gradients, *([] if each == [] else None for each in others))


# -- modulate ------------------------------------------------------------------------------------------------


@_op("modulate")
def modulate(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, group: Tensor | None, layer_norm: bool, backend: str
) -> Tensor:
    checks.group_range(group, scale, shift)
    choice = choose(backend, "auto", device=x.device, dtype=x.dtype, n_latents=1, k=1)
    return choice.ops.modulate(x, scale, shift, group, layer_norm, x.dtype)


@modulate.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_op("modulate_backward")
def modulate_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    group: Tensor | None,
    layer_norm: bool,
    backend: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    choice = choose(backend, "auto", device=x.device, dtype=x.dtype, n_latents=1, k=1)
    sum_dtype = accumulator(x.dtype)
    grad = grad.to(sum_dtype)
    sums = [_sums(want, p, sum_dtype) for want, p in zip(wanted[1:], (scale, shift), strict=True)]
    add_modulation_gradients(choice.ops, grad, x, group, layer_norm, *sums)
    # A clone: without scale and norm it is the incoming gradient itself, which an op must not return.
    grad_x = input_gradient(grad, x, scale, group, layer_norm).clone() if wanted[0] else None
    return _finished([grad_x, *sums], [x, scale, shift])


@modulate_backward.register_fake
def _(grad: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, *rest: Any) -> list[Tensor]:
    *_, wanted = rest
    return _faked(wanted, [x, scale, shift])


def _modulate_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.layer_norm, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _modulate_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:3]
    gradients = modulate_backward(grad, *ctx.saved_tensors, ctx.layer_norm, ctx.backend, wanted)
    return _spread(ctx, gradients, wanted)


modulate.register_autograd(_modulate_backward, setup_context=_modulate_setup)


# -- encode_topk ---------------------------------------------------------------------------------------------


@_op("encode_topk")
def encode_topk(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    W_enc: Tensor,
    b_enc: Tensor | None,
    group: Tensor | None,
    layer_norm: bool,
    k: int,
    dtype: torch.dtype,
    chunk: int,
    backend: str,
    regime: str,
    path: str,
) -> tuple[Tensor, Tensor]:
    checks.group_range(group, scale, shift)
    choice = _encoder_choice(x, W_enc, k, dtype, backend, regime)
    weight, bias = W_enc.to(dtype), None if b_enc is None else b_enc.to(dtype)
    if path == "single" or (path == "auto" and choice.single_launch):
        if choice.ops.encode is None:
            raise BackendError(f"the backend {choice.backend!r} has no single-launch encoder: use path='split'")
        return choice.ops.encode(x, scale, shift, group, layer_norm, weight, bias, k)
    values = torch.empty(len(x), k, dtype=dtype, device=x.device)
    indices = torch.empty(len(x), k, dtype=torch.int32, device=x.device)
    for rows in _blocks(len(x), chunk):
        x_mod = modulated(choice.ops, x[rows], scale, shift, _rows(group, rows), layer_norm, dtype)
        values[rows], indices[rows] = choice.ops.code(x_mod, weight, bias, k)
    return values, indices


def _encoder_choice(x: Tensor, W_enc: Tensor, k: int, dtype: torch.dtype, backend: str, regime: str) -> Choice:
    return choose(backend, regime, device=x.device, dtype=dtype, n_latents=len(W_enc), k=k, n_tokens=len(x))


@encode_topk.register_fake
def _(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    W_enc: Tensor,
    b_enc: Tensor | None,
    group: Tensor | None,
    layer_norm: bool,
    k: int,
    dtype: torch.dtype,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), k, dtype=dtype), x.new_empty(len(x), k, dtype=torch.int32)


@_op("encode_backward")
def encode_backward(
    grad_values: Tensor,
    indices: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    W_enc: Tensor,
    b_enc: Tensor | None,
    group: Tensor | None,
    layer_norm: bool,
    k: int,
    chunk: int,
    backend: str,
    regime: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    dtype = grad_values.dtype
    choice = _encoder_choice(x, W_enc, k, dtype, backend, regime)
    weight, sum_dtype = W_enc.to(dtype), accumulator(dtype)
    parameters = (scale, shift, W_enc, b_enc)
    sums = [_sums(want, p, sum_dtype) for want, p in zip(wanted[1:], parameters, strict=True)]
    grad_scale, grad_shift, grad_W, grad_b = sums
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if wanted[0] else None
    for rows in _blocks(len(x), chunk):
        code = products(choice, indices[rows], len(W_enc), dtype)
        grad_pre = code.operand(grad_values[rows])
        if grad_W is not None:
            x_mod = modulated(choice.ops, x[rows], scale, shift, _rows(group, rows), layer_norm, dtype)
            code.scatter(grad_pre, x_mod, grad_W)
        if grad_b is not None:
            code.column_sum(grad_pre, grad_b)
        if any(wanted[:3]):
            grad_x_mod = code.gather(grad_pre, weight)
            tokens = (x[rows], _rows(group, rows), layer_norm)
            add_modulation_gradients(choice.ops, grad_x_mod, *tokens, grad_scale, grad_shift)
            if grad_x is not None:
                grad_x[rows] = input_gradient(grad_x_mod, x[rows], scale, *tokens[1:]).to(x.dtype)
    return _finished([grad_x, *sums], [x, *parameters])


@encode_backward.register_fake
def _(
    grad_values: Tensor,
    indices: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    W_enc: Tensor,
    b_enc: Tensor | None,
    *rest: Any,
) -> list[Tensor]:
    *_, wanted = rest
    return _faked(wanted, [x, scale, shift, W_enc, b_enc])


def _encode_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.layer_norm, ctx.k, _, ctx.chunk, ctx.backend, ctx.regime, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *tensors)


def _encode_backward(ctx: Any, grad_values: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:5]
    settings = (ctx.layer_norm, ctx.k, ctx.chunk, ctx.backend, ctx.regime, wanted)
    gradients = encode_backward(grad_values, *ctx.saved_tensors, *settings)
    return _spread(ctx, gradients, wanted)


encode_topk.register_autograd(_encode_backward, setup_context=_encode_setup)


# -- encode_threshold ----------------------------------------------------------------------------------------


@_op("encode_threshold")
def encode_threshold(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    W_enc: Tensor,
    b_enc: Tensor | None,
    threshold: Tensor,
    group: Tensor | None,
    layer_norm: bool,
    k: int,
    capacity: int,
    dtype: torch.dtype,
    chunk: int,
    backend: str,
    regime: str,
) -> tuple[Tensor, Tensor, Tensor]:
    checks.group_range(group, scale, shift, threshold)
    checks.threshold_range(threshold)
    choice = _encoder_choice(x, W_enc, k, dtype, backend, regime)
    weight, bias = W_enc.to(dtype), None if b_enc is None else b_enc.to(dtype)
    table = table_of(threshold, len(W_enc), accumulator(dtype))
    values, indices, count = _places(x, capacity, dtype)
    for rows in _blocks(len(x), chunk):
        x_mod = modulated(choice.ops, x[rows], scale, shift, _rows(group, rows), layer_norm, dtype)
        belongs = _rows(group, rows) if len(table) > 1 else None
        values[rows], indices[rows], count[rows] = choice.ops.above(x_mod, weight, bias, table, belongs, capacity)
    return values, indices, count


def _places(x: Tensor, capacity: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the code of tokens."""
    counts = x.new_empty(len(x), dtype=torch.int32)
    return x.new_empty(len(x), capacity, dtype=dtype), x.new_empty(len(x), capacity, dtype=torch.int32), counts


@encode_threshold.register_fake
def _(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    W_enc: Tensor,
    b_enc: Tensor | None,
    threshold: Tensor,
    group: Tensor | None,
    layer_norm: bool,
    k: int,
    capacity: int,
    dtype: torch.dtype,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return _places(x, capacity, dtype)


def _threshold_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, group, ctx.layer_norm, ctx.k, _, _, ctx.chunk, ctx.backend, ctx.regime = inputs
    _, indices, count = output
    ctx.mark_non_differentiable(indices, count)
    ctx.save_for_backward(indices, *tensors, group)


def _threshold_backward(ctx: Any, grad_values: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:5]
    settings = (ctx.layer_norm, ctx.k, ctx.chunk, ctx.backend, ctx.regime, wanted)
    gradients = encode_backward(grad_values, *ctx.saved_tensors, *settings)
    return _spread(ctx, gradients, wanted)


encode_threshold.register_autograd(_threshold_backward, setup_context=_threshold_setup)


# -- decode --------------------------------------------------------------------------------------------------


@_op("decode")
def decode(
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor | None,
    indices: Tensor,
    dtype: torch.dtype,
    chunk: int,
    backend: str,
    regime: str,
) -> Tensor:
    n_latents, d_model = W_dec.shape
    indices = checks.index_range(indices, n_latents)
    choice = _decoder_choice(indices, W_dec, dtype, backend, regime)
    x_hat = torch.empty(len(values), d_model, dtype=dtype, device=values.device)
    weight = W_dec.to(dtype)
    for rows in _blocks(len(values), chunk):
        code = products(choice, indices[rows], n_latents, dtype)
        out = code.gather(code.operand(values[rows].to(dtype)), weight)
        x_hat[rows] = out if b_dec is None else out + b_dec
    return x_hat


def _decoder_choice(indices: Tensor, W_dec: Tensor, dtype: torch.dtype, backend: str, regime: str) -> Choice:
    n_tokens, k = indices.shape
    return choose(backend, regime, device=W_dec.device, dtype=dtype, n_latents=len(W_dec), k=k, n_tokens=n_tokens)


@decode.register_fake
def _(values: Tensor, W_dec: Tensor, b_dec: Tensor | None, indices: Tensor, dtype: torch.dtype, *_: Any) -> Tensor:
    return values.new_empty(len(values), W_dec.shape[1], dtype=dtype)


@_op("decode_backward")
def decode_backward(
    grad: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor | None,
    indices: Tensor,
    dtype: torch.dtype,
    chunk: int,
    backend: str,
    regime: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    indices = checks.index_range(indices, len(W_dec))
    choice = _decoder_choice(indices, W_dec, dtype, backend, regime)
    weight, sum_dtype = W_dec.to(dtype), accumulator(dtype)
    grad_values = torch.empty_like(values, memory_format=torch.contiguous_format) if wanted[0] else None
    grad_W = _sums(wanted[1], W_dec, sum_dtype)
    grad_b = grad.sum(0, dtype=sum_dtype) if wanted[2] else None
    for rows in _blocks(len(values), chunk):
        code = products(choice, indices[rows], len(W_dec), dtype)
        if grad_W is not None:
            code.scatter(code.operand(values[rows].to(dtype)), grad[rows], grad_W)
        if grad_values is not None:
            grad_values[rows] = code.sampled(grad[rows], weight).to(values.dtype)
    return _finished([grad_values, grad_W, grad_b], [values, W_dec, b_dec])


@decode_backward.register_fake
def _(grad: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor | None, *rest: Any) -> list[Tensor]:
    *_, wanted = rest
    return _faked(wanted, [values, W_dec, b_dec])


def _decode_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.dtype, ctx.chunk, ctx.backend, ctx.regime = inputs
    ctx.save_for_backward(*tensors)


def _decode_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:3]
    settings = (ctx.dtype, ctx.chunk, ctx.backend, ctx.regime, wanted)
    gradients = decode_backward(grad, *ctx.saved_tensors, *settings)
    return _spread(ctx, gradients, wanted)


decode.register_autograd(_decode_backward, setup_context=_decode_setup)


# -- tide_loss -----------------------------------------------------------------------------------------------


@_op("tide_loss", f"({LOSS_SCHEMA}, bool[] wanted) -> Tensor[]")
def tide_loss(x: Tensor, *rest: Any) -> list[Tensor]:
    """The terms, and the gradients times `FusedStep.gain_of`; an empty tensor for each gradient that is not wanted."""
    *flat, wanted = rest
    arguments = LossArguments.restored(x, *flat)
    choice = _loss_choice(arguments)
    every = zip(arguments.parameters._asdict().items(), wanted, strict=True)
    parameters = {name: p for (name, p), want in every if want and p is not None}
    make, start = (choice.ops.zeros, None) if choice.ops.empty is None else (choice.ops.empty, 0.0)
    gradients = {name: make(p.shape, accumulator(arguments.dtype), p.device) for name, p in parameters.items()}
    terms = FusedStep(arguments, choice, gradients, start).run()
    return [*terms, *(gradients.get(name, torch.zeros(0)) for name in Parameters._fields)]


def _loss_choice(arguments: LossArguments, ranks: Ranks = ALONE) -> Choice:
    parameters, options = arguments.parameters, arguments.options
    checks.group_range(arguments.group, parameters.scale, parameters.shift, parameters.threshold)
    if parameters.threshold is not None:
        checks.threshold_range(parameters.threshold, divides=options.activation == "batch_topk")
    # As if ranks held equally many latents: all have to choose the same regime.
    n_latents, k = (-(-n // ranks.latents.count) for n in (ranks.n_latents(len(parameters.W_enc)), options.k))
    settings = (options.backend, options.regime)
    device, n_tokens = arguments.x.device, len(arguments.x)
    return choose(*settings, device=device, dtype=arguments.dtype, n_latents=n_latents, k=k, n_tokens=n_tokens)


@torch.no_grad()
def accumulate_gradients(
    arguments: LossArguments,
    gradients: dict[str, Tensor],
    start: float | None = None,
    squares: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> LossTerms:
    """The terms. Their gradients are added to ``gradients``, or to the start that replaces what these hold; the buffers
    are not scaled by the gain before or after."""
    with torch.autocast(arguments.x.device.type, enabled=False):
        step = FusedStep(arguments, _loss_choice(arguments, ranks), gradients, start, squares, ranks)
        for gradient in gradients.values() if step.gain != 1 else ():
            gradient.mul_(step.gain)
        terms = step.run()
        for gradient in gradients.values() if step.gain != 1 else ():
            gradient.div_(step.gain)
    return terms


@tide_loss.register_fake
def _(x: Tensor, *rest: Any) -> list[Tensor]:
    *flat, wanted = rest
    arguments = LossArguments.restored(x, *flat)
    sum_dtype = accumulator(arguments.dtype)
    terms = LossTerms(*(x.new_empty((), dtype=sum_dtype) for _ in LossTerms._fields))
    fired = x.new_empty(len(arguments.parameters.W_enc), dtype=torch.int64)
    overflow = x.new_empty((), dtype=torch.int64)
    gradients = (
        p.new_empty(p.shape, dtype=sum_dtype) if want and p is not None else torch.zeros(0)
        for want, p in zip(wanted, arguments.parameters, strict=True)
    )
    return [*terms._replace(fired=fired, overflow=overflow), *gradients]


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *flat, ctx.wanted = inputs
    arguments = LossArguments.restored(*flat)
    ctx.dtypes = [None if p is None else p.dtype for p in arguments.parameters]
    n_tokens, d_model = arguments.x.shape
    ctx.gain = FusedStep.gain_of(n_tokens, d_model, arguments.dtype)
    # Otherwise zeros as large as the weights would come in as the gradients of the gradients.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[len(LossTerms._fields) :])


def _loss_backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    total, *_ = grads
    if total is None:
        return _padded(ctx, [])
    factor = total.detach() / ctx.gain
    scale = _scaled_in_place if _is_spent(factor) else _scaled
    scaled = [
        scale(gradient, factor).to(dtype) if want else None
        for gradient, dtype, want in zip(ctx.saved_tensors, ctx.dtypes, ctx.wanted, strict=True)
    ]
    if torch.is_grad_enabled():  # create_graph=True: what is saved would count as a constant
        scaled = [None if g is None else _Final.apply(g.detach().requires_grad_()) for g in scaled]
    return _padded(ctx, [None, *scaled])


class _Final(torch.autograd.Function):
    """A gradient that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("tide_loss has no second derivatives: compose the loss of plain PyTorch operations for them")


def _is_spent(factor: Tensor) -> bool:
    """Whether this backward pass frees the graph, and with it all saved tensors."""
    if type(factor) is not Tensor:  # a compiler is tracing
        return False
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps is not None and not keeps()


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    return gradient * factor


def _scaled_in_place(gradient: Tensor, factor: Tensor) -> Tensor:
    """Gradients are as large as the weights: copies of them would be the largest tensors of the step."""
    if factor.device.type == "cpu" and float(factor) == 1:
        return gradient.detach()  # an alias, which may become a parameter's .grad
    return gradient.detach().mul_(factor)


tide_loss.register_autograd(_loss_backward, setup_context=_loss_setup)
