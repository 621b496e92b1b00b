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
    from tide.interpretation.captions import CaptionConcepts, caption_concepts, caption_concepts_of_blocks
    from tide.interpretation.concepts import (
        Annotated,
        Found,
        concept_scores,
        find_concepts,
        mean_latents,
        pooled_latents,
    )
    from tide.interpretation.following import Followed, follow
    from tide.interpretation.gathered import build_atlas
    from tide.interpretation.monosemanticity import Monosemanticity
    from tide.interpretation.profiles import ConceptProfiles, concept_profiles
    from tide.interpretation.trajectory import Trajectory, record_trajectory, run_distances, step_changes
    from tide.interpretation.trajectory_chart import draw_trajectory

__all__ = [
    "Annotated",
    "Atlas",
    "CaptionConcepts",
    "ConceptProfiles",
    "Followed",
    "Found",
    "Label",
    "Monosemanticity",
    "Trajectory",
    "abrupt_change",
    "build_atlas",
    "caption_concepts",
    "caption_concepts_of_blocks",
    "concept_profiles",
    "concept_scores",
    "draw_trajectory",
    "find_concepts",
    "follow",
    "label_latents",
    "make_atlas",
    "mean_latents",
    "pooled_latents",
    "read_atlas",
    "record_trajectory",
    "run_distances",
    "step_changes",
    "write_atlas",
]

__getattr__, __dir__ = deferred(
    __name__,
    {
        "atlas": "Atlas Label label_latents",
        "atlas_page": "write_atlas",
        "atlas_reading": "make_atlas read_atlas",
        "captions": "CaptionConcepts caption_concepts caption_concepts_of_blocks",
        "concepts": "Annotated Found concept_scores find_concepts mean_latents pooled_latents",
        "following": "Followed follow",
        "gathered": "build_atlas",
        "monosemanticity": "Monosemanticity",
        "profiles": "ConceptProfiles concept_profiles",
        "trajectory": "Trajectory record_trajectory run_distances step_changes",
        "trajectory_chart": "draw_trajectory",
    },
)
