"""Interpretation: concepts, where they are, and how they move along the trajectory.

Names are loaded when they are first used: a module such as ``tide.interpretation.names`` is imported without diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tide.deferred import deferred

# Not when it is first used: once its module is imported, the module would be found under its name.
from tide.interpretation.abrupt_change import abrupt_change

if TYPE_CHECKING:
    from tide.interpretation.atlas import Atlas, Label, label_latents
    from tide.interpretation.atlas_page import write_atlas
    from tide.interpretation.atlas_reading import make_atlas, read_atlas
    from tide.interpretation.banking import RecordedBank, difference, record_bank
    from tide.interpretation.captions import CaptionConcepts, caption_concepts, caption_concepts_of_blocks
    from tide.interpretation.concepts import (
        Annotated,
        Found,
        concept_scores,
        find_concepts,
        mean_latents,
        pooled_latents,
    )
    from tide.interpretation.detecting import FittedDetector, fit_detectors, mean_scores, token_scores
    from tide.interpretation.effect.ablation import ablated_effects
    from tide.interpretation.effect.attribution import effect_maps, latent_effects
    from tide.interpretation.effect.curves import effect_curves
    from tide.interpretation.effect.effects import Effects
    from tide.interpretation.effect.effects_file import load_effects, save_effects
    from tide.interpretation.effect.metric import towards_prompt
    from tide.interpretation.effect.steps import Steps, steps_of_images, steps_of_run
    from tide.interpretation.following import Followed, follow
    from tide.interpretation.frames import FrameProfiles, motion
    from tide.interpretation.gathered import build_atlas
    from tide.interpretation.monosemanticity import Monosemanticity
    from tide.interpretation.profiles import ConceptProfiles, concept_profiles, frame_profiles
    from tide.interpretation.trajectory import Trajectory, record_trajectory, run_distances, step_changes
    from tide.interpretation.trajectory_chart import draw_trajectory

__all__ = [
    "Annotated",
    "Atlas",
    "CaptionConcepts",
    "ConceptProfiles",
    "Effects",
    "FittedDetector",
    "Followed",
    "Found",
    "FrameProfiles",
    "Label",
    "Monosemanticity",
    "RecordedBank",
    "Steps",
    "Trajectory",
    "ablated_effects",
    "abrupt_change",
    "build_atlas",
    "caption_concepts",
    "caption_concepts_of_blocks",
    "concept_profiles",
    "concept_scores",
    "difference",
    "draw_trajectory",
    "effect_curves",
    "effect_maps",
    "find_concepts",
    "fit_detectors",
    "follow",
    "frame_profiles",
    "label_latents",
    "latent_effects",
    "load_effects",
    "make_atlas",
    "mean_latents",
    "mean_scores",
    "motion",
    "pooled_latents",
    "read_atlas",
    "record_bank",
    "record_trajectory",
    "run_distances",
    "save_effects",
    "step_changes",
    "steps_of_images",
    "steps_of_run",
    "token_scores",
    "towards_prompt",
    "write_atlas",
]

__getattr__, __dir__ = deferred(
    __name__,
    {
        "atlas": "Atlas Label label_latents",
        "atlas_page": "write_atlas",
        "atlas_reading": "make_atlas read_atlas",
        "banking": "RecordedBank difference record_bank",
        "captions": "CaptionConcepts caption_concepts caption_concepts_of_blocks",
        "concepts": "Annotated Found concept_scores find_concepts mean_latents pooled_latents",
        "effect.ablation": "ablated_effects",
        "effect.attribution": "effect_maps latent_effects",
        "detecting": "FittedDetector fit_detectors mean_scores token_scores",
        "effect.curves": "effect_curves",
        "effect.effects": "Effects",
        "effect.effects_file": "load_effects save_effects",
        "effect.metric": "towards_prompt",
        "effect.steps": "Steps steps_of_images steps_of_run",
        "following": "Followed follow",
        "frames": "FrameProfiles motion",
        "gathered": "build_atlas",
        "monosemanticity": "Monosemanticity",
        "profiles": "ConceptProfiles concept_profiles frame_profiles",
        "trajectory": "Trajectory record_trajectory run_distances step_changes",
        "trajectory_chart": "draw_trajectory",
    },
)
