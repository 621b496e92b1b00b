"""What every study is given, how it announces its stages, and the results that it leaves in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tide.errors import TideError
from tide.files import write_json
from tide.provenance import machine, versions
from tide.training import TrainConfig
from tide.training.idle_options import idle_options

#: The width of the bundled pipeline's blocks.
WIDTH = 192

#: The options that the results of every study state.
RECORDED = ("fast", "seed", "seeds", "steps", "backend", "set")

#: Options of a training that a study has options of its own for, and those that it decides.
OWN = ("steps", "seed", "backend", "device")
DECIDED = ("modulation", "batch_tokens", "checkpoint_every", "log_every")


@dataclass(frozen=True)
class Options:
    """The options of a study; where ``seeds`` or ``steps`` is None, the study has its own.

    ``device``, ``workers`` and ``minutes`` are for studies of many small cells: where they are computed, by how many
    processes, and for how long new ones are started (None: until all are done).
    ``set`` are options of :class:`~tide.training.TrainConfig`, by their full names, that take the place of the study's.
    ``models`` is the folder in which the figures that look into trained models keep them (None: in ``out``);
    ``made_by``, of :func:`tide.provenance.provenance`, is for their ``run.json``. ``sae``, ``prompts`` and
    ``edit_prompts`` are for the bars alone: the checkpoint that they measure, and the number of prompts of the
    diffusion loss and of the edits.
    """

    out: Path
    fast: bool = False
    seed: int = 0
    seeds: int | None = None
    steps: int | None = None
    backend: str = "auto"
    progress: bool = False
    device: str = "cpu"
    workers: int = 1
    minutes: float | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    models: Path | None = None
    made_by: Mapping[str, Any] | None = None
    sae: Path | None = None
    prompts: int | None = None
    edit_prompts: int | None = None
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "prompts", "edit_prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TideError(f"--{name.replace('_', '-')} {value} is too few; give at least 1")

        for name in self.set:
            if name in OWN:
                raise TideError(f"--set {name} is not used; give --{name}, if the study has it")
            self.refuse(name, DECIDED)

    def refuse(self, name: str, decided: Sequence[str]) -> None:
        """Raises :class:`~tide.errors.TideError` if the study decides the option ``name`` itself."""
        if name in decided:
            raise TideError(f"--set {name} is not used: the study sets it itself; leave it off")

    def training(self, config: TrainConfig, decided: Sequence[str] = ()) -> TrainConfig:
        """The study's ``config`` with :attr:`set`, in which a density takes the place of the study's k.

        Raises :class:`~tide.errors.TideError` for options that the study has ``decided``, for those without effect, and
        for a k that does not fit the number of latents.
        """
        for name in self.set:
            self.refuse(name, decided)
        if "density" in self.set and "k" not in self.set:
            config = replace(config, k=None)
        changed = config.changed(self.set)
        changed.sizes(WIDTH)
        for name, reason in idle_options(changed):
            if name in self.set:
                raise TideError(f"--set {name} is not used {reason}; leave it off")
        return changed

    def for_workers(self) -> Options:
        """The same as worker processes are given them, which pickle them and say nothing."""
        return replace(self, say=_nothing, progress=False, made_by=None)

    def each_seed(self, default: int) -> list[int]:
        return [self.seed + i for i in range(self.seeds or default)]


def _nothing(text: str) -> None:
    pass


class Stages:
    """Names, times and announces the stages of a run."""

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.seconds: dict[str, float] = {}
        self.say = say

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.say(f"[{len(self.seconds) + 1}] {name} ...")
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)


def write_results(options: Options, name: str, found: dict[str, Any]) -> Path:
    """Writes ``<name>.json``: the results, the options, the versions and the machine."""
    path = options.out / f"{name}.json"
    own = {key: value for key, value in asdict(options).items() if key in RECORDED}
    write_json(path, {"study": name, "options": own, "versions": versions(), "machine": machine(), **found})
    return path
