"""How active latents are best spent: activation functions from 8 to 128 of them, and what needs no trained dictionary.

Every activation function, plain and modulated by the timestep, is trained with the same n, tokens and steps at several
k; after training its threshold is set so that k latents are active. Measured on held-out scenes: the diffusion loss
recovered, errors, dead latents, where active latents are spent (by timestep and by place), the best single latent of
each concept, and probes on a few of them (:mod:`tide.evaluation.probing`).

Beside them stand baselines: the same autoencoder with an encoder and a decoder that stay random, one trained on a
diffusion transformer with random weights, raw neurons, a PCA. The best of all are trained four times as long.

The study stands beside Fig. 4 because it asks another question, fits no law, and has many small cells, which worker
processes compute side by side on one device.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch.nn.functional as F

from tide.errors import TideError
from tide.evaluation.baselines import PCA, StrongestNeurons
from tide.files import replace_file, tensors_writer
from tide.sae.model import TIDE
from tide.scenes.scene import Split
from tide.studies.baselines import scenes_adapter
from tide.studies.bench import NEVER, Bench
from tide.studies.features import Features, latents_and_counts
from tide.studies.grid import Cell, Result, devices_of
from tide.studies.options import Options
from tide.studies.parallel import Outcome, Workers
from tide.studies.sparsity_edits import LATENTS, RAW, ContrastEdits
from tide.studies.sparsity_report import Found, write_report
from tide.studies.sparsity_settings import (
    DEFAULT,
    EDITED,
    FAST,
    LONGER,
    MODELS,
    TRAINED,
    Model,
    Sizes,
    cell_name,
    dictionary_path,
    edit_name,
)
from tide.training import TrainConfig

#: Splits on which the diffusion loss is measured: settings are chosen on the first.
LOSS_SPLITS: tuple[Split, ...] = ("dev", "test")


def reproduce(options: Options) -> str:
    """Runs the study into ``options.out`` and returns what was found."""
    deadline = float("inf") if options.minutes is None else time.time() + 60 * options.minutes
    workers = Workers(options.workers, deadline, options.say)
    study = Study(options)
    outcome = workers.run(partial(cells_of, options.for_workers()), options.out)
    longest = study.best(outcome)
    options.say(f"{LONGER} times as long: {', '.join(longest)}.")
    longer = workers.run(partial(longer_cells_of, options.for_workers(), longest), options.out)
    outcome = Outcome({**outcome.results, **longer.results}, [*outcome.names, *longer.names],
                      {**outcome.failed, **longer.failed})  # fmt: skip
    if not outcome.results:
        raise TideError(f"no cell was finished; give more --minutes, and see {options.out / 'failed'} for what failed")
    bench = study.benches[False].bench
    described = {
        "data": bench.config(),
        "training": study.base.to_dict(),
        "devices": devices_of(outcome.results, options.out),
        "longest": longest,
    }
    found = Found(study.sizes, study.seeds, outcome.results, outcome.missing, options.out)
    return write_report(options, found, described, study.benches[False].scenes("test"))


def cells_of(options: Options) -> list[Cell]:
    """All cells but those of the convergence check; a worker process makes them again."""
    return Study(options).cells()


def longer_cells_of(options: Options, longest: Sequence[str]) -> list[Cell]:
    return Study(options).longer_cells(longest)


@dataclass
class Study:
    """The cells, and what the cells of one process share."""

    options: Options

    @cached_property
    def sizes(self) -> Sizes:
        return FAST if self.options.fast else DEFAULT

    @cached_property
    def seeds(self) -> list[int]:
        return self.options.each_seed(self.sizes.seeds)

    @cached_property
    def base(self) -> TrainConfig:
        options = self.options
        return TrainConfig(
            n_latents=self.sizes.n_latents,
            k=max(self.sizes.l0),
            steps=options.steps or self.sizes.steps,
            batch_tokens=self.sizes.data.batch_tokens,
            backend=options.backend,
            device=options.device,
            checkpoint_every=NEVER,
        )

    @cached_property
    def benches(self) -> dict[bool, Features]:
        """The bundled pipeline, and the one whose transformer has random weights."""
        return {random: self._features(random) for random in (False, True)}

    def _features(self, random: bool) -> Features:
        options = self.options
        folder = options.out / "data" / ("random" if random else "trained")
        adapter = scenes_adapter(options.device, random=random)
        bench = Bench(self.sizes.data, options.seed, options.say, adapter, folder=folder)
        return Features(bench, self.sizes.features)

    @cached_property
    def edits(self) -> ContrastEdits:
        return ContrastEdits(self.benches[False].bench, self.sizes.edits)

    @cached_property
    def pca(self) -> PCA:
        return PCA.fit(self.benches[False].bench.train.once())

    # -- settings -----------------------------------------------------------------------------------------

    def config(self, model: Model, k: int, seed: int, *, longer: bool = False) -> TrainConfig:
        """How a model is trained at ``k`` active latents."""
        penalty = self.sizes.penalty(model, k)
        config = replace(
            self.base,
            seed=seed,
            k=k,
            modulation=model.modulation,
            activation=model.activation,  # type: ignore[arg-type]
            timestep_thresholds=model.timed,
            match_l0=penalty is not None,
            steps=self.base.steps * (LONGER if longer else 1),
        )
        if model.frozen:
            config = replace(config, revival=replace(config.revival, every=0))  # it would draw rows from the data
        return config if penalty is None else replace(config, loss=replace(config.loss, sparsity=penalty))

    def best(self, outcome: Outcome) -> list[str]:
        """TopK with the modulation, and the two others that recover most with the first seed at the last of the
        settings that are computed first."""
        at = self.sizes.first[-1]

        def recovered(model: Model) -> float:
            result = outcome.results.get(cell_name(model.name, self.sizes.l0[at], self.seeds[0]))
            return -1.0 if result is None else float(result["diffusion"]["dev"]["recovered"])

        first = "TIDE + TopK"
        others = sorted((model for model in TRAINED if model.name != first), key=recovered, reverse=True)
        return [first, *(model.name for model in others[:2])]

    # -- cells, the most wanted first ----------------------------------------------------------------------

    def cells(self) -> list[Cell]:
        first = self.sizes.first
        later = [i for i in range(len(self.sizes.l0)) if i not in first]
        cells = [*self._data_cells(), self._raw_cell("neurons"), self._raw_cell("PCA")]
        cells += [self._cell(*each) for each in self._settings(first, self.seeds[:1])]
        cells += [self._cell(*each) for each in self._settings(first, self.seeds[1:])]
        cells += [self._edit_cell(name, seed) for seed in self.seeds for name in (*EDITED, "raw")]
        return cells + [self._cell(*each) for each in self._settings(later, self.seeds)]

    def longer_cells(self, longest: Sequence[str]) -> list[Cell]:
        models = [MODELS[name] for name in longest]
        return [
            self._cell(model, self.sizes.l0[i], seed, longer=True)
            for seed in self.seeds
            for i in self.sizes.first
            for model in models
        ]

    def _settings(self, places: Sequence[int], seeds: Sequence[int]) -> list[tuple[Model, int, int]]:
        return [(model, self.sizes.l0[i], seed) for seed in seeds for i in places for model in MODELS.values()]

    def _cell(self, model: Model, k: int, seed: int, *, longer: bool = False) -> Cell:
        config = self.config(model, k, seed, longer=longer)
        name = cell_name(model.name, k, seed, longer=longer)
        described = {**self._described(model.random), "training": config.to_dict(), "frozen": model.frozen}
        return Cell(name, described, partial(self._measure, model, config, name), lambda: 0.0)

    def _described(self, random: bool = False) -> dict[str, Any]:
        return {"data": self.benches[random].bench.config(), "features": asdict(self.sizes.features)}

    def _measure(self, model: Model, config: TrainConfig, name: str) -> Result:
        features = self.benches[model.random]
        bench = features.bench
        trained, _ = bench.fit(config, bench.train, frozen=model.frozen)
        found: Result = {"held_out": bench.reconstruction(trained, bench.held_out), **features.of_model(trained)}
        if not model.random:
            found["diffusion"] = {split: bench.diffusion(trained, split) for split in LOSS_SPLITS}
        self._keep_dictionary(trained, features, name)
        return found

    def _keep_dictionary(self, model: TIDE, features: Features, name: str) -> None:
        """Directions of the decoder, of the latents that fire: the report compares them between seeds."""
        latents, _ = latents_and_counts(model, features.annotated["test"])
        rows = model.W_dec.detach().float()[(latents != 0).any(0).to(model.W_dec.device)]
        path = dictionary_path(self.options.out, name)
        path.parent.mkdir(exist_ok=True)
        replace_file(path, tensors_writer({"rows": F.normalize(rows, dim=1).half()}))

    def _edit_cell(self, name: str, seed: int) -> Cell:
        raw = name == "raw"
        model = MODELS["TIDE + TopK" if raw else name]
        config = self.config(model, self.sizes.l0[self.sizes.first[-1]], seed)

        def run() -> Result:
            bench = self.benches[False].bench
            trained, _ = bench.fit(config, bench.train, frozen=model.frozen)
            return self.edits.measure(trained, RAW if raw else LATENTS, seed)

        described = {**self._described(), "training": config.to_dict(), "edits": asdict(self.sizes.edits)}
        return Cell(edit_name(name, seed), described | {"frozen": model.frozen, "raw": raw}, run, lambda: 0.0)

    def _data_cells(self) -> list[Cell]:
        """What the others read is collected by the first workers, side by side."""
        parts = {
            "training tokens": lambda features: len(features.bench.train),
            "held-out tokens": lambda features: len(features.bench.held_out),
            "scenes": lambda features: len(features.annotated),
        }

        def cell(what: str, random: bool) -> Cell:
            name = f"data, {what}{' of random weights' if random else ''}"
            return Cell(name, self._described(random), lambda: {"rows": parts[what](self.benches[random])}, lambda: 0.0)

        return [cell(what, random) for random in (False, True) for what in parts]

    def _raw_cell(self, name: str) -> Cell:
        """Reconstructions by the strongest neurons or components, and what these tell about concepts."""

        def run() -> Result:
            features = self.benches[False]
            bench, at = features.bench, {}
            for k in self.sizes.l0:
                at[str(k)] = self._of_neurons(bench, k) if name == "neurons" else self._of_components(bench, k)
            return {"k": at, **features.of_projection(None if name == "neurons" else self.pca.components)}

        return Cell(name, {**self._described(), "k": list(self.sizes.l0)}, run, lambda: 0.0)

    def _of_neurons(self, bench: Bench, k: int) -> Result:
        neurons = StrongestNeurons(self.pca.mean, k)
        found = {split: bench.diffusion_with(neurons.intervention(), split) for split in LOSS_SPLITS}
        return {"held_out": bench.measured(neurons.reconstruct(), bench.held_out), "diffusion": found}

    def _of_components(self, bench: Bench, k: int) -> Result:
        pca = self.pca
        found = {s: bench.diffusion_with(lambda x, call: pca.project(x, k), s) for s in LOSS_SPLITS}
        return {"held_out": bench.measured(pca.reconstruct(k), bench.held_out), "diffusion": found}
