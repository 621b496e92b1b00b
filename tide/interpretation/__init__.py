"""Interpretation: concepts, where they are, and how they move along the trajectory."""

from tide.interpretation.abrupt_change import abrupt_change
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
