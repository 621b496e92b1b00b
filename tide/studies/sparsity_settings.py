"""The settings of the study of sparsity: kinds of autoencoders, the grid of their knobs, and the names of its cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tide.studies.bench import FAST_DATA, DataSizes
from tide.studies.features import FeatureSizes
from tide.studies.grid import cell_path
from tide.studies.sparsity_edits import EditSizes

#: How much longer the best are trained for the check of convergence.
LONGER = 4


@dataclass(frozen=True)
class Model:
    """One kind of autoencoder. ``frozen``: encoder and decoder stay random; ``random``: it is trained on a transformer
    with random weights."""

    name: str
    activation: str
    modulation: bool = False
    frozen: bool = False
    random: bool = False

    @property
    def baseline(self) -> bool:
        return self.frozen or self.random


LABELS = {"topk": "TopK", "batch_topk": "BatchTopK", "jumprelu": "JumpReLU", "gated": "Gated", "relu": "ReLU"}
#: Activations whose knob is the weight of the penalty.
WEIGHED = ("relu", "gated")

TRAINED = tuple(
    Model(f"{'TIDE + ' if modulation else ''}{label}", activation, modulation)
    for activation, label in LABELS.items()
    for modulation in (False, True)
)
BASELINES = tuple(
    Model(f"{LABELS[activation]}, {what}", activation, random, frozen=not random, random=random)
    for what, random in (("random dictionary", False), ("random transformer", True))
    for activation in ("topk", "jumprelu")
)
MODELS = {model.name: model for model in (*TRAINED, *BASELINES)}


@dataclass(frozen=True)
class Sizes:
    """The grid. ``l0`` are the k that are trained; ``relu`` and ``gated`` weights of the penalty that end near them;
    ``first`` the places in these lists that are computed first."""

    data: DataSizes
    features: FeatureSizes
    edits: EditSizes
    n_latents: int
    l0: tuple[int, ...]
    relu: tuple[float, ...]
    gated: tuple[float, ...]
    first: tuple[int, ...]
    seeds: int
    steps: int

    def knobs(self, model: Model) -> tuple[float, ...]:
        return {"relu": self.relu, "gated": self.gated}.get(model.activation, self.l0)


DEFAULT = Sizes(
    data=DataSizes(train_images=2048, held_out_images=128, token_fraction=0.5, loss_prompts=48, loss_timesteps=6),
    features=FeatureSizes(),
    edits=EditSizes(),
    n_latents=3072,
    l0=(8, 16, 32, 64, 128),
    relu=(12.0, 5.4, 2.6, 1.25, 0.6),
    gated=(8.5, 4.0, 2.1, 1.1, 0.55),
    first=(1, 2),
    seeds=3,
    steps=1200,
)
FAST = Sizes(
    data=FAST_DATA,
    features=FeatureSizes(images=24, timesteps=2),
    edits=EditSizes(dev=2, test=4, probe_images=32),
    n_latents=192,
    l0=(4, 16),
    relu=(4.0, 1.0),
    gated=(4.0, 1.0),
    first=(0,),
    seeds=2,
    steps=20,
)


def cell_name(model: str, knob: float, seed: int, *, longer: bool = False) -> str:
    return f"{model} {knob:g} seed {seed}" + (f" {LONGER} times as long" if longer else "")


def edit_name(name: str, seed: int) -> str:
    return f"edits, {name} seed {seed}"


def dictionary_path(out: Path, name: str) -> Path:
    """Where the decoder of a cell's model is kept."""
    return out / "dictionaries" / cell_path(out, name).with_suffix(".safetensors").name
