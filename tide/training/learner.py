"""The training of one model: its steps, its curves, and its folder, from which it resumes."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.devices import device_of, in_double
from tide.errors import TideError, TideWarning
from tide.files import finite, remove_leftovers
from tide.runs import Contents, read_run, record_measured, write_run
from tide.sae.checkpoint import load_trained_on
from tide.sae.model import TIDE
from tide.sae.normalisation import Moments
from tide.sae.revival import Revival
from tide.training.config import TrainConfig, former_defaults
from tide.training.curves import Curves
from tide.training.dead import DeadBucket
from tide.training.finite import FiniteCheck
from tide.training.measured import Measured, measure, measured_before
from tide.training.schedules import cosine_lr, progressive_k
from tide.training.state import RESUME, Length, Record, State, check_same, find, joined, read, write
from tide.training.trackers import Trackers, logged_configuration
from tide.training.update import AdamW, gradient_norm
from tide.world import World
from tide_kernels import LossOptions, LossTerms, tide_loss
from tide_kernels.codes import WALKED
from tide_kernels.dispatch import choose
from tide_kernels.graph import GraphedLoss


@dataclass(frozen=True)
class Origin:
    """Where a training's data and its pipeline come from.

    Attributes:
        source: describes the data, as JSON (for a store, for example, its fingerprint). It is kept in
            ``training.json``, and resuming on other data is refused.
        data: of ``run.json`` (:class:`tide.runs.Contents`), as ``weights``: those of the pipeline.
        made_by: what made it, for ``run.json`` (:func:`tide.provenance.provenance`).
    """

    source: dict[str, Any] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    made_by: Mapping[str, Any] | None = None


def _read(figures: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The figures as numbers, in one copy from the device."""
    tensors = {name: in_double(value) for name, value in figures.items() if isinstance(value, Tensor)}
    read = dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True)) if tensors else {}
    return {name: read[name] if name in read else float(value) for name, value in figures.items()}


def _groups(model: TIDE, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups, each with its ``share`` of the learning rate."""
    modulation = [] if model.modulation is None else list(model.modulation.parameters())
    own = {id(p) for p in modulation}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in own and p.requires_grad], "share": 1.0},
        {"params": [p for p in modulation if p.requires_grad], "share": config.modulation_lr},
    ]
    return [group for group in groups if group["params"]]


class Learner:
    """Trains ``model``, a step at a time, and writes it to the folder ``out``.

    ``out`` gets ``config.json`` and ``model.safetensors`` (the checkpoint), ``training.json`` (configuration and
    curves), ``run.json`` (what made it, :mod:`tide.runs`), ``tensorboard/`` and ``resume/`` (optimiser state), from
    which it resumes.

    The ranks of ``world`` train one model together: each has a learner, whose batches are this rank's equal part of the
    whole ones (``config.batch_tokens`` rows), in the order of the ranks. All make the same steps, those that one
    process would make of the whole batches, and hold the same model. Until the last step they write the state to resume
    from alone, all of them at once (:mod:`tide.training.shared_state`); the first rank then writes the checkpoint.

    Where ``world`` is a :class:`~tide.world.Grid` (``config.shard_latents``), a rank holds its part of the latents
    alone, of weights, gradients, moments and counters.

    ``trackers`` get the figures that the curves get; default none.
    """

    def __init__(
        self,
        model: TIDE,
        config: TrainConfig,
        out: str | Path,
        world: World | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self.world = world or World()
        if config.shard_latents != self.world.latents.count:
            raise TideError(
                f"shard_latents = {config.shard_latents} is about `tide train` and tide.training.train under torchrun; "
                "leave it out here"
            )
        if self.world.several and not model.fused:
            what = "undo" if model.config.undo else f"activation = {model.config.activation}"
            raise TideError(
                f"{what} trains on one rank; use topk, batch_topk or jumprelu without undo, or start it once"
            )
        self.model = model.to(device_of(config.device))
        self.config = config
        self.out = Path(out)
        self.history: list[dict[str, float]] = []
        self._has_warned = False
        self.source: dict[str, Any] | None = None
        #: The resumptions with another number of steps, the latest last.
        self.lengths: list[Length] = []
        self.step = 0
        #: The step of the checkpoint in ``out``, once it is known to hold one of this training.
        self.saved: int | None = None
        #: Whether a step is half done, so that what is in memory is not to be saved.
        self.in_step = False
        device = self.model.W_enc.device
        self.revival = Revival(len(model.W_enc), config.revival.after_tokens, device)
        self.revived = 0
        self.lr = config.learning_rate(model.d_model)
        self.optimizer = AdamW(_groups(model, config), lr=self.lr, betas=config.betas, weight_decay=config.weight_decay)
        self._buffers = self._kept_gradients()
        late = device.type == "cuda"
        #: The sum of the squares of a step's gradients WALKED, if the loss adds it up; NaN until then. None on a GPU.
        self._squares = None if late else torch.zeros((), dtype=torch.float64)
        self._finite = FiniteCheck(self._refuse, late=late)
        self._dead_bucket = DeadBucket(self.revival, late=late, among=model.among)
        self._loss = GraphedLoss() if late else tide_loss
        self._curves: Curves | None = None
        self._trackers = trackers if self.world.first else None
        #: The figures of the trained model, once the last step is made.
        self.measured: Measured | None = None

    # -- beginning and end --------------------------------------------------------------------------------

    def start(self, origin: Origin, *, resume: bool) -> None:
        """Before the work: finds what is damaged in the folder, and resumes from the state there if asked to. The
        folder is locked."""
        if self.world.first:
            remove_leftovers(self.out / RESUME)
        read_run(self.out)
        if resume:
            self._resume(origin.source)
        if origin.source is not None:
            self.source = json.loads(json.dumps(origin.source))
        if self._trackers is not None and self.step < self.config.steps:
            self._trackers.start(logged_configuration(self.config, self.model, origin.data), resume=resume)

    def check_start(self) -> None:
        """Once all ranks have started: they stand at the same step. Writes the checkpoint of a finished training again,
        since a kill may have come between its files."""
        steps = self.world.said(self.step)
        if len(set(steps)) > 1:
            raise TideError(
                f"the ranks find states of steps {', '.join(map(str, steps))} in {self.out}; give a folder that all of "
                "them share"
            )
        if self.saved is not None and self.step == self.config.steps:
            self.save()

    def begin(self, origin: Origin) -> None:
        """Once there is a batch, so that faulty data leave no half-made folder: writes what there is to say."""
        if not self.world.first:
            return
        write_run(self.out, self._contents(origin), origin.made_by)
        self._curves = Curves(self.out / "tensorboard", self.step + 1)
        if self._trackers is not None:
            self._trackers.record()

    def close(self) -> None:
        """Ends the curves, and the runs of trackers."""
        if self._curves is not None:
            self._curves.close()
        if self._trackers is not None:
            self._trackers.close()

    def finish(self) -> None:
        """After the last step: records its figures in ``run.json``."""
        if self.measured is None:  # it was finished before
            self.measured = measured_before(self.out)
        if self.world.first:
            last = self.history[-1]
            figures = {name: last.get(name) for name in ("mse", "cosine", "explained_variance")}
            record_measured(self.out, figures | self.measured.known())

    def save_between_steps(self) -> None:
        """Saves the steps since the last checkpoint, unless one is half done."""
        if not self.in_step and self.step > (self.saved or 0):
            self.save()

    def kept(self) -> str:
        """What is on disk, in words."""
        if self.saved is None:
            return "no checkpoint was written"
        resumable = self.world.several and self.saved < self.config.steps
        return f"the {'state' if resumable else 'checkpoint'} of step {self.saved} is kept"

    def _contents(self, origin: Origin) -> Contents:
        config = self.model.config
        return Contents(
            kind="autoencoder",
            blocks=[] if config.block is None else [config.block],
            family=config.family,
            pipeline=config.pipeline,
            weights=dict(origin.weights),
            data=dict(origin.data),
            configuration=self.config.to_dict(),
            files={"model.safetensors": "weights", "config.json": "model", "training.json": "curves"},
        )

    # -- a step -------------------------------------------------------------------------------------------

    def end_step(self, figures: dict[str, Tensor | float], batch: ActivationBatch) -> None:
        """Counts the step that :meth:`train_step` made; logs and saves where it is time to."""
        self.step += 1
        self.in_step = False
        if self._trackers is not None:
            self._trackers.after(self.model, self.step, self.config.steps)
        if self._is_logged(self.step):
            self._finite.settle()
            figures["explained_variance"] = self._explained_variance(figures.pop("whole"), batch.wanted)
            self._log(figures)
        if self.step == self.config.steps:
            rows = self._n_rows(batch.x)
            self.measured = measure(self.model, batch, self.revival.silent_for, self.history, self.step, rows)
        if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
            self.save()

    def settle(self) -> None:
        """Waits until it is known that the last step was finite."""
        self._finite.settle()

    def _explained_variance(self, mse: Tensor | float, x: Tensor) -> float:
        """``1 - sum |x - x_hat|^2 / sum |x - mean x|^2`` of a batch from the ``mse`` of all latents in normalised
        units; NaN where the rows do not vary."""
        moments = Moments.of([x])  # in float64, where rows that are equal have no variance at all
        variance = float(moments.of_all(self.world.tokens).variance.mean())
        return 1 - float(mse) * float(self.model.output_units.scale) ** 2 / variance if variance > 0 else math.nan

    def train_step(self, batch: ActivationBatch) -> dict[str, Tensor | float]:
        """One update of the weights; the step's figures. It counts with :meth:`end_step`."""
        config, model = self.config, self.model
        k = progressive_k(self.step, config.steps, model.config.k, model.n_latents, config.progressive_k)
        lr = cosine_lr(self.step, config.steps, self.lr, config.warmup, config.final_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        x = batch.x.to(torch.promote_types(model.W_enc.dtype, torch.float32))
        options = config.loss.options(k, model.n_latents, paired=batch.paired)
        self.optimizer.begin()
        terms = self._add_gradients(x, batch, options)
        norm = self._norm()
        skip = self._finite.add(self.step, batch, terms.total, norm)
        figures: dict[str, Tensor | float] = {"mse": terms.mse}
        if self._is_logged(self.step + 1):
            figures = self._figures(terms, norm, self._n_rows(x)) | {"k": float(k), "lr": lr}
        self.optimizer.update(norm, config.clip, skip)
        self._revive(batch, terms.fired, x)
        return figures

    def _n_rows(self, x: Tensor) -> int:
        """The rows of the whole batch of which this rank has ``x``."""
        return len(x) * self.world.tokens.count

    def _add_gradients(self, x: Tensor, batch: ActivationBatch, options: LossOptions) -> LossTerms:
        """The loss's terms; the parameters' gradients are then those of the loss and of the regularisation."""
        config, model = self.config, self.model
        dead, target = None, None if batch.target is None else batch.target.to(x.dtype)
        if config.loss.auxk:
            bucket = self._dead_bucket.size(self._n_rows(x))
            dead, options = self.revival.dead, options._replace(dead_bucket=bucket)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            if self._buffers:
                # Gradients start as those of the regularisation, reg (|W_enc|^2 + |W_dec|^2).
                more: dict[str, Any] = {
                    "dead": dead,
                    "target": target,
                    "loss": self._loss,
                    "start": 2 * config.loss.reg,
                }
                if self.world.several:
                    more["ranks"] = self.world.ranks(self._n_rows(x), model.n_latents)
                if self._squares is not None:
                    more["squares"] = self._squares.fill_(math.nan)
                return model.add_gradients(x, batch.position, options, self._buffers, **more)
            terms = model.loss(x, batch.position, options, dead=dead, target=target)
        loss = terms.total + config.loss.reg * model.regularisation() if config.loss.reg else terms.total
        loss.backward()
        return terms

    def _norm(self) -> Tensor:
        """The norm of all gradients, also of the latents of other ranks; of those whose squares the loss has added up,
        it is known."""
        gradients = self.optimizer.gradients()
        if self.model.among.several:
            own = {id(parameter.grad) for parameter in self.model.by_latent()}
            norm = gradient_norm([each for each in gradients if id(each) in own])
            norms = [self.model.among.gathered(norm.view(1))]
            if common := [each for each in gradients if id(each) not in own]:
                norms.append(gradient_norm(common).view(1))
            return torch.linalg.vector_norm(torch.cat(norms))
        known = math.nan if self._squares is None else float(self._squares)
        if math.isnan(known):
            return gradient_norm(gradients)
        walked = {id(self._buffers[name]) for name in WALKED if name in self._buffers}
        return gradient_norm([gradient for gradient in gradients if id(gradient) not in walked], known)

    @torch.no_grad()
    def _figures(self, terms: LossTerms, norm: Tensor, n_rows: int) -> dict[str, Tensor | float]:
        """What is logged of a step, before its update."""
        reg = self.config.loss.reg
        figures: dict[str, Tensor | float] = {
            "loss": terms.total.detach() + reg * self.model.regularisation() if reg else terms.total.detach(),
            "mse": terms.mse,
            "whole": terms.whole,
            "cosine": terms.cosine,
            "temporal": terms.temporal,
            "sparsity": terms.sparsity,
            "gradient_norm": norm,
            "l0": self.model.among.summed(terms.fired.sum()) / max(1, n_rows),
            "silent": self.model.among.summed((terms.fired == 0).sum()) / self.model.n_latents,
        }
        # Tokens of TopK have k latents and always fit into their places.
        return figures if self.model.activation is None else figures | {"overflow": terms.overflow / max(1, n_rows)}

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.config.steps

    def _refuse(self, step: int, batch: ActivationBatch, loss_is_finite: bool) -> None:
        with self.world.together():
            batch.check_finite(f"block {self.model.config.block}")
        what = "gradient" if loss_is_finite else "loss"
        raise TideError(f"the {what} is not finite at step {step}; lower lr ({self.lr:g}) or train in fp32")

    def _revive(self, batch: ActivationBatch, fired: Tensor, x: Tensor) -> None:
        n_rows = self._n_rows(x)
        self.revival.count(fired, n_rows)
        if self.config.loss.auxk:
            self._dead_bucket.count(n_rows)
        every = self.config.revival.every
        # Not in the last tenth: a latent restarted there would not have time to settle.
        late = self.step > 0.9 * self.config.steps
        if not every or late or (self.step + 1) % every:
            return
        self._finite.settle()  # what follows reads from the device anyway, and must not start from a bad batch
        if not bool(self.model.among.summed(self.revival.dead.sum())):
            return
        with torch.no_grad():
            x_hat = self.model(x, batch.position)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        inputs = None if batch.target is None else x
        self.revived += self.revival.revive(
            self.model, self.optimizer, batch.wanted.to(x), x_hat, generator, self.world, inputs=inputs
        )

    def _kept_gradients(self) -> dict[str, Tensor]:
        """The gradients that the fused loss writes, by the names of the weights: those of AdamW's that are kept. None
        for other losses."""
        model = self.model
        weights = {name: getattr(model, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        weights = {name: each for name, each in weights.items() if each is not None and each.requires_grad}
        if not model.fused or any(each.dtype not in (torch.float32, torch.float64) for each in weights.values()):
            return {}
        # Where the kernels want a step's gradients to be: on large pages, for example.
        kernels = choose(
            model.backend,
            "auto",
            device=model.W_enc.device,
            dtype=model.W_enc.dtype,
            n_latents=model.n_latents,
            k=model.config.k,
        )
        self.optimizer.keep(weights.values(), kernels.ops.zeros)
        return {name: each.grad for name, each in weights.items() if each.grad is not None}

    # -- logs and checkpoints -----------------------------------------------------------------------------

    def _log(self, figures: dict[str, Tensor | float]) -> None:
        values = _read(figures)
        values |= {"step": float(self.step), "revived": float(self.revived)}
        self.history.append(values)
        if values.get("overflow"):
            self._warn_of_overflow(values["overflow"])
        scalars = {f"train/{name}": value for name, value in values.items() if name != "step"}
        for log in (self._curves, self._trackers):
            if log is not None:
                log.add(scalars, self.step)

    def _warn_of_overflow(self, share: float) -> None:
        """Once for each trainer."""
        if not self._has_warned:
            warnings.warn(
                f"at step {self.step} {share:.1%} of the tokens have more latents than the 4 k places of their code, "
                "and the smallest are not trained on them; a larger k has more places",
                TideWarning,
                stacklevel=2,
            )
        self._has_warned = True

    def save(self) -> None:
        """Writes the checkpoint, the curves and the resume state, each file replaced in one step. Several ranks write
        the resume state until the last step, of which the first writes all.

        Raises :class:`~tide.errors.TideError`, and leaves all as it was, if they hold numbers that are not finite.
        """
        self._finite.settle()
        self._check_copies()
        done = self.step == self.config.steps
        record: Record = {
            "config": self.config.to_dict(),
            "history": finite(self.history),
            "model": asdict(self.model.config),
            "source": self.source,
            "lengths": self.lengths,
        }
        moments = self.optimizer.state_dict()["state"]
        weights = self.model.state_dict()
        counts = self._dead_bucket.counts()
        state = State(self.step, self.revived, record, weights, moments, self.revival.silent_for, counts)
        if not done or self.model.among.several:
            write(self.out, self.model.config, state, self.model.trained_on, self.world, self._by_latent())
        if done:
            with self.world.together():
                if self.world.first:
                    whole = joined(self.out, state) if self.model.among.several else state
                    write(self.out, self.model.config, whole, self.model.trained_on)
        self.saved = self.step

    def _by_latent(self) -> frozenset[str]:
        """The tensors of a state that have a row for each latent, by their names in it."""
        own = {id(parameter) for parameter in self.model.by_latent()}
        weights = {f"model.{name}" for name, each in self.model.named_parameters() if id(each) in own}
        numbers = [i for i, each in enumerate(self._parameters()) if id(each) in own]
        moments = {f"optimizer.{i}.{name}" for i in numbers for name in ("exp_avg", "exp_avg_sq")}
        return frozenset({"silent_for"} | weights | moments)

    def _parameters(self) -> list[Tensor]:
        """Those of the optimiser, in its order."""
        return [each for group in self.optimizer.param_groups for each in group["params"]]

    def _check_copies(self) -> None:
        """Ranks that train one model together hold the same one, or the same part of it, of which each writes a part.
        Raises :class:`~tide.errors.TideError` on all of them if they do not, as processors of different kinds may make
        it."""
        if not self.world.several:
            return
        own = {id(parameter) for parameter in self.model.by_latent()}
        sums = [(id(each) in own, float(in_double(each.detach()).sum())) for each in self.model.parameters()]
        said, across = self.world.said(sums), self.model.among.count
        common = {str([value for of_latents, value in each if not of_latents]) for each in said}
        if len(common) > 1 or any(len(set(map(str, said[column::across]))) > 1 for column in range(across)):
            raise TideError(
                f"the ranks hold different weights after step {self.step}, which is not saved; start them on "
                "processors of one kind, with as many threads each"
            )

    def _resume(self, source: dict[str, Any] | None) -> None:
        found = find(self.out)
        if found is None:
            return
        check_same(self.out, found.record, self.config, self.model.config, source)
        if found.step > self.config.steps:
            raise TideError(
                f"{self.out} has made {found.step} steps, more than {self.config.steps}; give more steps, or another "
                "folder"
            )
        state = read(found, self.model.state_dict(), self._parameters(), self.world, self._by_latent())
        before = state.record["config"].get("steps", former_defaults()["steps"])
        self.lengths = list(state.record.get("lengths", []))
        if before != self.config.steps:
            self.lengths.append({"at": state.step, "before": before, "steps": self.config.steps})
        self.model.load_state_dict(state.model)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state.moments, "param_groups": groups})
        self.revival.silent_for = state.silent_for.to(self.revival.silent_for.device)
        self._dead_bucket.restore(state.dead_counts)
        self.step, self.revived, self.saved = state.step, state.revived, state.step
        self.source = state.record.get("source")
        self._add_trained_on()
        entries = state.record["history"]
        self.history = [{n: math.nan if v is None else v for n, v in entry.items()} for entry in entries]

    def _add_trained_on(self) -> None:
        """What the checkpoint was trained on before counts as well: a data set elsewhere may have changed since."""
        try:
            before = load_trained_on(self.out)
        except TideError:  # a checkpoint that is damaged or gone is written anew from the state
            return
        now = self.model.trained_on
        self.model.trained_on = now if before is None else before if now is None else before | now
