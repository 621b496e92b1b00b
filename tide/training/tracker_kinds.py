"""Trackers of experiments, as accelerate knows them: which there are, and how each is begun and shown pictures."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tide.errors import TideError
from tide.messages import one_line

#: Trackers with an extra of their own; others that accelerate knows can be named as well.
EXTRAS = ("wandb", "trackio")
#: The project of all runs, unless the environment names another one.
PROJECT = "tide"
#: What makes a process one of several for accelerate.
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class RunName:
    """What a run is called: ``id`` within its project, ``title`` on the page, ``group`` of the runs of one training."""

    id: str
    title: str
    group: str | None = None


def check_trackers(names: Sequence[str]) -> None:
    """Raises :class:`~tide.errors.TideError` for a tracker that accelerate does not know, or that is not installed."""
    for name in names:
        if name == "tensorboard":
            raise TideError("tensorboard is no tracker to ask for: its event files are always written; leave it off")
        if name in EXTRAS and importlib.util.find_spec(name) is None:
            raise TideError(f'tracker {name} needs the package {name}: pip install "tide-sae[{name}]"')
        if name not in (known := _classes()):
            if name in EXTRAS:
                raise TideError(f"tracker {name} needs a newer accelerate: pip install -U accelerate")
            listed = ", ".join([*EXTRAS, *sorted(known.keys() - {*EXTRAS, "tensorboard"})])
            raise TideError(f"tracker {one_line(repr(name), 80)} is unknown; use one of {listed}")
    if len(set(names)) < len(names):
        raise TideError(f"trackers {', '.join(names)} are named twice; name each once")


def begin(name: str, run: RunName, folder: Path, config: Mapping[str, Any], *, again: bool) -> Any:
    """A started tracker of accelerate; ``again`` continues the run that has this name. Files of W&B go to ``folder``.

    Raises :class:`~tide.errors.TideError` if it does not start.
    """
    with as_one_process():
        made = _classes()[name]
        options = _OPTIONS[name](run, folder, config, again) if name in _OPTIONS else {}
        places = [str(folder)] if made.requires_logging_directory else []
        project = os.environ.get(f"{name.upper()}_PROJECT", PROJECT)
        try:
            with _apart(name):
                tracker = made(project, *places, **options)
                tracker.start()
            if name not in _OPTIONS:
                tracker.store_init_configuration(dict(config))
        except Exception as error:  # code of others, which fails in ways of its own
            remedy = _REMEDIES.get(name, _REMEDY)
            raise TideError(f"tracker {name} did not start ({one_line(error, 160)}); {remedy}") from error
    return tracker


def shows_pictures(name: str, tracker: Any) -> bool:
    """Whether the tracker takes pictures."""
    return name == "trackio" or hasattr(tracker, "log_images")


def show(name: str, tracker: Any, *, key: str, picture: Image.Image, step: int) -> None:
    """Logs a picture."""
    if name == "trackio":
        import trackio

        tracker.log({key: trackio.Image(picture)}, step=step)
    else:
        tracker.log_images({key: [picture]}, step=step)


@contextmanager
def as_one_process() -> Iterator[None]:
    """A time in which accelerate takes this process for the only one, as its trackers and their logger require.

    Else it would form a group of its own of a launcher's ranks and set the number of threads, which results depend on.
    A state that the caller has made stays.
    """
    from accelerate.state import PartialState

    if PartialState._shared_state:
        yield
        return
    hidden = {name: os.environ.pop(name) for name in _LAUNCHED if name in os.environ}
    try:
        PartialState(cpu=True)
    finally:
        os.environ.update(hidden)
    try:
        yield
    finally:
        PartialState._reset_state()


def _classes() -> Mapping[str, Any]:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return {str(name): each for name, each in LOGGER_TYPE_TO_CLASS.items()}


def _of_wandb(run: RunName, folder: Path, config: Mapping[str, Any], again: bool) -> dict[str, Any]:
    return {
        "id": run.id,
        "name": run.title,
        "group": run.group,
        "config": dict(config),
        "resume": "allow" if again else None,
        "dir": os.environ.get("WANDB_DIR", str(folder)),
        "reinit": "create_new",  # the runs of several blocks are open at a time
    }


def _of_trackio(run: RunName, folder: Path, config: Mapping[str, Any], again: bool) -> dict[str, Any]:
    resume = "allow" if again else "never"
    return {"name": run.id, "group": run.group, "config": dict(config), "resume": resume, "embed": False}


_OPTIONS = {"wandb": _of_wandb, "trackio": _of_trackio}
_REMEDY = "leave it off"
_REMEDIES = {
    "wandb": "run `wandb login`, or set WANDB_MODE=offline, or leave it off",
    "trackio": "check TRACKIO_SPACE_ID and TRACKIO_DIR, or leave it off",
}


@contextmanager
def _apart(name: str) -> Iterator[None]:
    """trackio ends the run that was begun last when another one begins, and once more when the process ends. Here runs
    of several blocks are open at a time, and one of the caller's may be; each is ended by itself."""
    if name != "trackio":
        yield
        return
    from trackio import context_vars

    before = context_vars.current_run.set(None)
    try:
        yield
    finally:
        context_vars.current_run.reset(before)
