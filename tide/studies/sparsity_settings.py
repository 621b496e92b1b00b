"""The settings of the study of sparsity: kinds of autoencoders, the grid of k, and the names of its cells."""

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
    """One kind of autoencoder. ``timed``: thresholds know the timestep; ``frozen``: encoder and decoder stay random;
    ``random``: it is trained on a transformer with random weights."""

    name: str
    activation: str
    modulation: bool = False
    timed: bool = False
    frozen: bool = False
    random: bool = False


LABELS = {"topk": "TopK", "batch_topk": "BatchTopK", "jumprelu": "JumpReLU", "gated": "Gated", "relu": "ReLU"}

#: Of the activations with thresholds for each latent, JumpReLU can learn how they depend on the timestep.
TRAINED = (
    *(
        Model(f"{'TIDE + ' if modulation else ''}{label}", activation, modulation)
        for activation, label in LABELS.items()
        for modulation in (False, True)
    ),
    Model("TIDE + JumpReLU by timestep", "jumprelu", modulation=True, timed=True),
)
BASELINES = tuple(
    Model(f"{LABELS[activation]}, {what}", activation, random, frozen=not random, random=random)
    for what, random in (("random dictionary", False), ("random transformer", True))
    for activation in ("topk", "jumprelu")
)
#: Models whose latents edit; a dictionary of the random transformer is of other activations.
EDITED = ("TIDE + TopK", "TIDE + JumpReLU", *(model.name for model in BASELINES if model.frozen))
MODELS = {model.name: model for model in (*TRAINED, *BASELINES)}


@dataclass(frozen=True)
class Sizes:
    """The grid. ``l0`` are the k that all aim at. The penalty leads ReLU and Gated there: ``relu`` and ``gated`` are
    its weights, which end a little above; a stored threshold then lowers L0 to k. ``first`` are the places in these
    lists that are computed first."""

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

    def penalty(self, model: Model, k: int) -> float | None:
        """The weight of the penalty at ``k``; None where the penalty itself aims at k."""
        weights = {"relu": self.relu, "gated": self.gated}.get(model.activation)
        return None if weights is None else weights[self.l0.index(k)]


DEFAULT = Sizes(
    data=DataSizes(train_images=2048, held_out_images=128, token_fraction=0.5, loss_prompts=48, loss_timesteps=6),
    features=FeatureSizes(),
    edits=EditSizes(),
    n_latents=3072,
    l0=(8, 16, 32, 64, 128),
    relu=(7.5, 4.0, 2.15, 1.1, 0.54),
    gated=(5.6, 3.1, 1.75, 0.96, 0.52),
    first=(1, 2),
    seeds=3,
    steps=1200,
)
FAST = Sizes(
    data=FAST_DATA,
    features=FeatureSizes(images=24, timesteps=2),
    edits=EditSizes(dev=1, test=2, probe_images=32),
    n_latents=192,
    l0=(4, 16),
    relu=(4.0, 1.0),
    gated=(4.0, 1.0),
    first=(0,),
    seeds=2,
    steps=20,
)


def cell_name(model: str, k: int, seed: int, *, longer: bool = False) -> str:
    return f"{model} {k} seed {seed}" + (f" {LONGER} times as long" if longer else "")


def edit_name(name: str, seed: int) -> str:
    return f"edits, {name} seed {seed}"


def dictionary_path(out: Path, name: str) -> Path:
    """Where the decoder of a cell's model is kept."""
    return out / "dictionaries" / cell_path(out, name).with_suffix(".safetensors").name
