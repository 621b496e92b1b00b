"""What a stage of training keeps: its checkpoint, the optimiser's moments in it, and the figures that it prints."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from tide.errors import TideError
from tide.files import check_tensors, open_tensors, read_tensors, replace_file, tensors_writer


class Progress:
    """Prints the figures of a stage with the seconds a step, which are counted from the step it began at."""

    def __init__(self, stage: str, first: int, steps: int) -> None:
        self.stage, self.first, self.steps = stage, first, steps
        self.started = time.perf_counter()

    def log(self, step: int, **figures: float) -> None:
        pace = (time.perf_counter() - self.started) / max(1, step - self.first)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{self.stage} {step}/{self.steps}  {shown}  {pace:.2f} s/step", flush=True)


class State:
    """Checkpoint of a stage: named tensors in one safetensors file with the step, replaced in one step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, step: int, tensors: dict[str, Tensor]) -> None:
        replace_file(self.path, tensors_writer({k: v.clone() for k, v in tensors.items()}, {"step": str(step)}))

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """The step and the tensors; 0 and none if the stage has not begun."""
        if not self.path.exists():
            return 0, {}
        with open_tensors(self.path, "the stage") as file:
            step = (file.metadata() or {}).get("step", "")
        if not (step.isascii() and step.isdigit()):
            raise TideError(f"{self.path} states no step; delete it to train the stage again")
        return int(step), read_tensors(self.path, "the stage")

    def restore(self, model: nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
        """Loads what :meth:`load` gave under ``prefix``.

        Raises :class:`~tide.errors.TideError` for a model of other sizes, as captions of other words make it.
        """
        weights = under(prefix, tensors)
        check_tensors(self.path, weights, model.state_dict(), remedy="delete it to train the stage again")
        model.load_state_dict(weights)


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`under`."""
    return {prefix + name: value for name, value in tensors.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            state.setdefault(int(i), {})[key] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entry in state.items():  # the fused optimiser would access memory beyond moments of another shape
        moments = [value for key, value in entry.items() if key != "step"]
        if number >= len(parameters) or any(value.shape != parameters[number].shape for value in moments):
            raise TideError("the state holds moments of another model; delete it to train the stage again")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
