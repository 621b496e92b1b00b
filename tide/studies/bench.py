"""What the cells of a grid share: the bundled pipeline, its activations (collected when first needed), measurements."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from tide.activations import Prepared, collect, prepare
from tide.activations.collect import draw_tokens, sample_generator
from tide.activations.memory import ActivationPool
from tide.adapters import Adapter, Block, adapter_for
from tide.evaluation.diffusion_loss import (
    Intervention,
    diffusion_loss,
    recovered,
    sae_intervention,
    zero_ablation,
)
from tide.evaluation.reconstruction import Reconstruct, evaluate_reconstruction, with_sae
from tide.fingerprint import fingerprint, pipeline_fingerprints
from tide.interpretation.timesteps import spread_timesteps
from tide.sae.model import TIDE, inference
from tide.scenes.annotate import images_of
from tide.scenes.pipeline import MAX_CAPTION_TOKENS, load_pipeline
from tide.scenes.scene import Scene, Split, prompts
from tide.studies.kept import kept_rows
from tide.studies.options import Options
from tide.studies.shifted import shifted_images, shifted_scenes
from tide.training import RevivalConfig, TrainConfig, Trainer, build_model
from tide_kernels import LossOptions

#: A cell is trained without interruption, so only its last state is written.
NEVER = 10**9
#: Rows of a pool that are measured at a time.
EVALUATION_ROWS = 4096
#: Steps that are timed for an estimate, after one that is not.
TIMED_STEPS = 3


@dataclass(frozen=True)
class DataSizes:
    """How many images a grid sees. :attr:`Bench.train` keeps ``token_fraction`` of the tokens."""

    train_images: int
    held_out_images: int
    token_fraction: float = 1.0
    wide_images: int = 0
    sample_fraction: float = 1 / 16
    loss_prompts: int = 48
    loss_timesteps: int = 10
    train_rows: int = 16384
    batch_tokens: int = 1024


FAST_DATA = DataSizes(
    train_images=64, held_out_images=16, token_fraction=0.5, loss_prompts=4, loss_timesteps=3, batch_tokens=128
)


@dataclass(frozen=True)
class VariantSizes:
    """The sizes of a study that compares variants of one model."""

    data: DataSizes = DataSizes(
        train_images=2048, held_out_images=96, token_fraction=0.5, loss_prompts=32, loss_timesteps=6
    )
    n_latents: int = 3072
    k: int = 154
    seeds: int = 3
    steps: int = 1000
    #: Tokens of silence after which a latent is revived.
    after_tokens: int = 50_000

    def training(self, options: Options, decided: Sequence[str] = ()) -> TrainConfig:
        """What the variants differ from: the paper's autoencoder, changed by :attr:`Options.set`."""
        return options.training(
            TrainConfig(
                n_latents=self.n_latents,
                k=self.k,
                steps=options.steps or self.steps,
                batch_tokens=self.data.batch_tokens,
                backend=options.backend,
                checkpoint_every=NEVER,
                revival=RevivalConfig(after_tokens=self.after_tokens),
                activation="topk",
            ),
            decided,
        )


#: The fast ones' arguments.
FAST_VARIANTS: dict[str, Any] = {
    "data": FAST_DATA, "n_latents": 384, "k": 19, "seeds": 2, "steps": 30, "after_tokens": 500
}  # fmt: skip


@dataclass
class Bench:
    """One block of the bundled pipeline and its activations, all drawn from ``seed``."""

    sizes: DataSizes
    seed: int = 0
    say: Callable[[str], None] = print
    adapter: Adapter = field(default_factory=lambda: adapter_for(load_pipeline()))
    progress: bool = False
    at: Block = "penultimate"
    #: Where activations are kept, for other processes that measure on the same ones; None keeps them in memory alone.
    folder: Path | None = None

    @cached_property
    def block(self) -> int:
        return self.adapter.resolve_block(self.at)

    @cached_property
    def pipeline(self) -> str:
        """The weights that activations come from."""
        parts = self.adapter.pipe.components
        return fingerprint(parts[name] for name in sorted(parts) if isinstance(parts[name], nn.Module))

    @cached_property
    def weights(self) -> dict[str, str]:
        """Those of ``run.json``, for each component."""
        return pipeline_fingerprints(self.adapter.pipe)

    def config(self) -> dict[str, Any]:
        """What the activations and the measurements depend on."""
        return {**asdict(self.sizes), "seed": self.seed, "block": self.block, "pipeline": self.pipeline}

    # -- activations --------------------------------------------------------------------------------------

    def _collected(self, name: str, make: Callable[[], ActivationPool]) -> ActivationPool:
        started = time.perf_counter()
        if self.folder is not None:
            path = self.folder / f"{name.replace(' ', '-')}.safetensors"
            rows = kept_rows(path, self.config(), lambda: make().all)
            return ActivationPool([rows], self.sizes.batch_tokens, seed=self.seed)
        pool = make()
        self.say(f"Collected {len(pool)} {name} in {time.perf_counter() - started:.0f} s.")
        return pool

    def _scenes(self, split: Split, n_images: int, fraction: float, seed: int) -> ActivationPool:
        rows = self.sizes.batch_tokens
        return scene_pool(self.adapter, split, n_images, self.block, rows, token_fraction=fraction, seed=seed)

    @cached_property
    def train(self) -> ActivationPool:
        """Tokens of the training scenes, ``token_fraction`` of each image's."""
        sizes = self.sizes
        return self._collected(
            "training tokens", lambda: self._scenes("train", sizes.train_images, sizes.token_fraction, self.seed)
        )

    @cached_property
    def wide(self) -> ActivationPool:
        """``sample_fraction`` of the tokens of ``wide_images`` further training scenes."""
        sizes = self.sizes
        return self._collected(
            "training tokens of more images",
            lambda: self._scenes("train", sizes.wide_images, sizes.sample_fraction, self.seed + 3),
        )

    @cached_property
    def held_out(self) -> ActivationPool:
        """All tokens of scenes of the test split, rendered and captioned as the training scenes are."""
        return self._collected(
            "tokens of held-out scenes",
            lambda: self._scenes("test", self.sizes.held_out_images, 1.0, self.seed + 1),
        )

    @cached_property
    def thinned(self) -> ActivationPool:
        """As many of those tokens of each image as of a training scene."""
        sizes = self.sizes
        return self._collected(
            "held-out tokens", lambda: self._scenes("test", sizes.held_out_images, sizes.token_fraction, self.seed + 1)
        )

    @cached_property
    def shifted(self) -> ActivationPool:
        """All tokens of the differently distributed scenes of :mod:`tide.studies.shifted`."""

        def make() -> ActivationPool:
            items = shifted_scenes(self.sizes.held_out_images, self.seed + 2)
            parts = (items[i : i + 64] for i in range(0, len(items), 64))
            data = ((shifted_images(part), [caption for _, caption, _ in part]) for part in parts)
            encoded = prepare(self.adapter, data, batch_size=64, max_sequence_length=MAX_CAPTION_TOKENS)
            batches = collect(
                self.adapter, list(encoded), [self.block], token_fraction=1.0, batch_size=32, seed=self.seed + 2
            )
            return ActivationPool((batch[self.block].to("cpu") for batch in batches), self.sizes.batch_tokens)

        return self._collected("tokens of shifted scenes", make)

    def sampled(self, seed: int) -> ActivationPool:
        """A random ``sample_fraction`` of the tokens of each image of :attr:`train`, at both timesteps of a pair."""
        rows = self.train.all
        n_tokens = int(rows.token.max()) + 1
        chosen = torch.zeros(int(rows.sample.max()) + 1, n_tokens, dtype=torch.bool)
        for image, kept in enumerate(chosen):
            kept[draw_tokens(n_tokens, self.sizes.sample_fraction, sample_generator(seed, image, 2))] = True
        mask = chosen[rows.sample, rows.token.long()]
        return ActivationPool([rows.take(mask).compacted()], self.sizes.batch_tokens, seed=seed)

    # -- training and measuring ---------------------------------------------------------------------------

    def fit(
        self,
        config: TrainConfig,
        pool: ActivationPool,
        watch: Callable[[TIDE, int], None] | None = None,
        *,
        frozen: bool = False,
    ) -> tuple[TIDE, list[dict[str, float]]]:
        """A model trained on ``pool``, in the order of the configuration's seed, and its curves. ``watch`` is called
        before every step. ``frozen`` keeps encoder and decoder as they are drawn."""
        model = build_model(self.adapter, self.block, config)
        if frozen:
            model.W_enc.requires_grad_(False)
            model.W_dec.requires_grad_(False)
        with TemporaryDirectory() as folder:
            trainer = Trainer(model, config, Path(folder) / "cell", progress=self.progress)
            trainer.fit(reordered(pool, config.seed).from_step, watch=watch)
        return model, trainer.history

    def seconds(self, config: TrainConfig, pool: ActivationPool) -> float:
        """How long :meth:`fit` will take, from a few steps at the final k, as most steps are."""
        key = repr((config.modulation, config.pre_norm, config.undo, config.activation, config.loss.auxk, id(pool)))
        key += repr(config.sizes(self.adapter.d_model))
        if key not in self._step_seconds:
            model = build_model(self.adapter, self.block, config)
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
            ticks: list[float] = []
            for batch in islice(pool.from_step(0), 1 + TIMED_STEPS):
                if not ticks:
                    model.calibrate(batch.x, batch.position)
                ticks.append(time.perf_counter())
                loss = model.loss(batch.x, batch.position, LossOptions(model.config.k, paired=batch.paired))
                loss.total.backward()
                optimizer.step()
                optimizer.zero_grad()
            self._step_seconds[key] = (time.perf_counter() - ticks[1]) / TIMED_STEPS
        return config.steps * self._step_seconds[key]

    _step_seconds: dict[str, float] = field(default_factory=dict)

    def reconstruction(self, model: TIDE, pool: ActivationPool, rows: int | None = None) -> dict[str, Any]:
        """Figures of the model on ``pool``, or on its first ``rows`` rows."""
        return self.measured(with_sae(model), pool, model.n_latents, rows)

    def measured(
        self, reconstruct: Reconstruct, pool: ActivationPool, n_latents: int | None = None, rows: int | None = None
    ) -> dict[str, Any]:
        """The same of any reconstruction, computed on the pipeline's device (:func:`measured`)."""
        return measured(reconstruct, pool, n_latents, self.scale, rows, device=self.adapter.device)

    @cached_property
    def scale(self) -> float:
        """The root mean square of the training activations: the unit of every model's error. A model's own scale comes
        from its first batch and varies by a few thousandths from seed to seed."""
        return float(self.train.all.x.float().square().mean().sqrt())

    def loss_data(self, split: Split = "test") -> list[Prepared]:
        """The scenes of the diffusion loss; those of development are for what is chosen by it."""
        if split not in self._loss_data:
            seed = self.seed + {"test": 4, "dev": 5, "train": 6}[split]
            self._loss_data[split] = prepared_scenes(self.adapter, prompts(split, self.sizes.loss_prompts, seed))
        return self._loss_data[split]

    @cached_property
    def timesteps(self) -> torch.Tensor:
        return spread_timesteps(self.adapter, self.sizes.loss_timesteps)

    @cached_property
    def diffusion_seconds(self) -> float:
        """How long :meth:`diffusion` will take: as many passes as :meth:`unedited`, which is needed anyway."""
        self.loss_data()
        started = time.perf_counter()
        self.unedited()
        return time.perf_counter() - started

    def _losses(self, name: str, intervention: Intervention, split: Split) -> dict[str, Any]:
        return diffusion_loss(
            self.adapter,
            self.loss_data(split),
            self.block,
            {name: intervention},
            timesteps=self.timesteps,
            seed=self.seed,
        )

    def unedited(self, split: Split = "test") -> dict[str, Any]:
        """The diffusion loss of the untouched model, and with the block's output set to zero."""
        if split not in self._unedited:
            self._unedited[split] = self._losses("ablated", zero_ablation, split)
        return self._unedited[split]

    def diffusion(self, model: TIDE, split: Split = "test") -> dict[str, Any]:
        """:meth:`diffusion_with` the model's reconstruction in place (eq. 4)."""
        with inference(model):
            return self.diffusion_with(sae_intervention(model), split)

    def diffusion_with(self, intervention: Intervention, split: Split = "test") -> dict[str, Any]:
        """The diffusion loss of scenes of ``split`` under a change of the block's output, the share of the loss that it
        recovers, and both for each timestep."""
        found = self._losses("model", intervention, split)["model"]
        clean, ablated = self.unedited(split)["clean"], self.unedited(split)["ablated"]
        by_timestep = {
            t: {"loss": loss, "recovered": recovered(clean["timestep"][t], loss, ablated["timestep"][t])}
            for t, loss in found["timestep"].items()
        }
        return {
            "loss": found["loss"],
            "clean": clean["loss"],
            "recovered": recovered(clean["loss"], found["loss"], ablated["loss"]),
            "timestep": by_timestep,
        }

    _loss_data: dict[Split, list[Prepared]] = field(default_factory=dict)
    _unedited: dict[Split, dict[str, Any]] = field(default_factory=dict)


def prepared_scenes(adapter: Adapter, pairs: Sequence[tuple[Scene, str]], *, batch_size: int = 64) -> list[Prepared]:
    """Rendered scenes with their captions, through the VAE and the text encoder once."""
    data = (
        (images_of([s for s, _ in pairs[i : i + batch_size]]), [c for _, c in pairs[i : i + batch_size]])
        for i in range(0, len(pairs), batch_size)
    )
    return list(prepare(adapter, data, batch_size=batch_size, max_sequence_length=MAX_CAPTION_TOKENS))


def scene_pool(
    adapter: Adapter, split: Split, n_images: int, block: int, rows: int, *, token_fraction: float, seed: int
) -> ActivationPool:
    """Activations of rendered scenes (Algorithm 1, neighbouring timesteps in pairs) in memory."""
    prepared = prepared_scenes(adapter, prompts(split, n_images, seed))
    batches = collect(adapter, prepared, [block], token_fraction=token_fraction, batch_size=32, seed=seed)
    return ActivationPool((batch[block].to("cpu") for batch in batches), rows, seed=seed)


def reordered(pool: ActivationPool, seed: int) -> ActivationPool:
    """The same rows in the order of ``seed``."""
    other = copy.copy(pool)
    other.seed = seed
    return other


def measured(
    reconstruct: Reconstruct,
    pool: ActivationPool,
    n_latents: int | None,
    scale: float,
    rows: int | None = None,
    *,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """MSE (normalised and raw), cosine and explained variance; of a model also L0, the share of dead latents and, under
    ``"l0 at"``, the L0 of each bin of timesteps."""
    batches = pool.once(EVALUATION_ROWS)
    if rows is not None:
        batches = islice(batches, max(1, rows // EVALUATION_ROWS))
    moved = (batch.to(device) for batch in batches)
    found = evaluate_reconstruction(reconstruct, moved, n_latents=n_latents, scale=scale)
    named = {"mse": "mse_normalised", "mse_raw": "mse"}
    named |= {name: name for name in ("cosine", "explained_variance", "l0", "dead") if name in found}
    figures: dict[str, Any] = {ours: float(found[theirs]) for ours, theirs in named.items()}
    at = {name: float(of_bin["l0"]) for name, of_bin in found["timestep"].items() if "l0" in of_bin}
    return figures | ({"l0 at": at} if at else {})
