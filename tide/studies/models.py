"""The TIDEs that Figs 1, 5 and 6 look into: one a seed, trained once into a folder that the figures share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tide.errors import TideError
from tide.files import read_json, write_json
from tide.provenance import first_difference
from tide.sae.model import TIDE
from tide.studies.bench import Bench, DataSizes, reordered
from tide.studies.grid import Cell, Result, run_cells
from tide.studies.options import Options
from tide.studies.reconstruction import train
from tide.training import TrainConfig, is_trained

#: The tokens and the steps of the demo's TIDE.
DATA = DataSizes(train_images=2048, held_out_images=256, token_fraction=0.5)
STEPS = 2500
FAST_DATA = DataSizes(train_images=192, held_out_images=64, token_fraction=0.5)
FAST_STEPS = 80


@dataclass(frozen=True)
class Models:
    """``<folder>/seed-<i>`` holds the TIDE of seed i as :class:`~tide.training.Trainer` leaves it, and in ``data.json``
    what it was trained on; an interrupted training goes on from its last checkpoint."""

    bench: Bench
    config: TrainConfig
    folder: Path

    @classmethod
    def of_study(cls, bench: Bench, options: Options) -> Models:
        steps = options.steps or (FAST_STEPS if options.fast else STEPS)
        config = TrainConfig(
            steps=steps,
            batch_tokens=bench.sizes.batch_tokens,
            backend=options.backend,
            checkpoint_every=500,
        )
        return cls(bench, config, options.models or options.out / "models")

    def config_of(self, seed: int) -> TrainConfig:
        return replace(self.config, seed=seed)

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
        return train(bench.adapter, bench.block, config, pool, folder, progress=bench.progress, resume=True).model

    def _check_data(self, path: Path) -> None:
        now = self.bench.config()
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, now)
        elif found := first_difference(read_json(path, dict[str, Any]), now):
            raise TideError(
                f"{path.parent} was trained on other data ({found}); use the same options, or another --models"
            )

    def measure(
        self,
        seeds: Sequence[int],
        measure: Callable[[int], Result],
        seconds: Callable[[int], float],
        by: dict[str, Any],
        options: Options,
    ) -> list[Result]:
        """What ``measure`` finds for each seed, a cell each in ``options.out``; ``by`` is what it depends on besides
        the model."""
        cells = [
            Cell(
                f"seed {seed}",
                {"data": self.bench.config(), "training": self.config_of(seed).to_dict(), "study": by},
                partial(measure, seed),
                partial(seconds, seed),
            )
            for seed in seeds
        ]
        found = run_cells(cells, options.out, options.say)
        return [found[cell.name] for cell in cells]

    def seconds(self, seed: int) -> float:
        """What :meth:`of` will take."""
        config = self.config_of(seed)
        if is_trained(self.folder / f"seed-{seed}", config):
            return 0.0
        return self.bench.seconds(config, self.bench.train)
