"""The autoencoder: TIDE (and the plain SAE as the same model without modulation)."""

from tide.sae.codes import Codes
from tide.sae.config import ModelOptions, TIDEConfig
from tide.sae.model import TIDE, inference
from tide.sae.modulation import Modulation, ModulationConfig
from tide.sae.position import Position

__all__ = [
    "TIDE",
    "Codes",
    "ModelOptions",
    "Modulation",
    "ModulationConfig",
    "Position",
    "TIDEConfig",
    "inference",
]
