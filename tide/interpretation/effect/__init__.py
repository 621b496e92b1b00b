"""Latents by their effect: which of a block's latents, at which steps, move what the model predicts towards something
or away from it."""

from tide.interpretation.effect.ablation import ablated_effects
from tide.interpretation.effect.attribution import effect_maps, latent_effects
from tide.interpretation.effect.curves import effect_curves
from tide.interpretation.effect.effects import Effects
from tide.interpretation.effect.effects_file import load_effects, save_effects
from tide.interpretation.effect.metric import Asked, Measure, Metric, towards, towards_prompt
from tide.interpretation.effect.steps import Steps, steps_of_images, steps_of_run

__all__ = [
    "Asked",
    "Effects",
    "Measure",
    "Metric",
    "Steps",
    "ablated_effects",
    "effect_curves",
    "effect_maps",
    "latent_effects",
    "load_effects",
    "save_effects",
    "steps_of_images",
    "steps_of_run",
    "towards",
    "towards_prompt",
]
