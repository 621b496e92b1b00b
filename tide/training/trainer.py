"""Trains a TIDE on any iterator of activation batches: AdamW, cosine annealing, clipping, progressive k, revival."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tide.activations.batch import ActivationBatch
from tide.adapters.base import Adapter, Block
from tide.devices import device_of, in_double
from tide.errors import Interrupted, TideError, TideWarning
from tide.files import finite, lock_folder, new_folders, remove_leftovers
from tide.ranks import refuse_ranks
from tide.runs import Contents, read_run, record_measured, write_run
from tide.sae.checkpoint import load_trained_on
from tide.sae.model import TIDE
from tide.sae.modulation import Modulation
from tide.sae.normalisation import Moments
from tide.sae.revival import Revival
from tide.training.config import TrainConfig, former_defaults
from tide.training.curves import Curves
from tide.training.dead import DeadBucket
from tide.training.finite import FiniteCheck
from tide.training.matching import following, match_l0
from tide.training.memory import check_memory
from tide.training.prefetch import Mover
from tide.training.schedules import cosine_lr, progressive_k
from tide.training.start import started
from tide.training.state import RESUME, Length, Record, State, check_same, find, read, write
from tide.training.stopping import Stop, stop_signals
from tide.training.update import AdamW, gradient_norm
from tide_kernels import LossOptions, LossTerms, tide_loss
from tide_kernels.codes import WALKED
from tide_kernels.dispatch import choose
from tide_kernels.graph import GraphedLoss

#: Batches, or a function of the first step that yields them, so that a run resumes where it stopped.
Batches = Iterable[ActivationBatch] | Callable[[int], Iterable[ActivationBatch]]


def build_model(
    adapter: Adapter, block: Block, config: TrainConfig, *, tensor: str = "output", target: str | None = None
) -> TIDE:
    """A fresh TIDE (or SAE, or transcoder) for one block of the adapter's transformer, its modulation started as
    asked."""
    check_memory(config, adapter.d_model)
    index = adapter.resolve_block(block)
    modulation: Modulation | None = None
    if config.modulation:
        modulation = adapter.modulation(index, chunk=config.modulation_chunk)
        if config.modulation_init == "identity":
            modulation.start_as_identity()
        elif config.modulation_init == "random":
            modulation = Modulation.random(modulation.config, torch.Generator().manual_seed(config.seed))
    model_config = config.model_config(
        adapter.d_model,
        None if modulation is None else modulation.config,
        family=adapter.family,
        pipeline=adapter.name,
        block=index,
        tensor=tensor,
        target=target,
    )
    model = TIDE(model_config, modulation, backend=config.backend, seed=config.seed)
    if model.modulation is not None:
        model.modulation.requires_grad_(config.modulation_trainable)
    return model


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


class Trainer:
    """Trains ``model`` and writes it to the folder ``out``.

    ``out`` gets ``config.json`` and ``model.safetensors`` (the checkpoint), ``training.json`` (configuration and
    curves), ``run.json`` (what made it, :mod:`tide.runs`), ``tensorboard/`` and ``resume/`` (optimiser state), from
    which :meth:`fit` resumes.
    """

    def __init__(self, model: TIDE, config: TrainConfig, out: str | Path, *, progress: bool = True) -> None:
        self.model = model.to(device_of(config.device))
        self.config = config
        self.out = Path(out)
        self.progress = progress
        self.history: list[dict[str, float]] = []
        self._has_warned = False
        self.source: dict[str, Any] | None = None
        #: The resumptions with another number of steps, the latest last.
        self.lengths: list[Length] = []
        self.step = 0
        #: The step of the checkpoint in ``out``, once it is known to hold one of this training.
        self.saved: int | None = None
        self._in_step = False
        device = self.model.W_enc.device
        self.revival = Revival(model.n_latents, config.revival.after_tokens, device)
        self.revived = 0
        self.lr = config.learning_rate(model.d_model)
        self.optimizer = AdamW(_groups(model, config), lr=self.lr, betas=config.betas, weight_decay=config.weight_decay)
        self._buffers = self._kept_gradients()
        late = device.type == "cuda"
        #: The sum of the squares of a step's gradients WALKED, if the loss adds it up; NaN until then. None on a GPU.
        self._squares = None if late else torch.zeros((), dtype=torch.float64)
        self._finite = FiniteCheck(self._refuse, late=late)
        self._dead_bucket = DeadBucket(self.revival, late=late)
        self._loss = GraphedLoss() if late else tide_loss
        self._move = Mover(device)

    def fit(
        self,
        batches: Batches,
        *,
        resume: bool = False,
        source: dict[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        weights: Mapping[str, str] | None = None,
        made_by: Mapping[str, Any] | None = None,
        watch: Callable[[TIDE, int], None] | None = None,
    ) -> TIDE:
        """Runs the remaining steps and returns the model in evaluation mode.

        With ``resume`` it resumes from the last checkpoint in ``out``, if there is one. If ``batches`` is a function of
        the first step, the result equals that of an uninterrupted run; an iterable is read from its beginning. A
        resumed run may have more steps: from then on learning rate and k follow the schedules of the new number, which
        ``training.json`` records (``lengths``). The first batches, which calibrate the model, are read ahead.

        ``watch`` is called before every step with the model and the number of steps made.

        ``source`` describes the data, as JSON (for a store, for example, its fingerprint). It is kept in
        ``training.json``, and resuming on other data is refused. ``data`` and ``weights`` of the pipeline go into
        ``run.json`` as they are (:class:`tide.runs.Contents`), and so does ``made_by``
        (:func:`tide.provenance.provenance`).

        After Ctrl-C or SIGTERM the step is finished and a checkpoint written; a second signal ends the training at
        once. ``out`` is locked meanwhile.

        Raises :class:`~tide.errors.TideError` for activations or losses that are not finite, if the batches end
        early, if another training writes to ``out``, and for a state that does not fit;
        :class:`~tide.errors.Interrupted` after a signal. The last checkpoint before an error stays.
        """
        refuse_ranks()
        with new_folders(self.out), lock_folder(self.out), stop_signals() as stop:
            remove_leftovers(self.out / RESUME)
            try:
                read_run(self.out)  # a damaged one is found before the work
                self._start(source, resume)
                self._run(batches, stop, watch, partial(write_run, self.out, self._contents(data, weights), made_by))
                last = self.history[-1]
                record_measured(self.out, {n: last.get(n) for n in ("mse", "cosine", "explained_variance")})
                stop.check()
            except KeyboardInterrupt as error:
                if not self._in_step and not stop.at_once and self.step > (self.saved or 0):
                    self.save()
                raise Interrupted(self.kept(), getattr(error, "signal", signal.SIGINT)) from None
        return self.model.eval()

    def kept(self) -> str:
        """What is on disk, in words."""
        return "no checkpoint was written" if self.saved is None else f"the checkpoint of step {self.saved} is kept"

    def _start(self, source: dict[str, Any] | None, resume: bool) -> None:
        if resume:
            self._resume(source)
        if source is not None:
            self.source = json.loads(json.dumps(source))

    def _contents(self, data: Mapping[str, Any] | None, weights: Mapping[str, str] | None) -> Contents:
        config = self.model.config
        return Contents(
            kind="autoencoder",
            blocks=[] if config.block is None else [config.block],
            family=config.family,
            pipeline=config.pipeline,
            weights=dict(weights or {}),
            data=dict(data or {}),
            configuration=self.config.to_dict(),
            files={"model.safetensors": "weights", "config.json": "model", "training.json": "curves"},
        )

    def _run(
        self,
        batches: Batches,
        stop: Stop,
        watch: Callable[[TIDE, int], None] | None,
        begun: Callable[[], None],
    ) -> None:
        if self.step == self.config.steps:
            return
        with (
            contextlib.ExitStack() as opened,
            tqdm(total=self.config.steps, initial=self.step, desc=self.out.name, disable=not self.progress) as bar,
        ):
            with stop.waiting():
                stream = iter(batches(self.step) if callable(batches) else batches)
                if callable(batches) and isinstance(stream, Generator):
                    opened.callback(stream.close)  # a thread may read ahead for it
                if self.step == 0:
                    stream = started(self.model, stream, self.config.steps)
            self.model.train()
            curves: Curves | None = None
            while self.step < self.config.steps:
                # Merged, it has tens of groups and not hundreds, for each of which the modulation is computed.
                batch = self._move(self._next(stream, stop).merged())
                if curves is None:  # not before the first batch, so that faulty data leave no half-made folder
                    begun()
                    curves = opened.enter_context(contextlib.closing(Curves(self.out / "tensorboard", self.step + 1)))
                if watch is not None:
                    watch(self.model, self.step)
                self._in_step = True
                figures = self._train_step(batch)
                if self.step + 1 == self.config.steps:
                    self._match_l0(stream, batch)
                self.step += 1
                self._in_step = False
                bar.update()
                if self._is_logged(self.step):
                    self._finite.settle()
                    figures["explained_variance"] = self._explained_variance(figures.pop("whole"), batch.wanted)
                    self._log(figures, curves, bar)
                if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
                    self.save()

    def _next(self, stream: Iterator[ActivationBatch], stop: Stop) -> ActivationBatch:
        with stop.waiting():
            batch = next(stream, None)
        if batch is None:
            raise TideError(
                f"the activations ended after {self.step} of {self.config.steps} steps; collect more or lower steps"
            )
        return batch

    def _match_l0(self, stream: Iterator[ActivationBatch], last: ActivationBatch) -> None:
        """Sets a threshold that aims at k, once the weights are final."""
        if self.model.activation is not None and self.model.activation.matched:
            self._finite.settle()
            match_l0(self.model, following(stream, last, self.config.steps))

    def _explained_variance(self, mse: Tensor | float, x: Tensor) -> float:
        """``1 - sum |x - x_hat|^2 / sum |x - mean x|^2`` of a batch from the ``mse`` of all latents in normalised
        units; NaN where the rows do not vary."""
        variance = float(Moments.of([x]).variance.mean())  # in float64, where rows that are equal have none at all
        return 1 - float(mse) * float(self.model.output_units.scale) ** 2 / variance if variance > 0 else math.nan

    def _train_step(self, batch: ActivationBatch) -> dict[str, Tensor | float]:
        """One update of the weights; the step's figures."""
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
            figures = self._figures(terms, norm, len(x)) | {"k": float(k), "lr": lr}
        self.optimizer.update(norm, config.clip, skip)
        self._revive(batch, terms.fired, x)
        return figures

    def _add_gradients(self, x: Tensor, batch: ActivationBatch, options: LossOptions) -> LossTerms:
        """The loss's terms; the parameters' gradients are then those of the loss and of the regularisation."""
        config, model = self.config, self.model
        dead, target = None, None if batch.target is None else batch.target.to(x.dtype)
        if config.loss.auxk:
            dead, options = self.revival.dead, options._replace(dead_bucket=self._dead_bucket.size(len(x)))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            if self._buffers:
                # Gradients start as those of the regularisation, reg (|W_enc|^2 + |W_dec|^2).
                more: dict[str, Any] = {
                    "dead": dead,
                    "target": target,
                    "loss": self._loss,
                    "start": 2 * config.loss.reg,
                }
                if self._squares is not None:
                    more["squares"] = self._squares.fill_(math.nan)
                return model.add_gradients(x, batch.position, options, self._buffers, **more)
            terms = model.loss(x, batch.position, options, dead=dead, target=target)
        loss = terms.total + config.loss.reg * model.regularisation() if config.loss.reg else terms.total
        loss.backward()
        return terms

    def _norm(self) -> Tensor:
        """The norm of all gradients; of those whose squares the loss has added up, it is known."""
        gradients = self.optimizer.gradients()
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
            "l0": terms.fired.sum() / max(1, n_rows),
            "silent": (terms.fired == 0).float().mean(),
        }
        # Tokens of TopK have k latents and always fit into their places.
        return figures if self.model.activation is None else figures | {"overflow": terms.overflow / max(1, n_rows)}

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.config.steps

    def _refuse(self, step: int, batch: ActivationBatch, loss_is_finite: bool) -> None:
        batch.check_finite(f"block {self.model.config.block}")
        what = "gradient" if loss_is_finite else "loss"
        raise TideError(f"the {what} is not finite at step {step}; lower lr ({self.lr:g}) or train in fp32")

    def _revive(self, batch: ActivationBatch, fired: Tensor, x: Tensor) -> None:
        self.revival.count(fired, len(x))
        if self.config.loss.auxk:
            self._dead_bucket.count(len(x))
        every = self.config.revival.every
        # Not in the last tenth: a latent restarted there would not have time to settle.
        late = self.step > 0.9 * self.config.steps
        if not every or late or (self.step + 1) % every:
            return
        self._finite.settle()  # what follows reads from the device anyway, and must not start from a bad batch
        if not bool(self.revival.dead.any()):
            return
        with torch.no_grad():
            x_hat = self.model(x, batch.position)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        inputs = None if batch.target is None else x
        self.revived += self.revival.revive(
            self.model, self.optimizer, batch.wanted.to(x), x_hat, generator, inputs=inputs
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

    def _log(self, figures: dict[str, Tensor | float], curves: Curves, bar: Any) -> None:
        values = _read(figures)
        values |= {"step": float(self.step), "revived": float(self.revived)}
        self.history.append(values)
        if values.get("overflow"):
            self._warn_of_overflow(values["overflow"])
        curves.add({f"train/{name}": value for name, value in values.items() if name != "step"}, self.step)
        bar.set_postfix_str(
            f"mse {values['mse']:.4f} explained {values['explained_variance']:.1%} cos {1 - values['cosine']:.4f} "
            f"k {values['k']:.0f}"
        )

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
        """Writes the checkpoint, the curves and the resume state, each file replaced in one step.

        Raises :class:`~tide.errors.TideError`, and leaves all as it was, if they hold numbers that are not finite.
        """
        self._finite.settle()
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
        write(self.out, self.model.config, state, self.model.trained_on)
        self.saved = self.step

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
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        state = read(self.out, found, self.model.state_dict(), parameters)
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
        if self.step == self.config.steps:
            self.save()  # a kill may have come between the files of the last checkpoint

    def _add_trained_on(self) -> None:
        """What the checkpoint was trained on before counts as well: a data set elsewhere may have changed since."""
        try:
            before = load_trained_on(self.out)
        except TideError:  # a checkpoint that is damaged or gone is written anew from the state
            return
        now = self.model.trained_on
        self.model.trained_on = now if before is None else before if now is None else before | now
