"""Interpretation: concepts, where they are, and how they move along the trajectory."""

from tide.interpretation.concepts import (
    Annotated,
    Found,
    concept_scores,
    dense_latents,
    find_concepts,
    mean_latents,
    pooled_latents,
)
from tide.interpretation.profiles import ConceptProfiles, concept_profiles

__all__ = [
    "Annotated",
    "ConceptProfiles",
    "Found",
    "concept_profiles",
    "concept_scores",
    "dense_latents",
    "find_concepts",
    "mean_latents",
    "pooled_latents",
]
