"""Checkpoints on the Hugging Face Hub: their names, what is fetched of them, what is sent and how, their cards.

Everything goes through ``huggingface_hub``, which is loaded when it is first needed: its cache, its tokens, its offline
mode (``HF_HUB_OFFLINE=1``).
"""

from tide.hub.cards import Card, Measured, card_text, cards
from tide.hub.download import FILES, fetched
from tide.hub.facts import card_of
from tide.hub.names import Repository, in_repository
from tide.hub.shared import checkpoints, shared_files, shown_pictures
from tide.hub.uploading import upload

__all__ = [
    "FILES",
    "Card",
    "Measured",
    "Repository",
    "card_of",
    "card_text",
    "cards",
    "checkpoints",
    "fetched",
    "in_repository",
    "shared_files",
    "shown_pictures",
    "upload",
]
