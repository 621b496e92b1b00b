"""The models that studies look into: trained once into a folder, or given as a checkpoint."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tide.activations.memory import ActivationPool
from tide.errors import TideError
from tide.files import read_json, write_json
from tide.fingerprint import fingerprint
from tide.loading import BUNDLED
from tide.provenance import check_unchanged
from tide.sae.model import TIDE
from tide.scenes.judge import Judge, load_judge
from tide.studies.bench import Bench, DataSizes, reordered
from tide.studies.grid import Cell, Result, run_cells
from tide.studies.options import Options
from tide.training import TrainConfig, Trainer, build_model, is_trained
from tide.training.state import TRAINING, Record, holds_training

#: The tokens and the steps of the demo's TIDE.
DATA = DataSizes(train_images=2048, held_out_images=256, token_fraction=0.5)
STEPS = 2500
FAST_DATA = DataSizes(train_images=192, held_out_images=64, token_fraction=0.5)
FAST_STEPS = 80


@dataclass(frozen=True)
class Models:
    """The TIDEs that Figs 1, 5 and 6 share, one for each seed.

    ``<folder>/seed-<i>`` holds that of seed i as :class:`~tide.training.Trainer` leaves it, and in ``data.json`` what
    it was trained on; an interrupted training resumes from its last checkpoint.
    """

    bench: Bench
    config: TrainConfig
    folder: Path
    made_by: Mapping[str, Any] | None = None

    @classmethod
    def of_study(cls, options: Options) -> Models:
        data = FAST_DATA if options.fast else DATA
        bench = Bench(data, options.seed, options.say, progress=options.progress)
        steps = options.steps or (FAST_STEPS if options.fast else STEPS)
        config = options.training(
            TrainConfig(
                steps=steps,
                batch_tokens=bench.sizes.batch_tokens,
                backend=options.backend,
                checkpoint_every=500,
            )
        )
        return cls(bench, config, options.models or options.out / "models", options.made_by)

    def config_of(self, seed: int) -> TrainConfig:
        return replace(self.config, seed=seed)

    def described(self, seed: int) -> dict[str, Any]:
        """What results on the model of ``seed`` depend on, as JSON has it."""
        return {"training": self.config_of(seed).to_dict()}

    def of(self, seed: int) -> TIDE:
        """Raises :class:`~tide.errors.TideError` if the folder holds a training by another configuration or on other
        data."""
        config, folder, bench = self.config_of(seed), self.folder / f"seed-{seed}", self.bench
        self._check_data(folder / "data.json")
        if is_trained(folder, config):
            return TIDE.from_pretrained(
                folder,
                backend=config.backend,
                family=bench.adapter.family,
                d_model=bench.adapter.d_model,
                block=bench.block,
            )
        pool = reordered(bench.train, seed)
        return train(bench, config, pool, folder, resume=True, made_by=self.made_by).model

    def _check_data(self, path: Path) -> None:
        now = self.bench.config()
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, now)
            return
        remedy = "use the same options, or another --models"
        check_unchanged(read_json(path, dict[str, Any]), now, f"{path.parent} was trained on other data", remedy=remedy)

    def seconds(self, seed: int) -> float:
        """What :meth:`of` will take."""
        config = self.config_of(seed)
        if is_trained(self.folder / f"seed-{seed}", config):
            return 0.0
        return self.bench.seconds(config, self.bench.train)


def model_cells(models: Models, seeds: Sequence[int], config: Callable[[int], dict[str, Any]]) -> list[Cell]:
    """The trainings that the other cells of each seed need, as cells of their own; ``config`` is those of a seed."""

    def run(seed: int) -> Result:
        models.of(seed)
        return {"steps": models.config.steps}

    return [
        Cell(f"seed {seed} model", config(seed), partial(run, seed), partial(models.seconds, seed)) for seed in seeds
    ]


@dataclass
class SeedStudy(ABC):
    """A study of the model of each seed, a cell each; ``sizes`` is a dataclass with the study's own."""

    models: Models
    sizes: Any
    judge: Judge = field(default_factory=load_judge)

    @property
    def bench(self) -> Bench:
        return self.models.bench

    @abstractmethod
    def measure(self, seed: int) -> Result:
        """What the cell holds."""

    @abstractmethod
    def seconds(self, seed: int) -> float:
        """What :meth:`measure` will take."""

    def run(self, seeds: Sequence[int], options: Options) -> list[Result]:
        """The cells of all seeds, in ``options.out``."""
        by = {"data": self.bench.config(), "study": {**vars(self.sizes), "judge": fingerprint([self.judge])}}
        cells = [
            Cell(
                f"seed {seed}",
                {**by, **self.models.described(seed)},
                partial(self.measure, seed),
                partial(self.seconds, seed),
            )
            for seed in seeds
        ]
        found = run_cells(cells, options.out, options.say)
        return [found[cell.name] for cell in cells]


@dataclass(frozen=True)
class Checkpoint:
    """One given model, in the place of those that :class:`Models` trains: the same for every seed."""

    model: TIDE

    def of(self, seed: int) -> TIDE:
        return self.model

    def described(self, seed: int) -> dict[str, Any]:
        return {"sae": asdict(self.model.config), "weights": self._weights}

    @cached_property
    def _weights(self) -> str:
        return fingerprint([self.model])


def train(
    bench: Bench,
    config: TrainConfig,
    pool: ActivationPool,
    out: Path,
    *,
    resume: bool,
    made_by: Mapping[str, Any] | None = None,
) -> Trainer:
    """Trains on the pool into ``out``: with ``resume`` an earlier training on a pool is continued, else replaced.

    ``made_by`` is for ``run.json``. Raises :class:`~tide.errors.TideError` if there is a training of another kind
    (:func:`check_replaceable`).
    """
    if not resume:
        check_replaceable(out)
    sizes = bench.sizes
    trainer = Trainer(build_model(bench.adapter, bench.block, config), config, out, progress=bench.progress)
    trainer.fit(
        pool.from_step,
        resume=resume,
        source=_source(pool),
        data={"name": BUNDLED, "images": sizes.train_images, "tokens": sizes.token_fraction, "seed": bench.seed},
        weights=bench.weights,
        made_by=made_by,
    )
    return trainer


def check_replaceable(out: Path) -> None:
    """Raises :class:`~tide.errors.TideError` if ``out`` holds a training that was not made on a pool, such as one of
    `tide train`: a study could not make it again."""
    if not holds_training(out):
        return
    source = read_json(out / TRAINING, Record).get("source") if (out / TRAINING).exists() else None
    if not source or "places" not in source:
        raise TideError(f"{out} holds a training of another command; choose another folder")


def _source(pool: ActivationPool) -> dict[str, Any]:
    """What a pool's batches are: which tokens of which images at which timesteps, and their order. The values are left
    out, since their last bits depend on the machine."""
    rows = pool.all
    places = (rows.sample, rows.token, rows.timestep[rows.group.long()])
    digest = hashlib.sha256(b"".join(each.cpu().numpy().tobytes() for each in places)).hexdigest()[:16]
    return {"rows": len(pool), "places": digest, "d_model": rows.d_model, "paired": rows.paired, "seed": pool.seed}
