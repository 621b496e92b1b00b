"""What a training leaves on disk: the checkpoint, ``training.json``, and the state that it goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from tide.errors import TideError
from tide.files import (
    Write,
    check_tensors,
    json_writer,
    open_tensors,
    read_json,
    read_tensors,
    replace_files,
    tensors_writer,
)
from tide.files.schema import check_schema
from tide.files.tensors import is_finite
from tide.provenance import first_difference
from tide.sae.checkpoint import CONFIG, WEIGHTS, checkpoint_files, read_config
from tide.sae.model import TIDE, TIDEConfig
from tide.sae.modulation import ModulationConfig
from tide.training.config import TrainConfig, former_defaults

TRAINING = "training.json"
RESUME = "resume"
STATE = Path(RESUME, "state.safetensors")

#: Options that a resumed training may have otherwise. Another number of steps changes the schedules.
FREE = ("device", "log_every", "checkpoint_every", "steps")
_REMEDY = "the resume state is damaged or of another run, train into another folder"
_SAME = "use the same configuration or another folder"


class Length(TypedDict):
    """A resumption with another number of steps: the schedules of ``steps`` hold from step ``at`` on."""

    at: int
    before: int
    steps: int


class Record(TypedDict):
    """``training.json``: configuration, curves, the model's shape, what it is trained on, and changed lengths."""

    config: dict[str, Any]
    history: list[dict[str, float | None]]
    model: NotRequired[dict[str, Any]]
    source: NotRequired[dict[str, Any] | None]
    lengths: NotRequired[list[Length]]


class _Progress(TypedDict):
    step: int
    revived: int
    moments: NotRequired[list[int]]


@dataclass
class State:
    """All that a training goes on from.

    ``moments`` are AdamW's ``step``, ``exp_avg`` and ``exp_avg_sq`` by the number of the parameter, of those that have
    had a gradient; ``silent_for`` is int64 ``[n_latents]``.
    """

    step: int
    revived: int
    record: Record
    model: dict[str, Tensor]
    moments: dict[int, dict[str, Tensor]]
    silent_for: Tensor


def holds_training(out: Path) -> bool:
    """Whether a training, finished or not, has left a checkpoint in ``out``."""
    return any((out / name).exists() for name in (CONFIG, WEIGHTS, STATE))


def write(out: Path, model: TIDE, state: State) -> None:
    """Writes everything in one step.

    The resume state, which is whole in itself, gets its name first and ``training.json`` last: a run that is killed
    between two of them goes on from the state, and one that ``training.json`` calls finished is.

    Raises :class:`~tide.errors.TideError`, and leaves everything as it was, for numbers that are not finite.
    """
    tensors = _named(state)
    for name, value in tensors.items():
        if not is_finite(value):
            raise TideError(
                f"{name} is not finite after step {state.step} and was not saved; what {out} held before is kept: "
                "lower lr, or train in fp32"
            )
    progress = {"step": state.step, "revived": state.revived, "moments": sorted(state.moments)}
    text = json.dumps(state.record).encode()
    tensors["record"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    files: dict[Path, Write] = {out / STATE: tensors_writer(tensors, {"progress": json.dumps(progress)})}
    replace_files({**files, **checkpoint_files(model, out), out / TRAINING: json_writer(state.record)})


def _named(state: State) -> dict[str, Tensor]:
    moments = {f"optimizer.{i}.{name}": value for i, each in state.moments.items() for name, value in each.items()}
    return {**{f"model.{n}": v for n, v in state.model.items()}, **moments, "silent_for": state.silent_for}


# -- reading ---------------------------------------------------------------------------------------------------


def read(out: Path, model: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> State | None:
    """The state in ``out``, or None where no training has saved anything.

    ``model`` and ``parameters``, those of the optimiser in its order, say what its tensors must be like. Raises
    :class:`~tide.errors.TideError` for a state that is damaged, or of other shapes, and for a checkpoint whose state is
    gone.
    """
    path = out / STATE
    if not path.exists():
        if holds_training(out):
            raise TideError(f"{out} holds a checkpoint and no {STATE} to go on from; train into another folder")
        return None
    tensors = read_tensors(path)
    progress = _progress(path)
    record = _record(out, tensors.pop("record", None))
    moments = _moments(progress, tensors, len(parameters))
    _check(path, tensors, model, [parameters[i] for i in moments], moments, progress)
    _check_progress(path, progress, record)
    return State(
        progress["step"],
        progress["revived"],
        {**record, "history": [entry for entry in record["history"] if _step(entry) <= progress["step"]]},
        {name: tensors[f"model.{name}"] for name in model},
        {i: {name: tensors[f"optimizer.{i}.{name}"] for name in _like(parameters[i])} for i in moments},
        tensors["silent_for"],
    )


def _progress(path: Path) -> _Progress:
    with open_tensors(path) as file:
        text = (file.metadata() or {}).get("progress", "")
    return _parsed(text, _Progress, f"{path} (progress)")


def _record(out: Path, stored: Tensor | None) -> Record:
    """What ``training.json`` held when the state was written; states of older versions leave it to that file."""
    if stored is None:
        record: Record = read_json(out / TRAINING, Record)
    else:
        record = _parsed(stored.to(torch.uint8).numpy().tobytes(), Record, f"{out / STATE} (record)")
    for i, entry in enumerate(record["history"]):
        if entry.get("step") is None:
            raise TideError(f"{out / TRAINING}: history[{i}].step is missing; {_REMEDY}")
    return record


def _parsed(text: str | bytes, kind: Any, where: str) -> Any:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TideError(f"{where} is not valid JSON ({error}); {_REMEDY}") from None
    check_schema(data, kind, where)
    return data


def _step(entry: Mapping[str, float | None]) -> float:
    return entry["step"] or 0.0


def _moments(progress: _Progress, tensors: Mapping[str, Tensor], n: int) -> list[int]:
    """The numbers of the parameters whose moments the file must hold; older versions do not list them."""
    listed = progress.get("moments")
    if listed is None:
        listed = [i for i in range(n) if any(name.startswith(f"optimizer.{i}.") for name in tensors)]
    return [i for i in dict.fromkeys(listed) if 0 <= i < n]


def _like(parameter: Tensor) -> dict[str, Tensor]:
    return {"step": torch.empty((), device="meta"), "exp_avg": parameter, "exp_avg_sq": parameter}


def _check(
    path: Path,
    tensors: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    parameters: Sequence[Tensor],
    moments: Sequence[int],
    progress: _Progress,
) -> None:
    n_latents = len(model["W_enc"])
    like = {f"model.{name}": value for name, value in model.items()}
    like["silent_for"] = torch.empty(n_latents, dtype=torch.int64, device="meta")
    for i, parameter in zip(moments, parameters, strict=True):
        like |= {f"optimizer.{i}.{name}": value for name, value in _like(parameter).items()}
    check_tensors(path, tensors, like, remedy=_REMEDY)
    least = {"silent_for": 0.0, **{f"optimizer.{i}.{name}": 0.0 for i in moments for name in ("step", "exp_avg_sq")}}
    for name, bound in least.items():
        if bool((tensors[name] < bound).any()):
            raise TideError(f"{path}: {name} is negative; {_REMEDY}")
    for i in moments:
        if float(tensors[f"optimizer.{i}.step"]) > progress["step"]:
            raise TideError(f"{path}: optimizer.{i}.step lies beyond step {progress['step']}; {_REMEDY}")
    if not bool(tensors["model.activation_scale"] > 0):
        raise TideError(f"{path}: model.activation_scale is not positive; {_REMEDY}")


def _check_progress(path: Path, progress: _Progress, record: Record) -> None:
    steps = record["config"].get("steps", TrainConfig().steps)
    if not isinstance(steps, int) or not 0 <= progress["step"] <= steps or progress["revived"] < 0:
        raise TideError(f"{path}: step {progress['step']} of {steps}, revived {progress['revived']}; {_REMEDY}")


# -- whether it is the same training -----------------------------------------------------------------------------


def check_same(out: Path, record: Record, config: TrainConfig, model: TIDEConfig, source: Any) -> None:
    """Raises :class:`~tide.errors.TideError`, naming what changed, unless ``record`` is of the same training.

    That is one by ``config``, but for the options of :data:`FREE`, of a model like ``model``, on ``source``; a source
    that either of them does not state is not compared.
    """
    if found := first_difference(_fixed(record["config"]), _fixed(config.to_dict()), former_defaults()):
        raise TideError(f"{out} was started with other options ({found}); {_SAME}")
    before = _model_options(record.get("model") or read_config(out))
    if found := first_difference(before, _model_options(asdict(model)), _model_defaults(before)):
        raise TideError(f"{out} was started with other options ({found}); {_SAME}")
    made = record.get("source")
    if made is not None and source is not None and (found := first_difference(made, source)):
        raise TideError(f"{out} was trained on other data ({found}); give the same data, or train into another folder")


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in FREE}


def is_trained(out: Path, config: TrainConfig) -> bool:
    """Whether ``out`` holds a training by ``config``, but for device and the like, that came to its end."""
    if not (out / TRAINING).is_file():
        return False
    record: Record = read_json(out / TRAINING, Record)
    if first_difference(_fixed(record["config"]), _fixed(config.to_dict()), former_defaults()) is not None:
        return False
    return bool(record["history"]) and record["history"][-1].get("step") == config.steps


def _model_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model's config what has to stay the same: a pipeline may move to another folder."""
    return {
        each.name: config[each.name] for each in fields(TIDEConfig) if each.name in config and each.name != "pipeline"
    }


def _model_defaults(before: Mapping[str, Any]) -> dict[str, Any]:
    defaults = _defaults(TIDEConfig)
    return {**defaults, "modulation": _defaults(ModulationConfig) if before.get("modulation") else None}


def _defaults(kind: Any) -> dict[str, Any]:
    return {each.name: each.default for each in fields(kind) if each.default is not MISSING}
