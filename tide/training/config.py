"""The training configuration: one dataclass, the same as a YAML file and as the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from tide.errors import TideError


@dataclass
class LossConfig:
    """Weights of eqs 13-17 in normalised units, and the options of eq. 16.

    ``s_target`` is a fraction of the scheduled k / n. ``auxk`` weighs the auxiliary loss on dead latents (off by
    default: revival resets them instead).
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


@dataclass
class ProgressiveK:
    """k falls from ``start`` x k to k over the first ``length`` of the steps; ``shape="off"`` keeps it constant."""

    start: float = 4.0
    length: float = 0.2
    shape: Literal["linear", "cosine", "exponential", "off"] = "linear"


@dataclass
class RevivalConfig:
    """A latent silent for ``after_tokens`` tokens is reset, checked ``every`` steps; ``every=0`` turns it off."""

    after_tokens: int = 100_000
    every: int = 25


@dataclass
class TrainConfig:
    """How a TIDE is trained.

    ``expansion`` and ``density`` give n = expansion x d and k = density x n unless ``n_latents`` or ``k`` are set.
    ``modulation=False`` trains the plain SAE; ``modulation_init`` "adaln" copies the model's adaLN, "random" does
    not. ``batch_tokens`` is the number of rows of a step.
    """

    modulation: bool = True
    modulation_init: Literal["adaln", "random"] = "adaln"
    modulation_chunk: Literal["msa", "mlp"] = "msa"
    modulation_trainable: bool = True
    pre_norm: Literal["none", "layernorm"] = "none"
    expansion: int = 16
    density: float = 0.05
    n_latents: int | None = None
    k: int | None = None
    steps: int = 1000
    batch_tokens: int = 1024
    lr: float = 1e-3
    warmup: float = 0.02
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
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_tokens", "expansion", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise TideError(f"{name} = {getattr(self, name)} must be at least 1")
        if not 0 < self.density <= 1:
            raise TideError(f"density = {self.density} must lie in (0, 1]; it is k / n_latents")
        if self.batch_tokens % 2:
            raise TideError(f"batch_tokens = {self.batch_tokens} must be even: neighbouring timesteps come in pairs")

    def sizes(self, d_model: int) -> tuple[int, int]:
        """``(n_latents, k)`` for activations of width ``d_model``."""
        n_latents = self.n_latents if self.n_latents is not None else self.expansion * d_model
        k = self.k if self.k is not None else max(1, round(self.density * n_latents))
        if not 1 <= k <= n_latents:
            raise TideError(f"k = {k} must lie between 1 and n_latents = {n_latents}; lower k or raise n_latents")
        return n_latents, k

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> TrainConfig:
        """Builds the configuration; an unknown key is an error that lists the known ones."""
        nested = {"loss": LossConfig, "progressive_k": ProgressiveK, "revival": RevivalConfig}
        values = {
            name: _build(nested[name], value, name) if name in nested and isinstance(value, dict) else value
            for name, value in raw.items()
        }
        if "betas" in values:
            values["betas"] = tuple(values["betas"])
        built = _build(cls, values, "the training configuration")
        assert isinstance(built, cls)
        return built

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        try:
            raw = yaml.safe_load(Path(path).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise TideError(f"{path} could not be read as YAML ({error})".replace("\n", " ")) from None
        if not isinstance(raw, dict):
            raise TideError(f"{path} holds no mapping of options; see `tide train --help` for their names")
        return cls.from_dict(raw)


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    known = [f.name for f in fields(cls)]
    if unknown := sorted(set(values) - set(known)):
        raise TideError(f"unknown option {unknown[0]!r} in {where}; known: {', '.join(known)}")
    return cls(**values)
