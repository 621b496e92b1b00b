"""Trains a TIDE on any iterator of activation batches: AdamW, cosine annealing, clipping, progressive k, revival."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from tide.activations.batch import ActivationBatch
from tide.adapters.base import Adapter
from tide.errors import TideError
from tide.sae.checkpoint import CONFIG, load_tensors, read_json, replace_file, write_json
from tide.sae.model import TIDE, TIDEConfig
from tide.sae.modulation import Modulation
from tide.sae.normalisation import Moments
from tide.sae.revival import Revival
from tide.training.config import TrainConfig
from tide.training.schedules import cosine_lr, progressive_k
from tide.training.start import started
from tide_kernels import LossWeights

#: Batches, or a function of the first step that yields them, so that a resumed run goes on where it stopped.
Batches = Iterable[ActivationBatch] | Callable[[int], Iterable[ActivationBatch]]


def build_model(adapter: Adapter, block: int, config: TrainConfig, *, tensor: str = "output") -> TIDE:
    """A fresh TIDE (or SAE) for one block of the adapter's transformer, its modulation started as asked."""
    n_latents, k = config.sizes(adapter.d_model)
    modulation: Modulation | None = None
    if config.modulation:
        modulation = adapter.modulation(block, chunk=config.modulation_chunk)
        if config.modulation_init == "identity":
            modulation.start_as_identity()
        elif config.modulation_init == "random":
            modulation = Modulation.random(modulation.config, torch.Generator().manual_seed(config.seed))
    model = TIDE(
        TIDEConfig(
            d_model=adapter.d_model,
            n_latents=n_latents,
            k=k,
            modulation=None if modulation is None else modulation.config,
            pre_norm=config.pre_norm if config.modulation else "none",
            undo=config.undo and config.modulation,
            activation=config.activation,
            bandwidth=config.bandwidth,
            centre=config.centre,
            family=adapter.family,
            pipeline=getattr(adapter.transformer.config, "_name_or_path", None) or None,
            block=block,
            tensor=tensor,
        ),
        modulation,
        backend=config.backend,
        seed=config.seed,
    )
    if model.modulation is not None:
        model.modulation.requires_grad_(config.modulation_trainable)
    return model


def _groups(model: TIDE, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups, each with its ``share`` of the learning rate."""
    modulation = [] if model.modulation is None else list(model.modulation.parameters())
    own = {id(p) for p in modulation}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in own and p.requires_grad], "share": 1.0},
        {"params": [p for p in modulation if p.requires_grad], "share": config.modulation_lr},
    ]
    return [group for group in groups if group["params"]]


class Trainer:
    """Trains ``model`` and writes it to the folder ``out``.

    ``out`` gets ``config.json`` and ``model.safetensors`` (the checkpoint), ``training.json`` (configuration and
    curves), ``tensorboard/`` and, beside them, ``resume/`` (optimiser state), from which :meth:`fit` goes on.
    """

    def __init__(self, model: TIDE, config: TrainConfig, out: str | Path, *, progress: bool = True) -> None:
        self.model = model.to(config.device)
        self.config = config
        self.out = Path(out)
        self.progress = progress
        self.history: list[dict[str, float]] = []
        self.step = 0
        self.revival = Revival(model.n_latents, config.revival.after_tokens)
        self.revived = 0
        self.lr = config.learning_rate(model.d_model)
        self.optimizer = torch.optim.AdamW(
            _groups(model, config),
            lr=self.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def fit(self, batches: Batches, *, resume: bool = False, watch: Callable[[TIDE, int], None] | None = None) -> TIDE:
        """Runs the remaining steps and returns the model in evaluation mode.

        With ``resume`` it goes on from ``out``'s last checkpoint, if there is one, and the result is the same as of a
        run that was not interrupted where ``batches`` is a function of the first step. An iterable is read from its
        beginning. ``watch`` is called before every step with the model and the number of steps made. The first batches,
        which the model starts from, are read ahead.

        Raises :class:`~tide.errors.TideError` for activations or losses that are not finite, and if the batches end
        early. What was checkpointed before an error stays.
        """
        if resume:
            self._resume()
        source = iter(batches(self.step) if callable(batches) else batches)
        if self.step == 0:
            source = started(self.model, source, self.config.steps)
        self.model.train()
        with (
            self._writer() as writer,
            tqdm(total=self.config.steps, initial=self.step, desc=self.out.name, disable=not self.progress) as bar,
        ):
            while self.step < self.config.steps:
                batch = next(source, None)
                if batch is None:
                    raise TideError(
                        f"the activations ended after {self.step} of {self.config.steps} steps; "
                        "collect more or lower steps"
                    )
                if watch is not None:
                    watch(self.model, self.step)
                batch = batch.to(self.config.device)
                figures = self._train_step(batch)
                self.step += 1
                bar.update()
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    figures["explained_variance"] = self._explained_variance(figures["mse"], batch.x)
                    self._log(figures, writer, bar)
                if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
                    self.save()
        return self.model.eval()

    def _explained_variance(self, mse: Tensor | float, x: Tensor) -> float:
        """``1 - sum |x - x_hat|^2 / sum |x - mean x|^2`` of a batch from its ``mse`` in normalised units; NaN where the
        rows do not vary."""
        variance = float(Moments.of([x]).variance.mean())  # in float64, where rows that are equal have none at all
        return 1 - float(mse) * float(self.model.activation_scale) ** 2 / variance if variance > 0 else math.nan

    def _train_step(self, batch: ActivationBatch) -> dict[str, Tensor | float]:
        config, model = self.config, self.model
        x = batch.x.float()
        where = (batch.timestep, batch.conditioning, batch.group)
        k = progressive_k(self.step, config.steps, model.config.k, model.n_latents, config.progressive_k)
        lr = cosine_lr(self.step, config.steps, self.lr, config.warmup, config.final_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        weights = config.loss
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            terms = model.loss(
                x,
                *where,
                paired=batch.paired,
                k=k,
                weights=LossWeights(
                    mse=weights.mse,
                    cosine=weights.cosine,
                    temporal=weights.temporal if batch.paired else 0.0,
                    sparsity=weights.sparsity,
                    auxk=weights.auxk,
                ),
                s_target=weights.s_target * k / model.n_latents,
                delta=weights.delta,
                dead=self.revival.dead.to(x.device) if weights.auxk else None,
                k_aux=weights.k_aux if weights.auxk else 0,
            )
        loss = terms.total + weights.reg * model.regularisation() if weights.reg else terms.total
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        if not torch.isfinite(norm):
            batch.check_finite(f"block {model.config.block}")
            raise TideError(f"the gradient is not finite at step {self.step}; lower lr ({self.lr:g}) or train in fp32")
        self.optimizer.step()
        self._revive(batch, terms.fired, x)
        return {
            "loss": loss.detach(),
            "mse": terms.mse,
            "cosine": terms.cosine,
            "temporal": terms.temporal,
            "sparsity": terms.sparsity,
            "gradient_norm": norm,
            "k": float(k),
            "lr": lr,
            "silent": (terms.fired == 0).float().mean(),
        }

    def _revive(self, batch: ActivationBatch, fired: Tensor, x: Tensor) -> None:
        self.revival.count(fired, len(x))
        every = self.config.revival.every
        # Not in the last tenth: a latent restarted there would not have time to settle.
        late = self.step > 0.9 * self.config.steps
        if not every or late or (self.step + 1) % every or not bool(self.revival.dead.any()):
            return
        with torch.no_grad():
            x_hat = self.model(x, batch.timestep, batch.conditioning, batch.group)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        self.revived += self.revival.revive(self.model, self.optimizer, x, x_hat, generator)

    # -- logs and checkpoints -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writer(self) -> Iterator[Any]:
        from torch.utils.tensorboard import SummaryWriter

        self.out.mkdir(parents=True, exist_ok=True)
        # What an interrupted run logged after its last checkpoint is logged again.
        again = self.step + 1 if self.step else None
        writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=again)
        try:
            yield writer
        finally:
            writer.close()

    def _log(self, figures: dict[str, Tensor | float], writer: Any, bar: Any) -> None:
        values = {name: float(value) for name, value in figures.items()}
        values |= {"step": float(self.step), "revived": float(self.revived)}
        self.history.append(values)
        for name, value in values.items():
            if name != "step":
                writer.add_scalar(f"train/{name}", value, self.step)
        bar.set_postfix_str(
            f"mse {values['mse']:.4f} explained {values['explained_variance']:.1%} cos {1 - values['cosine']:.4f} "
            f"k {values['k']:.0f}"
        )

    def save(self) -> None:
        """Writes the checkpoint, the curves and the resume state, each file replaced in one step."""
        self.model.save_pretrained(self.out)
        write_json(self.out / "training.json", {"config": self.config.to_dict(), "history": self.history})
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
        tensors["silent_for"] = self.revival.silent_for
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        progress = json.dumps({"step": self.step, "revived": self.revived})
        replace_file(
            self.out / "resume" / "state.safetensors",
            lambda temporary: save_file(tensors, temporary, metadata={"progress": progress}),
        )

    def _check_same(self, before: dict[str, Any], now: dict[str, Any], free: tuple[str, ...]) -> None:
        """Raises if what is resumed was started with other options than the ``free`` ones."""
        for name, value in json.loads(json.dumps(now)).items():
            if name not in free and before.get(name) != value:
                earlier = "its default" if before.get(name) is None else repr(before[name])
                raise TideError(
                    f"{self.out} was started with another {name} ({earlier}); "
                    "use the same configuration or another folder"
                )

    def _resume(self) -> None:
        path = self.out / "resume" / "state.safetensors"
        if not path.exists():
            return
        tensors = load_tensors(path)
        before = read_json(self.out / "training.json")
        self._check_same(before["config"], self.config.to_dict(), ("device", "log_every", "checkpoint_every"))
        self._check_same(read_json(self.out / CONFIG), asdict(self.model.config), ("pipeline",))
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
        self.model.load_state_dict({n[6:]: v for n, v in tensors.items() if n.startswith("model.")})
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".", 2)
                state.setdefault(int(i), {})[key] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.revival.silent_for = tensors["silent_for"].to(self.config.device)
        self.step, self.revived = progress["step"], progress["revived"]
        self.history = [entry for entry in before["history"] if entry["step"] <= self.step]
