"""Scorers: image quality and agreement with text, measured by models whose weights are local files.

Nothing is downloaded. Importing this package loads no library of the extra ``scores``; making a scorer does.
"""

from tide.evaluation.scorers.base import (
    AttributeReader,
    Distance,
    ImageEmbedder,
    ImageTextScorer,
    Scorer,
    SetDistance,
    TextEmbedder,
    check_images,
)
from tide.evaluation.scorers.clip import CLIPScorer
from tide.evaluation.scorers.edits import score_edits
from tide.evaluation.scorers.fid import FIDScorer
from tide.evaluation.scorers.folders import FolderPair, score_folders
from tide.evaluation.scorers.lpips import LPIPSScorer
from tide.evaluation.scorers.sets import Batch, SetScorers, score_sets
from tide.evaluation.scorers.stub import StubScorer

__all__ = [
    "AttributeReader",
    "Batch",
    "CLIPScorer",
    "Distance",
    "FIDScorer",
    "FolderPair",
    "ImageEmbedder",
    "ImageTextScorer",
    "LPIPSScorer",
    "Scorer",
    "SetDistance",
    "SetScorers",
    "StubScorer",
    "TextEmbedder",
    "check_images",
    "score_edits",
    "score_folders",
    "score_sets",
]
