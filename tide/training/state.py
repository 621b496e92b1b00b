"""What a training leaves on disk: the checkpoint, ``training.json``, and the state that it resumes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

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
from tide.images.trained import TrainedOn
from tide.provenance import check_unchanged, first_difference
from tide.sae.checkpoint import CONFIG, WEIGHTS, checkpoint_files, read_config
from tide.sae.config import TIDEConfig
from tide.sae.modulation import ModulationConfig
from tide.training.config import TrainConfig, comparable, former_defaults
from tide.training.shared_state import (
    DESCRIBED,
    folder_of,
    last_shared,
    own_rows,
    read_shared,
    remove_shared,
    write_shared,
)
from tide.world import World

TRAINING = "training.json"
RESUME = "resume"
STATE = Path(RESUME, "state.safetensors")

#: Options that may differ in a resumed training. Another number of steps changes the schedules.
FREE = ("device", "shard_latents", "log_every", "checkpoint_every", "steps")
_REMEDY = "the resume state is damaged or of another run, train into another folder"
_SAME = "use the same configuration or another folder"
#: What older versions did not record of a live stream.
_FORMER_SOURCE = {"reuse": 1}


class Length(TypedDict):
    """A resumption with another number of steps: the schedules of ``steps`` hold from step ``at`` on."""

    at: int
    before: int
    steps: int


class Record(TypedDict):
    """``training.json``: configuration, curves, the model's config, the data, and changes of length."""

    config: dict[str, Any]
    history: list[dict[str, float | None]]
    model: NotRequired[dict[str, Any]]
    source: NotRequired[dict[str, Any] | None]
    lengths: NotRequired[list[Length]]


class _Progress(TypedDict):
    step: int
    revived: int
    moments: NotRequired[list[int]]
    dead_counts: NotRequired[list[int]]


class _Described(TypedDict):
    """What lies beside the tensors of a state that ranks share."""

    progress: _Progress
    record: Record


@dataclass
class State:
    """Everything that a training resumes from.

    ``moments`` are AdamW's ``step``, ``exp_avg`` and ``exp_avg_sq`` by the number of the parameter, of those that have
    had a gradient; ``silent_for`` is int64 ``[n_latents]``; ``dead_counts`` are those of
    :class:`~tide.training.dead.DeadBucket`, none on a CPU.
    """

    step: int
    revived: int
    record: Record
    model: dict[str, Tensor]
    moments: dict[int, dict[str, Tensor]]
    silent_for: Tensor
    dead_counts: Sequence[int] = ()


def holds_training(out: Path) -> bool:
    """Whether a training, finished or not, has left a checkpoint in ``out``."""
    return any((out / name).exists() for name in (CONFIG, WEIGHTS, STATE)) or last_shared(out / RESUME) is not None


def write(
    out: Path,
    config: TIDEConfig,
    state: State,
    trained_on: TrainedOn | None = None,
    world: World | None = None,
    by_latent: Set[str] = frozenset(),
) -> None:
    """Writes everything in one step; ``trained_on`` goes into the checkpoint. With several ranks in ``world``, all of
    which call it, the state alone (:mod:`tide.training.shared_state`); of the tensors ``by_latent``, which it names,
    each may have some rows.

    The resume state, which is complete in itself, is renamed into place first and ``training.json`` last: a run that is
    killed in between resumes from the state, and a run that ``training.json`` calls finished is finished.

    Raises :class:`~tide.errors.TideError`, and leaves everything as it was, for numbers that are not finite.
    """
    tensors = _named(state)
    world = world or World()
    with world.together():  # of several ranks each may have other rows
        for name, value in tensors.items():
            if not is_finite(value):
                raise TideError(
                    f"{name} is not finite after step {state.step} and was not saved; what {out} held before is kept: "
                    "lower lr, or train in fp32"
                )
    progress: _Progress = {"step": state.step, "revived": state.revived, "moments": sorted(state.moments)}
    if state.dead_counts:
        progress["dead_counts"] = list(state.dead_counts)
    if world.several:
        described: _Described = {"progress": progress, "record": state.record}
        write_shared(out / RESUME, state.step, tensors, described, world, by_latent)
        return
    text = json.dumps(state.record).encode()
    tensors["record"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    files: dict[Path, Write] = {out / STATE: tensors_writer(tensors, {"progress": json.dumps(progress)})}
    checkpoint = checkpoint_files(config, state.model, out, trained_on)
    replace_files({**files, **checkpoint, out / TRAINING: json_writer(state.record)})
    remove_shared(out / RESUME)


def joined(out: Path, state: State) -> State:
    """The whole of a ``state`` of which each rank has a part, from what they have just written together."""
    tensors = read_shared(out / RESUME / folder_of(state.step))
    return replace(
        state,
        model={name: tensors[f"model.{name}"] for name in state.model},
        moments={i: {name: tensors[f"optimizer.{i}.{name}"] for name in each} for i, each in state.moments.items()},
        silent_for=tensors["silent_for"],
    )


def _named(state: State) -> dict[str, Tensor]:
    moments = {f"optimizer.{i}.{name}": value for i, each in state.moments.items() for name, value in each.items()}
    return {**{f"model.{n}": v for n, v in state.model.items()}, **moments, "silent_for": state.silent_for}


# -- reading ---------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What a state says about itself, before its tensors are read."""

    step: int
    revived: int
    #: The numbers of the parameters with moments; None in states of older versions, where all parameters have them.
    moments: list[int] | None
    dead_counts: list[int]
    record: Record
    #: Where its tensors are: a file, or a folder that several ranks wrote.
    path: Path


def find(out: Path) -> Found | None:
    """The state in ``out``, or None if no training has saved anything there.

    Raises :class:`~tide.errors.TideError` for a state that is damaged, and for a checkpoint whose state is gone.
    """
    alone, shared = _find_alone(out), last_shared(out / RESUME)
    together = None if shared is None else _find_shared(shared)
    if alone is None and together is None and holds_training(out):
        raise TideError(f"{out} holds a checkpoint and no {STATE} to resume from; train into another folder")
    return max((each for each in (alone, together) if each is not None), key=lambda each: each.step, default=None)


def _find_shared(folder: Path) -> Found:
    described: _Described = read_json(folder / DESCRIBED, _Described)
    return _found(folder, described["progress"], described["record"])


def _find_alone(out: Path) -> Found | None:
    path = out / STATE
    if not path.exists():
        return None
    with open_tensors(path) as file:
        stored = file.get_tensor("record") if "record" in file.keys() else None
        progress: _Progress = _parsed((file.metadata() or {}).get("progress", ""), _Progress, f"{path} (progress)")
    return _found(path, progress, _record(out, stored))


def _found(path: Path, progress: _Progress, record: Record) -> Found:
    step, revived, steps = progress["step"], progress["revived"], former_defaults() | record["config"]
    if not isinstance(steps["steps"], int) or not 0 <= step <= steps["steps"] or revived < 0:
        raise TideError(f"{path} says step {step} of {steps['steps']} and {revived} revived; {_REMEDY}")
    return Found(step, revived, progress.get("moments"), progress.get("dead_counts", []), record, path)


def _record(out: Path, stored: Tensor | None) -> Record:
    """What ``training.json`` held when the state was written; for states of older versions, what it holds now."""
    if stored is None:
        where, record = out / TRAINING, read_json(out / TRAINING, Record)
    else:
        where = out / STATE
        record = _parsed(stored.contiguous().view(torch.uint8).numpy().tobytes(), Record, f"{where} (record)")
    for i, entry in enumerate(record["history"]):
        if entry.get("step") is None:
            raise TideError(f"{where}: history[{i}].step is missing; {_REMEDY}")
    return record


def read(
    found: Found,
    model: Mapping[str, Tensor],
    parameters: Sequence[Tensor],
    world: World | None = None,
    by_latent: Set[str] = frozenset(),
) -> State:
    """The state that was found, or this rank's part of it: its rows of the tensors ``by_latent``.

    Its tensors must match ``model`` and ``parameters``, those of the optimiser in its order. Raises
    :class:`~tide.errors.TideError` if they do not.
    """
    path, world = found.path, world or World()
    tensors = dict(read_shared(path, world, by_latent)) if path.is_dir() else _read_alone(path, world, by_latent)
    tensors.pop("record", None)
    n = len(parameters)
    listed = range(n) if found.moments is None else found.moments
    moments = [i for i in range(n) if i in listed and found.step]
    if found.step and not moments:
        raise TideError(f"{path} holds no moments of the optimiser; {_REMEDY}")
    like = {f"model.{name}": value for name, value in model.items()}
    like["silent_for"] = torch.empty(len(model["W_enc"]), dtype=torch.int64, device="meta")
    for i in moments:
        like |= {f"optimizer.{i}.{name}": value for name, value in _like(parameters[i]).items()}
    check_tensors(path, tensors, like, remedy=_REMEDY)
    _check_values(path, tensors, moments, found.step)
    n_latents = len(model["W_enc"]) * world.latents.count
    if len(found.dead_counts) > 2 or not all(0 <= each <= n_latents for each in found.dead_counts):
        raise TideError(f"{path}: dead_counts is {found.dead_counts}; {_REMEDY}")
    history = [entry for entry in found.record["history"] if (entry["step"] or 0) <= found.step]
    return State(
        found.step,
        found.revived,
        {**found.record, "history": history},
        {name: tensors[f"model.{name}"] for name in model},
        {i: {name: tensors[f"optimizer.{i}.{name}"] for name in _like(parameters[i])} for i in moments},
        tensors["silent_for"],
        found.dead_counts,
    )


def _read_alone(path: Path, world: World, by_latent: Set[str]) -> dict[str, Tensor]:
    """The tensors of a state in a single file, or this rank's part of them."""
    if not world.latents.several:
        return read_tensors(path)
    with open_tensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys() if name in by_latent}
        rows = {name: each[own_rows(each.get_shape()[0], world)] for name, each in slices.items()}
        return {name: rows[name] if name in rows else file.get_tensor(name) for name in file.keys()}


def _like(parameter: Tensor) -> dict[str, Tensor]:
    return {"step": torch.empty((), device="meta"), "exp_avg": parameter, "exp_avg_sq": parameter}


def _check_values(path: Path, tensors: Mapping[str, Tensor], moments: Sequence[int], step: int) -> None:
    for name in ("silent_for", *(f"optimizer.{i}.{name}" for i in moments for name in ("step", "exp_avg_sq"))):
        if bool((tensors[name] < 0).any()):
            raise TideError(f"{path}: {name} is negative; {_REMEDY}")
    for i in moments:
        if float(tensors[f"optimizer.{i}.step"]) > step:
            raise TideError(f"{path}: optimizer.{i}.step lies beyond step {step}; {_REMEDY}")
    for name in ("model.activation_scale", "model.target_scale"):
        if name in tensors and not bool(tensors[name] > 0):
            raise TideError(f"{path}: {name} is not positive; {_REMEDY}")
    stored = tensors.get("model.activation.threshold")
    if stored is not None and bool(stored < 0):
        raise TideError(f"{path}: model.activation.threshold is negative; {_REMEDY}")


def _parsed(text: str | bytes, kind: Any, where: str) -> Any:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TideError(f"{where} is not valid JSON ({error}); {_REMEDY}") from None
    check_schema(data, kind, where)
    return data


# -- whether it is the same training -----------------------------------------------------------------------------


def check_same(out: Path, record: Record, config: TrainConfig, model: TIDEConfig, source: Any) -> None:
    """Raises :class:`~tide.errors.TideError`, naming what changed, unless ``record`` is of the same training.

    The same training has the options of ``config``, except for :data:`FREE`, a model like ``model``, and the same
    ``source``; sources are compared only if both are stated.
    """
    other = f"{out} was started with other options"
    fixed = _fixed(record["config"]), _fixed(config.to_dict())
    check_unchanged(*fixed, other, remedy=_SAME, defaults=former_defaults())
    before, now = _model_options(record.get("model") or read_config(out)), _model_options(asdict(model))
    check_unchanged(before, now, other, remedy=_SAME, defaults=_model_defaults(before))
    made = record.get("source")
    if made is not None and source is not None:
        remedy = "give the same data, or train into another folder"
        other = f"{out} was trained on other data"
        check_unchanged(made, source, other, remedy=remedy, defaults=_FORMER_SOURCE)


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in comparable(config).items() if name not in FREE}


def is_trained(out: str | Path, config: TrainConfig) -> bool:
    """Whether ``out`` holds a finished training with the options of ``config``, except for device and the like."""
    path = Path(out) / TRAINING
    if not path.is_file():
        return False
    record: Record = read_json(path, Record)
    if first_difference(_fixed(record["config"]), _fixed(config.to_dict()), former_defaults()) is not None:
        return False
    return bool(record["history"]) and record["history"][-1].get("step") == config.steps


def _model_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a model's config that must stay the same: a pipeline may move to another folder."""
    return {
        each.name: config[each.name] for each in fields(TIDEConfig) if each.name in config and each.name != "pipeline"
    }


def _model_defaults(before: Mapping[str, Any]) -> dict[str, Any]:
    defaults = _defaults(TIDEConfig)
    return {**defaults, "modulation": _defaults(ModulationConfig) if before.get("modulation") else None}


def _defaults(kind: Any) -> dict[str, Any]:
    return {each.name: each.default for each in fields(kind) if each.default is not MISSING}
