"""The training configuration: one dataclass, the same as a YAML file and as the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tide.errors import TideError
from tide.files import read_yaml
from tide.messages import one_line
from tide.sae.config import Activation, ModelOptions, TIDEConfig
from tide.sae.modulation import ModulationConfig
from tide_kernels import LossOptions, LossWeights

#: The default learning rate as a share of 1 / sqrt(d), the size of an entry of a unit row: 4e-3 at d = 192.
LR_SHARE = 0.055

#: How many latents a token has on average, unless ``k`` or ``density`` is set; like the activation function by the rule
#: of docs/method.md.
DEFAULT_K = 64

#: The paper's autoencoder: activation function and share of active latents.
PAPER_OPTIONS: dict[str, Any] = {"activation": "topk", "density": 0.05}


@dataclass(frozen=True)
class LossConfig:
    """Weights of eqs 13-17 in normalised units, and the options of eq. 16.

    ``s_target`` and ``delta`` are those of TopK and BatchTopK; the others have a penalty of their own with the weight
    ``sparsity``. ``s_target`` is a fraction of the scheduled k / n. ``auxk`` weighs the auxiliary loss on dead latents
    (off by default: revival resets them instead).

    ``prefixes`` nest dictionaries in each other (Matryoshka; Bussmann et al., arXiv 2503.17547): shares of the latents,
    ascending and below 1. ``mse`` and ``cosine`` are then means over the reconstructions by the first m latents, for
    each prefix and for all latents, ``x_hat_m = sum over j < m of z_j W_dec_j + b_dec``; all other terms are of the
    whole code and its residual.

    Attributes:
        mse, cosine: weights of the two parts of the reconstruction loss (eqs 13 and 14).
        temporal: weight of the difference of a pair's latents (eq. 15); needs paired activations.
        sparsity: weight of eq. 16, or of the activation's own penalty.
        reg: weight of the squared norms of both weights (eq. 17).
        auxk: weight of the auxiliary loss on dead latents.
        k_aux: dead latents that a token may use for it.
        s_target: a fraction of the scheduled k / n.
        delta: where Huber's function turns linear.
        prefixes: shares of the latents, ascending.
    """

    mse: float = 1.0
    cosine: float = 1.0
    temporal: float = 1e-4
    sparsity: float = 1.0
    reg: float = 1e-7
    auxk: float = 0.0
    k_aux: int = 64
    s_target: float = 0.8
    delta: float = 0.01
    prefixes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if any(not low < high for low, high in pairwise((0.0, *self.prefixes, 1.0))):
            raise TideError(f"loss.prefixes = {list(self.prefixes)} must ascend between 0 and 1, as in [0.0625, 0.25]")
        _check_range(self, ("mse", "cosine", "temporal", "sparsity", "reg", "auxk", "s_target"), 0)
        if not self.delta > 0:
            raise TideError(f"delta = {self.delta} must be positive; it is where Huber's function turns linear")

    def options(self, k: int, n_latents: int, *, paired: bool) -> LossOptions:
        """The loss of a step at the scheduled ``k``; without pairs the temporal term has no weight."""
        temporal = self.temporal if paired else 0.0
        return LossOptions(
            k,
            k_aux=self.k_aux if self.auxk else 0,
            paired=paired,
            weights=LossWeights(self.mse, self.cosine, temporal, self.sparsity, self.auxk),
            s_target=self.s_target * k / n_latents,
            delta=self.delta,
            prefixes=self.prefix_sizes(n_latents),
        )

    def prefix_sizes(self, n_latents: int) -> tuple[int, ...]:
        """How many latents each of the prefixes has, at least one.

        Raises :class:`~tide.errors.TideError` if two have as many, or one has all.
        """
        sizes = tuple(max(1, round(share * n_latents)) for share in self.prefixes)
        if any(low >= high for low, high in pairwise((*sizes, n_latents))):
            raise TideError(
                f"loss.prefixes = {list(self.prefixes)} are {list(sizes)} of {n_latents} latents and must be different "
                "numbers; give shares that are further apart"
            )
        return sizes


@dataclass(frozen=True)
class ProgressiveK:
    """k falls from ``start`` x k to k over the first ``length`` of the steps; ``shape="off"`` keeps it constant."""

    start: float = 4.0
    length: float = 0.2
    shape: Literal["linear", "cosine", "exponential", "off"] = "linear"

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_range(self, ("start",), 1)
        _check_range(self, ("length",), 0, 1)


@dataclass(frozen=True)
class RevivalConfig:
    """A latent silent for ``after_tokens`` tokens is reset, checked ``every`` steps; ``every=0`` turns it off."""

    after_tokens: int = 100_000
    every: int = 25

    def __post_init__(self) -> None:
        _check_range(self, ("after_tokens",), 1)
        _check_range(self, ("every",), 0)


@dataclass(frozen=True)
class TrainConfig(ModelOptions):
    """How a TIDE is trained: the model's own options (:class:`~tide.sae.ModelOptions`), its sizes, and the schedule.

    n is ``n_latents``, or else ``expansion`` x d; k is ``k``, or else ``density`` x n, or else :data:`DEFAULT_K`. The
    paper's TopK at 5 % is ``activation="topk", density=0.05``.
    ``modulation=False`` trains the plain SAE; ``pre_norm``, ``undo`` and ``timestep_thresholds`` then have no effect.
    ``modulation_init`` "identity" copies the timestep embedding from the diffusion model and starts with scale and
    shift zero, like the plain SAE; "adaln" also copies the block's scale and shift; "random" copies nothing. JumpReLU,
    ReLU and Gated have a penalty of their own, with the weight ``loss.sparsity``. ReLU and Gated train more slowly, as
    does ``undo``. BatchTopK and JumpReLU, and with ``match_l0`` ReLU and Gated, end with a threshold at which k latents
    a token are active on training tokens (:class:`tide.training.matching.L0Match`).
    ``batch_tokens`` is the number of rows of a step. ``shard_latents`` ranks at a time divide the latents of a model
    that does not fit one device (docs/scale.md).

    ``lr`` None is :data:`LR_SHARE` / sqrt(d). The modulation, whose embedding is already trained, learns at
    ``modulation_lr`` times that. The long ``warmup`` keeps latents of TopK alive: Adam's first steps at the full rate
    silence more than half of them.

    With ``precision`` "bf16" the kernels read weights and tokens that are rounded to bfloat16 in every step. The master
    weights, which AdamW updates and checkpoints hold, their gradients and moments are always float32.

    Attributes:
        modulation: False is the plain SAE.
        modulation_init: "identity", "adaln" or "random".
        modulation_chunk: which of the block's modulations is copied: that of the attention ("msa") or of the
            feed-forward ("mlp").
        modulation_trainable: whether the modulation learns at all.
        expansion: n over d, unless ``n_latents`` is given.
        density: k over n, unless ``k`` is given.
        n_latents: n.
        k: active latents of a token.
        steps: of training.
        batch_tokens: rows of a step.
        lr: the highest learning rate.
        modulation_lr: that of the modulation, over ``lr``.
        warmup: share of the steps in which the rate rises.
        final_lr: the rate at the end, over ``lr``; it falls along a cosine.
        betas: of AdamW.
        weight_decay: of AdamW.
        clip: the largest norm of all gradients together.
        loss: weights of the loss.
        progressive_k: how k falls to its value.
        revival: how dead latents are brought back.
        precision: "fp32" or "bf16".
        backend: of the kernels.
        device: that of the model.
        shard_latents: ranks that divide the latents.
        seed: of initialisation and batches.
        log_every: steps from one point of the curves to the next.
        checkpoint_every: steps from one saved state to the next.
    """

    activation: Activation = "jumprelu"
    modulation: bool = True
    modulation_init: Literal["identity", "adaln", "random"] = "identity"
    modulation_chunk: Literal["msa", "mlp"] = "msa"
    modulation_trainable: bool = True
    expansion: int = 16
    density: float | None = None
    n_latents: int | None = None
    k: int | None = None
    steps: int = 1000
    batch_tokens: int = 1024
    lr: float | None = None
    modulation_lr: float = 0.1
    warmup: float = 0.2
    final_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    clip: float = 1.0
    loss: LossConfig = field(default_factory=LossConfig)
    progressive_k: ProgressiveK = field(default_factory=ProgressiveK)
    revival: RevivalConfig = field(default_factory=RevivalConfig)
    precision: Literal["fp32", "bf16"] = "fp32"
    backend: str = "auto"
    device: str = "cpu"
    shard_latents: int = 1
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choices(self)
        counts = ("steps", "batch_tokens", "expansion", "shard_latents", "log_every", "checkpoint_every")
        _check_range(self, counts, 1)
        _check_range(self, ("warmup", "final_lr"), 0, 1)
        _check_range(self, ("weight_decay",), 0)
        for name in ("lr", "modulation_lr", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TideError(f"{name} = {value} must be positive")
        if self.density is not None and not 0 < self.density <= 1:
            raise TideError(f"density = {self.density} must lie in (0, 1]; it is k / n_latents")
        idle = self.modulation_init == "identity" and not self.modulation_trainable
        if self.modulation and idle and not self.timestep_thresholds:
            raise TideError(
                "a modulation that starts as the identity and is not trained has no effect; "
                "set modulation_init = adaln, modulation = false, or timestep_thresholds = true, which need it"
            )
        if self.batch_tokens % 2:
            raise TideError(f"batch_tokens = {self.batch_tokens} must be even: neighbouring timesteps come in pairs")
        if self.shard_latents > 1:
            self._check_shards()

    def _check_shards(self) -> None:
        """Raises for what ranks that divide the latents cannot train."""
        shown = f"shard_latents = {self.shard_latents}"
        if self.activation in ("relu", "gated") or self.undo:
            what = "undo" if self.undo else f"activation = {self.activation}"
            raise TideError(
                f"{shown} cannot train {what}; use topk, batch_topk or jumprelu without undo, or leave it off"
            )
        if self.loss.prefixes:
            raise TideError(f"{shown} cannot train loss.prefixes, which cut through the ranks; leave one of them off")

    def sizes(self, d_model: int) -> tuple[int, int]:
        """``(n_latents, k)`` for activations of width ``d_model``."""
        n_latents = self.n_latents if self.n_latents is not None else self.expansion * d_model
        if self.k is not None:
            k = self.k
        else:
            k = DEFAULT_K if self.density is None else max(1, round(self.density * n_latents))
        if not 1 <= k <= n_latents:
            shown = f"k = {k}" if self.k is not None else f"k = {k} (the default)"
            raise TideError(f"{shown} must lie between 1 and n_latents = {n_latents}; lower k or raise n_latents")
        if n_latents % self.shard_latents:
            raise TideError(
                f"n_latents = {n_latents} cannot be divided among {self.shard_latents} ranks; give a multiple of "
                f"shard_latents = {self.shard_latents}"
            )
        return n_latents, k

    def model_config(self, d_model: int, modulation: ModulationConfig | None, **trained_on: Any) -> TIDEConfig:
        """The config of the model to train, for activations of width ``d_model``; ``trained_on`` says where they come
        from (family, pipeline, block, tensor)."""
        n_latents, k = self.sizes(d_model)
        options = {option.name: getattr(self, option.name) for option in fields(ModelOptions)}
        if modulation is None:
            options |= {"pre_norm": "none", "undo": False, "timestep_thresholds": False}
        prefixes = self.loss.prefix_sizes(n_latents)
        return TIDEConfig(d_model, n_latents, k, modulation, prefixes=prefixes, **options, **trained_on)

    def learning_rate(self, d_model: int) -> float:
        """The highest of the schedule, for activations of width ``d_model``."""
        return self.lr if self.lr is not None else LR_SHARE / math.sqrt(d_model)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, those of each group in a dictionary of its own, as :meth:`from_dict` takes them."""
        return asdict(self)

    def changed(self, values: Mapping[str, Any]) -> TrainConfig:
        """This configuration with other ``values``, by their full names, such as ``loss.temporal``.

        Raises :class:`~tide.errors.TideError` for a name that is not an option's, and for a value of another type.
        """
        raw = self.to_dict()
        for full, value in values.items():
            *groups, name = full.split(".")
            at: Any = raw
            for group in groups:
                at = at.get(group) if isinstance(at, dict) else None
            if not isinstance(at, dict) or isinstance(at.get(name, at), dict):
                raise TideError(f"{one_line(repr(full))} is not an option of the training configuration")
            at[name] = value
        return TrainConfig.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> TrainConfig:
        """Builds the configuration. An unknown key is an error that lists the known ones, a value of another type one
        that names the option."""
        built = _build(cls, raw, "the training configuration", "")
        assert isinstance(built, cls)
        return built

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        """Reads :meth:`from_dict`'s mapping from a YAML file; options that it leaves out have their defaults."""
        return cls.from_dict(read_yaml(Path(path)))


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's plain values without the density where k is set: it has no effect there, and older versions
    always stored one of 0.05."""
    return {name: value for name, value in config.items() if name != "density" or config.get("k") is None}


def former_defaults() -> dict[str, Any]:
    """The values of options that a configuration lacks because it is older than they are: TopK at 5 %, the default of
    its day."""
    return TrainConfig(**PAPER_OPTIONS).to_dict()


def _build(cls: type, raw: dict[str, Any], where: str, prefix: str) -> Any:
    known = [f.name for f in fields(cls)]
    if unknown := sorted(map(str, raw.keys() - set(known))):
        raise TideError(f"unknown option {one_line(repr(unknown[0]))} in {where}; known: {', '.join(known)}")
    hints = get_type_hints(cls)
    return cls(**{name: _value(prefix + name, hints[name], value) for name, value in raw.items()})


def _value(name: str, kind: Any, value: Any) -> Any:
    """``value`` as ``kind``. YAML reads 1e-3 as a word, so a word that is a number counts as one."""
    shown = one_line(repr(value))
    if is_dataclass(kind):
        if isinstance(value, dict):
            return _build(kind, value, name, f"{name}.")  # type: ignore[arg-type]
        raise TideError(f"{name} = {shown} must be a group of options: {', '.join(f.name for f in fields(kind))}")
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        value = "off" if value is False and "off" in choices else value  # YAML reads off as false
        if value not in choices:
            raise TideError(f"{name} = {shown} is unknown; use one of {', '.join(choices)}")
        return value
    if NoneType in get_args(kind):
        return None if value is None else _value(name, get_args(kind)[0], value)
    if get_origin(kind) is tuple:
        each = get_args(kind)[0]
        n = None if get_args(kind)[-1] is ... else len(get_args(kind))
        if not isinstance(value, list | tuple) or n not in (None, len(value)):
            raise TideError(f"{name} = {shown} must be {n or 'a list of'} numbers, as in [0.1, 0.9]")
        return tuple(_value(name, each, part) for part in value)
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is kind:
        return value
    wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}.get(kind, str(kind))
    raise TideError(f"{name} = {shown} must be {wanted}")


def _check_choices(config: Any) -> None:
    """Every field with a fixed set of values holds one of them."""
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal:
            _value(name, kind, getattr(config, name))


def _check_range(config: Any, names: tuple[str, ...], least: float, most: float | None = None) -> None:
    for name in names:
        value = getattr(config, name)
        if not value >= least or (most is not None and not value <= most):
            limit = f"at least {least}" if most is None else f"between {least} and {most}"
            raise TideError(f"{name} = {value} must be {limit}")
