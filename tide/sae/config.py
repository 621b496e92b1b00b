"""What a TIDE is: its sizes, its options, and where it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tide.errors import TideError
from tide.sae.activation import ACTIVATIONS, TIMED
from tide.sae.modulation import ModulationConfig

Activation = Literal["topk", "batch_topk", "relu", "jumprelu", "gated"]
#: The modules of a block whose output a transcoder predicts from their input.
TARGETS = ("attention", "feed_forward")


def input_of(target: str) -> str:
    """The name of the tensor that enters the module whose output is ``target``."""
    return f"{target}_input"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The choices of a model that its training makes: :class:`TIDEConfig` and
    :class:`~tide.training.TrainConfig` share them.

    Attributes:
        pre_norm: the input of the modulation: the activation as collected (eq. 8 literally), or its LayerNorm, as
            inside the diffusion model.
        undo: also inverts the modulation at the output: ``(x_hat - shift) / (1 + scale)``.
        activation: "topk", or one of :mod:`tide.sae.activation`. BatchTopK and JumpReLU aim at ``k`` active latents on
            average; ReLU and Gated do so with ``match_l0`` alone.
        bandwidth: that of the straight-through estimators by which JumpReLU's thresholds learn, and those that know
            the timestep.
        centre: subtracts each channel's mean before all else (docs/normalisation.md).
        timestep_thresholds: the thresholds of JumpReLU or BatchTopK also depend on the timestep, by the modulation's
            embedding of it (:class:`~tide.sae.activation.gain.TimestepGain`).
        match_l0: ReLU and Gated get a stored threshold, which training sets so that ``k`` latents are active on
            average. BatchTopK and JumpReLU always do so.
    """

    pre_norm: Literal["none", "layernorm"] = "none"
    undo: bool = False
    activation: Activation = "topk"
    bandwidth: float = 0.3
    centre: bool = False
    timestep_thresholds: bool = False
    match_l0: bool = False

    def __post_init__(self) -> None:
        if self.pre_norm not in ("none", "layernorm"):
            raise TideError(f"pre_norm = {self.pre_norm!r} is unknown; use one of none, layernorm")
        if self.activation not in ("topk", *ACTIVATIONS):
            known = ", ".join(("topk", *ACTIVATIONS))
            raise TideError(f"activation = {self.activation!r} is unknown; use one of {known}")
        if not self.bandwidth > 0:
            raise TideError(f"bandwidth = {self.bandwidth} must be positive")
        if self.timestep_thresholds and self.activation not in TIMED:
            raise TideError(f"timestep_thresholds need activation = {' or '.join(TIMED)}, not {self.activation}")


@dataclass(frozen=True)
class TIDEConfig(ModelOptions):
    """Everything needed to rebuild a :class:`~tide.sae.TIDE`, and where it was trained.

    ``modulation=None`` is the plain SAE. ``prefixes`` are the numbers of first latents that were trained to be
    dictionaries of their own (:meth:`tide.sae.TIDE.nested`). With a ``target``, one of :data:`TARGETS`, it is a
    transcoder: it encodes ``tensor``, which is the input of that module, and reconstructs the module's output. The
    defaults are those of checkpoints that are older than
    an option.

    Attributes:
        d_model: width of the activations.
        n_latents: how many latents.
        k: active latents of a token: exactly for TopK, on average for the others.
        modulation: None is the plain SAE.
        encoder_bias, decoder_bias: whether there are biases.
        family: model family that it was trained on.
        pipeline: the name of the pipeline that it was trained on.
        block: the number of the block, None where it is not known.
        tensor: what of the block.
        prefixes: of nested dictionaries, ascending.
        target: "attention" or "feed_forward" for a transcoder.
        component: the name of the pipeline's transformer, where it has several.
    """

    d_model: int
    n_latents: int
    k: int
    modulation: ModulationConfig | None = None
    encoder_bias: bool = True
    decoder_bias: bool = True
    family: str | None = None
    pipeline: str | None = None
    block: int | None = None
    tensor: str = "output"
    prefixes: tuple[int, ...] = ()
    target: str | None = None
    component: str = "transformer"

    @property
    def trained_block(self) -> int:
        """The block of the diffusion model; raises :class:`~tide.errors.TideError` if the config does not name it."""
        if self.block is None:
            raise TideError("this SAE does not know its block; train it with `tide train`")
        return self.block

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.n_latents:
            raise TideError(
                f"k = {self.k} must lie between 1 and n_latents = {self.n_latents}; lower k or raise n_latents"
            )
        if self.d_model < 1:
            raise TideError(f"d_model = {self.d_model} must be positive")
        if any(low >= high for low, high in pairwise((0, *self.prefixes, self.n_latents))):
            raise TideError(
                f"prefixes = {self.prefixes} must ascend from at least 1 to less than n_latents = {self.n_latents}"
            )
        if self.target is not None:
            self._check_target(self.target)
        if self.modulation is None and (self.undo or self.pre_norm != "none"):
            raise TideError("undo and pre_norm belong to the modulation; give modulation=... or leave them off")
        if self.modulation is None and self.timestep_thresholds:
            raise TideError(
                "timestep_thresholds follow the modulation's embedding; give modulation=... or leave them off"
            )
        if self.modulation is not None and self.modulation.d_model != self.d_model:
            raise TideError(
                f"the modulation has width {self.modulation.d_model} and the model {self.d_model}; they must be equal"
            )

    def _check_target(self, target: str) -> None:
        check_target(target, self.tensor)
        if self.undo:
            raise TideError("undo inverts a modulation that a transcoder's target never had; leave it off")


def check_target(target: str, tensor: str) -> None:
    """Raises :class:`~tide.errors.TideError` unless ``tensor`` is the input of the module that ``target`` names."""
    if target not in TARGETS:
        raise TideError(f"target {target!r} is unknown; use one of {', '.join(TARGETS)}")
    if tensor != input_of(target):
        raise TideError(f"a transcoder of {target} reads {input_of(target)}, not {tensor}; set tensor to that")
