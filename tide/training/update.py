"""The update of the parameters: the gradients' norm, and AdamW on gradients whose memory is kept across steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tide_kernels import native

#: Elements of a parameter that PyTorch updates at a time on a CPU: they, their gradients and moments stay in its cache.
_PIECE = 2**20


#: Zeros of a shape and dtype on a device.
Zeros = Callable[[Sequence[int], torch.dtype, torch.device], Tensor]


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(tuple(shape), dtype=dtype, device=device)


def gradient_norm(gradients: Sequence[Tensor], known: float = 0.0) -> Tensor:
    """The Euclidean norm of these gradients and, on a CPU, of others whose squares add up to ``known``."""
    if _native_serves(gradients):
        return torch.tensor(native.norm(gradients, known), dtype=torch.float32)
    if gradients[0].device.type != "cpu":
        return torch.nn.utils.get_total_norm(gradients)
    # Norms of rows: PyTorch is faster at them than at the norm of a whole tensor.
    norms = [torch.linalg.vector_norm(g.reshape(math.gcd(len(g), 64), -1), dim=1) for g in gradients]
    return torch.linalg.vector_norm(torch.cat([*norms, norms[0].new_tensor([math.sqrt(known)])]))


def _native_serves(tensors: Iterable[Tensor]) -> bool:
    """Whether the compiled kernels serve these tensors."""
    return native.unavailable() is None and all(
        each.device.type == "cpu" and each.dtype == torch.float32 and each.is_contiguous() for each in tensors
    )


class _Part(NamedTuple):
    """A parameter, or some of its rows, and what AdamW updates them with."""

    parameter: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor

    @property
    def small(self) -> bool:
        return self.parameter.device.type != "cpu" or self.parameter.numel() <= _PIECE

    def pieces(self) -> Iterator[_Part]:
        """Its rows, a piece at a time. Only the last piece counts the step."""
        n_rows = len(self.parameter)
        rows = max(64, _PIECE * n_rows // self.parameter.numel() // 64 * 64)  # whole vectors of the processor
        for start in range(0, n_rows, rows):
            chosen = slice(start, start + rows)
            yield _Part(
                self.parameter[chosen],
                self.gradient[chosen],
                self.exp_avg[chosen],
                self.exp_avg_sq[chosen],
                self.step if start + rows >= n_rows else self.step.clone(),
            )


class AdamW(torch.optim.AdamW):
    """The fused AdamW; on float32 and a CPU that of the compiled kernels, whatever the model's backend. Its `update`
    clips as well."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        self._native = _native_serves(parameter for group in self.param_groups for parameter in group["params"])
        self._kept: set[Tensor] = set()

    def keep(self, parameters: Iterable[Tensor], zeros: Zeros = _zeros) -> None:
        """Keeps the gradients of these parameters; ``zeros`` gives memory for them, their moments and, on a CPU, for
        the parameters themselves."""
        parameters = list(parameters)
        self._kept = set(parameters)
        for parameter in parameters:
            like = tuple(parameter.shape), parameter.dtype, parameter.device
            if parameter.device.type == "cpu":
                parameter.data = zeros(*like).copy_(parameter.data)
            parameter.grad = zeros(*like)
            # What torch.optim.AdamW makes at its first step, elsewhere in memory.
            moments = {name: zeros(*like) for name in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of every optimiser; what is kept stays where it is in memory."""
        kept = {parameter: self.state[parameter] for parameter in self._kept}
        super().load_state_dict(state_dict)
        for parameter, own in kept.items():
            if loaded := self.state.get(parameter):
                self.state[parameter] = {name: each.copy_(loaded[name]) for name, each in own.items()}

    def begin(self) -> None:
        """Drops the gradients that are not kept. What is kept holds the last step's gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter not in self._kept:
                    parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """All gradients that there are."""
        return [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def update(self, norm: Tensor, clip: float, skip: Tensor | None = None) -> None:
        """One step with gradients of this ``norm``, scaled to ``clip`` at most.

        Where ``skip``, a float32 scalar, is 1, no parameter changes and nothing is read back from a GPU. Without it the
        norm is read, and gradients that need no clipping are taken as they are.
        """
        if not self._native:
            self._update_by_torch(norm, clip, skip)
        elif skip is None or not float(skip):
            divisor = max((float(norm) + 1e-6) / clip, 1.0)  # as torch.nn.utils.clip_grad_norm_
            _native_adamw([(part, group) for group in self.param_groups for part in self._parts(group)], divisor)

    def _update_by_torch(self, norm: Tensor, clip: float, skip: Tensor | None) -> None:
        divisor: Tensor | None = ((norm + 1e-6) / clip).clamp(min=1).float()
        if skip is None and float(divisor) == 1:  # type: ignore[arg-type]
            divisor = None
        for group in self.param_groups:
            for portion in _portions(self._parts(group)):
                _adamw(portion, group, divisor, skip)

    def _parts(self, group: dict[str, Any]) -> list[_Part]:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not all(self.state[parameter] for parameter in parameters):
            self._init_group(group, [], [], [], [], [], [])  # fills empty states
        states = ((parameter, self.state[parameter]) for parameter in parameters)
        return [_Part(each, each.grad, s["exp_avg"], s["exp_avg_sq"], s["step"]) for each, s in states]


def _native_adamw(parts: Sequence[tuple[_Part, Mapping[str, Any]]], divisor: float) -> None:
    """Updates all parts, each with its group's options, of which the learning rates alone may differ."""
    if not parts:
        return
    parameters, gradients, exp_avgs, exp_avg_sqs, steps = zip(*(part for part, _ in parts), strict=True)
    whole = [gradient.contiguous() for gradient in gradients]
    lrs = [group["lr"] for _, group in parts]
    options = {name: parts[0][1][name] for name in ("betas", "weight_decay", "eps")}
    native.adamw_(parameters, whole, exp_avgs, exp_avg_sqs, steps, lrs, **options, divisor=divisor)


def _portions(parts: Sequence[_Part]) -> Iterator[list[_Part]]:
    """What PyTorch updates at a time: the small parameters together, the others in pieces."""
    if small := [part for part in parts if part.small]:
        yield small
    for part in parts:
        for piece in () if part.small else part.pieces():
            yield [piece]


def _adamw(parts: Sequence[_Part], group: Mapping[str, Any], divisor: Tensor | None, skip: Tensor | None) -> None:
    parameters, gradients, exp_avgs, exp_avg_sqs, steps = map(list, zip(*parts, strict=True))
    beta1, beta2 = group["betas"]
    torch._foreach_add_(steps, 1)
    torch._fused_adamw_(
        parameters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        grad_scale=divisor,
        found_inf=skip,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
    if skip is not None:
        torch._foreach_sub_(steps, [skip] * len(steps))
