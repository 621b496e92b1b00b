"""The autoencoder: TIDE (and the plain TopK SAE as the same model without modulation)."""

from tide.sae.model import TIDE, Codes, TIDEConfig, inference
from tide.sae.modulation import Modulation, ModulationConfig

__all__ = ["TIDE", "Codes", "Modulation", "ModulationConfig", "TIDEConfig", "inference"]
