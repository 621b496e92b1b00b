"""TIDE: a TopK sparse autoencoder whose input is modulated by the timestep (eqs 1, 2 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tide.errors import TideError
from tide.files import replace_files
from tide.hub import Repository
from tide.images.trained import TrainedOn
from tide.sae.activation import BatchTopK, JumpReLU, ReLU
from tide.sae.autoencoder import Autoencoder
from tide.sae.checkpoint import checkpoint_files, load_config, load_trained_on, load_weights
from tide.sae.codes import Codes
from tide.sae.composed import composed_loss
from tide.sae.config import TIDEConfig
from tide.sae.modulation import Modulation, ScaleShift
from tide.sae.normalisation import Moments, Units
from tide.sae.position import At, Position
from tide.sae.published import folder_of, publish
from tide.world import World
from tide_kernels import LossOptions, LossTerms, tide_loss
from tide_kernels.options import ACTIVATIONS as FUSED


class TIDE(Autoencoder):
    """The :class:`~tide.sae.autoencoder.Autoencoder` of activations in the diffusion model's own units.

    Scale and shift of eq. 8 are a function of the timestep, started from the diffusion model's own adaLN. On the way in
    activations are divided by ``activation_scale`` (their root mean square over tokens and channels, see
    :meth:`calibrate`), on the way out multiplied. With ``centre`` each channel's mean, ``activation_mean``, is
    subtracted first and added last::

        x_n = (x - activation_mean) / activation_scale        x_hat = activation_mean + activation_scale * x_n_hat

    and ``activation_scale`` is the root mean square deviation. Modulation, LayerNorm, ``undo`` and the loss apply to
    x_n (docs/normalisation.md). A transcoder (``config.target``) encodes x and reconstructs another tensor y, which has
    a ``target_scale`` and with ``centre`` a ``target_mean`` of its own, in the place of x's on the way out.

    Wherever a ``position`` is asked for, give a :class:`~tide.sae.Position`, or the timestep alone: a number, or
    ``[groups]`` values that share the rows evenly. A model without modulation needs none.

    Args:
        config: shapes, options and provenance.
        modulation: the adaLN copy to start from; fresh if the config asks for one and none is given.
        backend: kernel backend of ``tide_kernels``, "auto" by default.
        seed: of the initial weights.
        among: ranks that hold a part of the latents each (:class:`~tide.world.Grid`); all are here by default.
    """

    def __init__(
        self,
        config: TIDEConfig,
        modulation: Modulation | None = None,
        *,
        backend: str = "auto",
        seed: int = 0,
        among: World | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(config, generator, backend, among or World())
        self.register_buffer("activation_scale", torch.ones(()))
        self.register_buffer("activation_mean", torch.zeros(config.d_model) if config.centre else None)
        transcodes = config.target is not None
        self.register_buffer("target_scale", torch.ones(()) if transcodes else None)
        self.register_buffer("target_mean", torch.zeros(config.d_model) if transcodes and config.centre else None)
        self.modulation: Modulation | None = None
        #: The images that it was trained on; None if that is not recorded.
        self.trained_on: TrainedOn | None = None
        if modulation is not None and modulation.config != config.modulation:
            raise TideError(f"the modulation is not the config's ({config.modulation}); give both the same config")
        if config.modulation is not None:
            self.modulation = Modulation(config.modulation, generator) if modulation is None else modulation

    activation_scale: Tensor
    activation_mean: Tensor | None
    target_scale: Tensor | None
    target_mean: Tensor | None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TIDE:
        """What ``.to()``, ``.half()`` and the like do. Means stay float32 in a model of 16 bits: rounded to 16 bits, a
        mean of hundreds would be off by more than the deviations from it."""
        means = {name: getattr(self, name) for name in ("activation_mean", "target_mean")}
        super()._apply(fn, recurse)
        for name, before in means.items():
            if before is not None and (now := getattr(self, name)).itemsize < before.itemsize:
                setattr(self, name, before.to(now.device))
        return self

    # -- units and modulation -----------------------------------------------------------------------------

    def _entering(self, x: Tensor, position: At) -> tuple[Tensor, ScaleShift]:
        """``x`` as ``[N, d_model]`` in normalised units, and the modulation of these rows."""
        rows = self._rows(x)
        return self.normalised(rows), self.modulation_of(len(rows), position)

    def _rows(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.d_model:
            raise TideError(
                f"activations have width {x.shape[-1]} and this TIDE {self.d_model}; "
                "use one trained on this block and model"
            )
        return x.reshape(-1, self.d_model)

    @property
    def units(self) -> Units:
        """Those of what is encoded."""
        return Units(self.activation_scale, self.activation_mean)

    @property
    def output_units(self) -> Units:
        """Those of what is reconstructed: a transcoder's target, or what is encoded."""
        return self.units if self.target_scale is None else Units(self.target_scale, self.target_mean)

    def normalised(self, rows: Tensor) -> Tensor:
        """Rows ``[N, d_model]`` from activation to normalised units."""
        return self.units.normalised(rows)

    def normalised_target(self, target: Tensor | None) -> Tensor | None:
        """A transcoder's ``target [..., d_model]`` as rows in normalised units; None for an autoencoder.

        Raises :class:`~tide.errors.TideError` for a transcoder without a target, and for an autoencoder with one.
        """
        self._check_target(target is not None)
        return None if target is None else self.output_units.normalised(self._rows(target))

    def _check_whole(self) -> None:
        """Raises :class:`~tide.errors.TideError` for a part of the latents, where all are needed."""
        if self.among.several:
            raise TideError(
                f"this rank holds {len(self.W_enc)} of {self.n_latents} latents and all are needed; read the "
                "checkpoint that the training writes"
            )

    def _check_target(self, given: bool) -> None:
        if given and self.config.target is None:
            raise TideError("this TIDE reconstructs what it encodes; leave the target out")
        if not given and self.config.target is not None:
            raise TideError(f"this TIDE is a transcoder of {self.config.target}; pass the target as well")

    def modulation_of(self, n_rows: int, position: At) -> ScaleShift:
        """Scale, shift and threshold of ``n_rows`` rows at ``position``.

        Raises :class:`~tide.errors.TideError` if the modulation needs what the position lacks, and for rows that its
        groups cannot share evenly.
        """
        if self.modulation is None:
            return ScaleShift(threshold=self._thresholds(None))
        position = Position.of(position)
        embedding = self.modulation.embedding(position.timesteps(self.W_enc.device), position.conditioning)
        scale, shift = self.modulation.scale_and_shift(embedding)
        group = position.groups(n_rows, len(scale), scale.device)
        return ScaleShift(scale, shift, group, self._thresholds(embedding))

    def _thresholds(self, embedding: Tensor | None) -> Tensor | None:
        return None if self.activation is None else self.activation.thresholds(embedding)

    # -- the autoencoder ----------------------------------------------------------------------------------

    def encode(self, x: Tensor, position: At = None, *, k: int | None = None, prefix: int | None = None) -> Codes:
        """Sparse latents of activations ``x [..., d_model]``, flattened to rows; ``k`` None is the config's. With
        ``prefix`` only the first so many latents stay of the code of all, as in training with prefixes."""
        rows, modulation = self._entering(x, position)
        codes = self.latents(rows, modulation, k)
        return codes if prefix is None else codes.prefix(prefix)

    @property
    def competes(self) -> bool:
        """Whether a token's latents depend on one another, so that some cannot be read without all: TopK's do. The
        others' are told by thresholds."""
        return not isinstance(self.activation, BatchTopK | JumpReLU | ReLU)

    def latents_of(self, x: Tensor, position: At, features: Tensor) -> Tensor:
        """``[N, F]``: the latents ``features [F]`` of activations ``x [..., d_model]`` with their zeros, as
        :meth:`encode` has them.

        Where latents do not compete (JumpReLU, BatchTopK and ReLU), a product with F columns of the encoder; TopK
        encodes all. Raises :class:`~tide.errors.TideError` for a part of the latents, and for latents that there are
        not.
        """
        self._check_whole()
        features = features.to(self.W_enc.device)
        if len(features) and not 0 <= int(features.min()) <= int(features.max()) < self.n_latents:
            raise TideError(f"latents {features.tolist()} are not all there; this SAE has 0..{self.n_latents - 1}")
        if self.competes:
            return self.encode(x, position).columns(features)
        rows, modulation = self._entering(x, position)
        bias = None if self.b_enc is None else self.b_enc[features].to(rows.dtype)
        pre = F.linear(self.modulated(rows, modulation), self.W_enc[features].to(rows.dtype), bias)
        threshold = modulation.threshold
        if threshold is not None and threshold.ndim:  # one for each latent
            threshold = threshold[..., features].to(rows.dtype)
        assert self.activation is not None  # TopK has none, and competes
        return self.activation(pre, bias, threshold, modulation.group)

    def dense(self, x: Tensor, position: At = None) -> Tensor:
        """Latents ``[..., n_latents]`` of activations ``x [..., d_model]`` with their zeros, in evaluation mode and
        without gradients, in float32 on the device of x."""
        with inference(self):
            codes, n_own = self.encode(x.float().to(self.W_enc.device), position), len(self.W_enc)
            return codes.dense(n_own).view(*x.shape[:-1], n_own).to(x.device)

    def heights(self, x: Tensor, position: At = None) -> Tensor:
        """``[N, n_latents]``: how far the latents of ``x [..., d_model]`` are from being inactive, as
        :meth:`tide.sae.activation.Activation.heights` has it; only of an activation with a threshold to set."""
        assert self.activation is not None
        rows, modulation = self._entering(x, position)
        pre = self.pre_activations(rows, modulation)
        return self.activation.heights(pre, self.b_enc, modulation.threshold, modulation.group)

    def decode(self, codes: Codes, position: At = None) -> Tensor:
        """Activations ``[N, d_model]`` of sparse latents. The position matters only with ``undo``."""
        modulation = self.modulation_of(len(codes.values), position) if self.config.undo else ScaleShift()
        return self.output_units.restored(self.reconstruct(codes, modulation))

    def decode_dense(self, latents: Tensor) -> Tensor:
        """``latents [N, n_latents] @ W_dec`` in activation units, without bias and mean: a difference of latents
        decodes to a difference of activations."""
        if self.config.undo:
            raise TideError("decode_dense is linear and this TIDE undoes its modulation; use decode")
        return (latents @ self.W_dec.to(latents.dtype)) * self.output_units.scale.to(latents.dtype)

    def forward(self, x: Tensor, position: At = None) -> Tensor:
        """The reconstruction of ``x [..., d_model]``, or what a transcoder makes of it, in its shape and units."""
        return self.decode(self.encode(x, position), position).view_as(x)

    def loss(
        self,
        x: Tensor,
        position: At = None,
        options: LossOptions | None = None,
        *,
        dead: Tensor | None = None,
        target: Tensor | None = None,
    ) -> LossTerms:
        """The training loss (eqs 13-16) on rows in activation units; every term in normalised units.

        TopK, BatchTopK and JumpReLU have one fused op. With ``undo`` or another activation the loss is composed of
        single ops, which is slower and holds ``[N, n_latents]`` (:mod:`tide.sae.composed`).

        Args:
            x: activations ``[..., d_model]``.
            position: as for :meth:`encode`.
            options: k, the weights of the terms, prefixes and what else the loss depends on, by default those of
                :class:`tide_kernels.LossOptions` at the config's k. Its ``layer_norm``, ``backend``, ``activation`` and
                ``bandwidth`` are the model's.
            dead: ``[n_latents]`` bool, the latents that the auxiliary term revives.
            target: of a transcoder, and only of one: what x is to become, ``[..., d_model]``, in its own units.
        """
        self._check_whole()
        rows, modulation = self._entering(x, position)
        wanted = self.normalised_target(target)
        options = LossOptions(self.config.k) if options is None else options
        if not self.fused:
            return composed_loss(self, rows, modulation, options, dead, wanted)
        terms = tide_loss(rows, dead=dead, target=wanted, **self._arguments(modulation, options))
        self._track(terms)
        return terms

    @property
    def fused(self) -> bool:
        """Whether the loss is the fused op, which can add its gradients to buffers (:meth:`add_gradients`)."""
        return not self.config.undo and self.config.activation in FUSED

    def _track(self, terms: LossTerms) -> None:
        """BatchTopK's stored threshold follows what training batches keep."""
        if self.training and isinstance(self.activation, BatchTopK):
            self.activation.track(terms.least)

    def add_gradients(
        self,
        x: Tensor,
        position: At,
        options: LossOptions,
        gradients: dict[str, Tensor],
        *,
        dead: Tensor | None = None,
        target: Tensor | None = None,
        loss: Callable[..., LossTerms] = tide_loss,
        **more: Any,
    ) -> LossTerms:
        """As :meth:`loss` of a :attr:`fused` model; the gradients of ``total`` are computed along with it.

        They are added to ``gradients``, buffers by the names W_enc, b_enc, W_dec and b_dec, and to ``.grad`` of the
        modulation's and the thresholds' parameters that require one. ``loss`` is called as
        :func:`tide_kernels.tide_loss` is; ``more`` are arguments of it, of which ``start`` replaces what the buffers
        hold.
        """
        rows, modulation = self._entering(x, position)
        arguments = self._arguments(modulation, options) | more
        tables = {name: arguments[name] for name in ("scale", "shift", "threshold")}
        tables = {name: table for name, table in tables.items() if table is not None and table.requires_grad}
        found = {name: torch.zeros_like(table) for name, table in tables.items()}
        wanted = self.normalised_target(target)
        terms = loss(rows, dead=dead, target=wanted, gradients={**gradients, **found}, **arguments)
        if tables:
            with torch.autocast(rows.device.type, enabled=False):  # as the modulation's own forward pass
                torch.autograd.backward(list(tables.values()), list(found.values()))
        self._track(terms)
        return terms

    def _arguments(self, modulation: ScaleShift, options: LossOptions) -> dict[str, Any]:
        """What ``tide_loss`` is called with, besides rows, dead latents and buffers."""
        activation = self.config.activation
        options = options._replace(
            layer_norm=self.layer_norm, backend=self.backend, activation=activation, bandwidth=self.config.bandwidth
        )
        weights = {name: getattr(self, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        timed = isinstance(self.activation, BatchTopK) and self.activation.gain is not None
        # The threshold that a BatchTopK without a gain stores is for inference.
        threshold = modulation.threshold if activation == "jumprelu" or timed else None
        return {**weights, **modulation.tables(), "threshold": threshold, **options._asdict()}

    def regularisation(self) -> Tensor:
        """``R = |W_enc|^2 + |W_dec|^2`` (eq. 17)."""
        return self.among.summed(self.W_enc.square().sum() + self.W_dec.square().sum())

    # -- initialisation from data -------------------------------------------------------------------------

    @torch.no_grad()
    def calibrate(
        self, x: Tensor, position: At = None, *, more: Sequence[Tensor] = (), targets: Sequence[Tensor] = ()
    ) -> Moments:
        """Sets what starts from data, and returns the moments of ``x [..., d_model]`` and ``more`` rows, or those of
        a transcoder's ``targets``: the targets of x, and then those of each of ``more``.

        All rows give the activation scale (so that the mean of ``|x|^2 / d`` is 1) and, with ``centre``, first the
        mean. ``x`` alone gives ``b_dec``, the mean of what is decoded (the activation; with ``undo`` the modulated one;
        the target of a transcoder), ``b_enc`` such that the mean modulated activation encodes to zero, and the
        activation function's own start.

        Raises :class:`~tide.errors.TideError` for activations that :func:`tide.sae.normalisation.measured` refuses, and
        if a start is not finite.
        """
        self._check_target(bool(targets))
        centre = self.config.centre
        moments = self.units.measure([self._rows(each) for each in (x, *more)], centre=centre)
        if self.config.target is not None:
            moments = self.output_units.measure([self._rows(each) for each in targets], centre=centre)
        rows, modulation = self._entering(x.float(), position)
        modulated = self.modulated(rows, modulation)
        wanted = self.normalised_target(targets[0].float() if targets else None)
        if self.b_dec is not None:
            decoded = rows if wanted is None else wanted
            self.b_dec.copy_((modulated if self.config.undo else decoded).mean(0))
        if self.b_enc is not None:
            self.b_enc.copy_(-(self.W_enc @ modulated.mean(0)))
        if self.activation is not None:
            self.activation.calibrate(self.pre_activations(rows, modulation), self.config.k, self.among)
        self._check_finite()
        return moments

    def _check_finite(self) -> None:
        for name, value in self.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise TideError(
                    f"{name} is not finite once it starts from the first activations; "
                    "check the pipeline's weights, or train on another block"
                )

    # -- nested dictionaries ------------------------------------------------------------------------------

    def nested(self, n_latents: int) -> TIDE:
        """The first ``n_latents`` latents as a model of their own, in memory of its own: useful for one of the
        config's ``prefixes``, which were trained to reconstruct alone.

        It encodes as :meth:`encode` with ``prefix`` does. TopK alone differs: it picks k latents of the first
        ``n_latents``, not those of the k of all that are among them.

        Raises :class:`~tide.errors.TideError` if there are not so many latents.
        """
        self._check_whole()
        if not 1 <= n_latents <= self.n_latents:
            raise TideError(f"{n_latents} latents cannot be the first of {self.n_latents}; give 1 to {self.n_latents}")
        prefixes = tuple(each for each in self.config.prefixes if each < n_latents)
        config = replace(self.config, n_latents=n_latents, k=min(self.config.k, n_latents), prefixes=prefixes)
        model = TIDE(config, backend=self.backend).to(self.W_enc.device, self.W_enc.dtype)
        own = model.state_dict()
        # Of two shapes, it is the number of latents that differs.
        rows = {n: each if each.shape == own[n].shape else each[:n_latents] for n, each in self.state_dict().items()}
        model.load_state_dict(rows)
        model.trained_on = self.trained_on
        return model.train(self.training)

    def only(self, features: Sequence[int]) -> TIDE:
        """The latents ``features``, in this order, as a model of their own, in memory of its own: it encodes them as
        :meth:`latents_of` does. What it decodes is their share of the whole.

        Raises :class:`~tide.errors.TideError` for latents that there are not, or given twice, and for TopK, where a
        latent's competitors decide whether it is active.
        """
        self._check_whole()
        chosen = torch.tensor(list(features), dtype=torch.int64, device=self.W_enc.device)
        if not len(chosen) or len(chosen.unique()) < len(chosen):
            raise TideError(f"latents {chosen.tolist()} are none or not all different; give each once")
        if not 0 <= int(chosen.min()) <= int(chosen.max()) < self.n_latents:
            raise TideError(f"latents {chosen.tolist()} are not all there; this SAE has 0..{self.n_latents - 1}")
        if self.config.activation == "topk":
            raise TideError("TopK picks among all latents, so some of them alone are another model; keep the whole")
        config = replace(self.config, n_latents=len(chosen), k=min(self.config.k, len(chosen)), prefixes=())
        model = TIDE(config, backend=self.backend).to(self.W_enc.device, self.W_enc.dtype)
        # What depends on the number of latents has another shape in a model of another number.
        other = TIDE(replace(config, n_latents=self.n_latents + 1, k=1)).state_dict()
        own = {
            name: value if value.shape == other[name].shape else value[chosen]
            for name, value in self.state_dict().items()
        }
        model.load_state_dict(own)
        model.trained_on = self.trained_on
        return model.train(self.training)

    # -- checkpoint ---------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Writes ``config.json`` and ``model.safetensors`` to the folder ``path``; if one cannot be written, both stay
        as they were. Raises :class:`~tide.errors.TideError` for a part of the latents."""
        self._check_whole()
        replace_files(checkpoint_files(self.config, self.state_dict(), Path(path), self.trained_on))

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        backend: str = "auto",
        **expected: Any,
    ) -> TIDE:
        """Reads a checkpoint: a folder here, or ``owner/name`` on the Hub, of which it fetches ``config.json``,
        ``model.safetensors`` and what describes them.

        A ``Path`` is a folder here, and so is text whose first part is one (``runs/tide`` beside a folder ``runs``).

        Args:
            path: the folder or the repository.
            subfolder: of it, such as ``block-26``.
            revision: a branch, a tag or a commit of the repository.
            token: for private repositories; default the one that `hf auth login` saved, or ``HF_TOKEN``.
            cache_dir: default that of ``huggingface_hub``.
            local_files_only: only what the cache has, as ``HF_HUB_OFFLINE=1`` asks for everywhere.
            backend: kernel backend.
            expected: ``d_model=``, ``block=``, ``family=``, ``tensor=``, checked against what it was trained on.

        Raises :class:`~tide.errors.TideError` for what :func:`~tide.sae.checkpoint.load_config`,
        :func:`~tide.sae.checkpoint.load_weights` and :func:`~tide.sae.published.folder_of` refuse.
        """
        fetching = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        folder = folder_of(path, subfolder, revision, fetching)
        model = cls(load_config(folder, **expected), backend=backend)
        model.load_state_dict(load_weights(folder, model.state_dict()))
        model.trained_on = load_trained_on(folder)
        return model.eval()

    def push_to_hub(
        self,
        name: str,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        private: bool = False,
        license: str | None = None,
        message: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Sends the model with a card to the repository ``owner/name`` of the Hub, which is made if need be.

        Returns the commit's address. :func:`tide.push` sends a run's folder, with its curves, names and figures.

        Args:
            name: of the repository.
            subfolder: where in it.
            revision: a branch, made if need be.
            private: the repository is made private, or is so already.
            license: of the weights, as the Hub abbreviates it (``apache-2.0``), for the card.
            message: of the commit.
            token: one that may write; default the one that `hf auth login` saved, or ``HF_TOKEN``.

        Raises :class:`~tide.errors.TideError` for what :func:`tide.hub.upload` refuses, and for a part of the latents.
        """
        repository = Repository(name, subfolder, revision)
        return publish(self.save_pretrained, repository, license, private=private, message=message, token=token)


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, the former mode restored.

    Args:
        model: in either mode.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
