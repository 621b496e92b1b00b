"""What a plan knows of a machine: a number for each thing that takes time, and whether it was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tide.errors import TideError
from tide.files import read_json

FOLDER = Path(__file__).parent / "machines"

#: Name of the machine that is measured when it is asked for.
HERE = "here"

#: Constant -> its unit, and what it is. Those of a step have the activation function in front: ``topk.dense``.
CONSTANTS = {
    "pixel": ("s", "to read, decode and resize a pixel of an image"),
    "encode_rate": ("FLOP/s", "of the VAE and the text encoders"),
    "rate": ("FLOP/s", "of the diffusion transformer"),
    "dense": ("s", "a step for each token, latent and channel, where the code is dense"),
    "sparse": ("s", "a step for each token, latent and channel, where the code is sparse"),
    "place": ("s", "a step for each token, active latent and channel, where the code is sparse"),
    "weights": ("s", "a step for each latent and channel, whatever its tokens"),
    "match": ("s", "to set the threshold after a training, for each token, latent and channel"),
    "update": ("s", "AdamW for each parameter"),
    "write": ("B/s", "to disk, a rank"),
    "read": ("B/s", "from disk, a rank"),
    "wire_inside": ("B/s", "to and from a rank, between the GPUs of a node"),
    "wire_between": ("B/s", "to and from a rank, between nodes"),
    "node": ("GPUs", "in a node"),
    "memory": ("B", "of a GPU"),
    "scratch": ("B", "of a step for each token of a chunk and latent"),
}
_OF_STEPS = ("dense", "sparse", "place", "weights", "match")


@dataclass(frozen=True)
class Constant:
    """A number in the unit that :data:`CONSTANTS` names. ``source``: what measured it, or why it is assumed.

    Attributes:
        value: the number.
        measured: whether it was measured; else it is assumed.
        source: what measured it, or why it is assumed.
    """

    value: float
    measured: bool
    source: str


@dataclass(frozen=True)
class Machine:
    """A GPU, or a CPU, and what connects it to others of its kind.

    Attributes:
        name: of the machine.
        device: "cuda" or "cpu"; it decides the chunks of a step.
        itemsize: bytes of a number that the pipeline computes in.
        constants: by the names of :data:`CONSTANTS`.
    """

    name: str
    device: str
    itemsize: int
    constants: dict[str, Constant]

    def __getitem__(self, name: str) -> float:
        return self.constants[name].value

    def of_step(self, activation: str) -> dict[str, float]:
        """The constants of a step of an activation function, by their names without it.

        Raises :class:`~tide.errors.TideError` if its steps were not measured on this machine.
        """
        if f"{activation}.dense" not in self.constants:
            known = sorted({name.partition(".")[0] for name in self.constants if "." in name})
            raise TideError(
                f"steps of activation {activation} were not measured on {self.name}; use --machine {HERE}, or "
                f"--activation {' or '.join(known)}"
            )
        return {name: self[f"{activation}.{name}"] for name in _OF_STEPS}

    def used_for(self, activation: str) -> dict[str, Constant]:
        """The constants that a plan of this activation function rests on."""
        return {
            name: each for name, each in self.constants.items() if "." not in name or name.startswith(f"{activation}.")
        }


def machine_names() -> list[str]:
    """Every machine that a plan can be made for."""
    return [HERE, *sorted(path.stem for path in FOLDER.glob("*.json"))]


def load_machine(name: str) -> Machine:
    """A machine whose constants ship with the package. Raises :class:`~tide.errors.TideError` for any other.

    ``name`` is that of the machine, such as "nvidia-h200".
    """
    path = FOLDER / f"{name}.json"
    if name not in machine_names() or name == HERE:
        raise TideError(f"machine {name[:60]!r} is unknown; use {' or '.join(machine_names())}")
    held = read_json(path, Machine)
    constants = {name: Constant(**each) for name, each in held["constants"].items()}
    return Machine(held["name"], held["device"], held["itemsize"], constants)
