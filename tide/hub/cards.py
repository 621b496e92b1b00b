"""Model cards: what a checkpoint is, what it was trained on, what was measured, and what it is not for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import quote

from tide.hub.names import Repository, in_repository

#: A card's file.
CARD = "README.md"
#: How a card begins that was made here, with the folder that it is about; a person who takes it over deletes the line.
_MARK = "<!-- made by tide push of {folder}; delete this line to keep your own text -->"
TAGS = ("tide", "sparse-autoencoder", "diffusion", "interpretability")


class Measured(NamedTuple):
    """Figures, and the command that measured them.

    Attributes:
        what: was measured, a word or two.
        command: the command line; None for a call from Python.
        figures: name -> value.
        on: images or rows that they were measured on, in words; None where nothing says.
    """

    what: str
    command: str | None
    figures: Mapping[str, Any]
    on: str | None = None


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says.

    Attributes:
        repository: where it is going to be.
        configs: ``config.json`` of each checkpoint, by its block's folder; a single one's under "".
        trained_on: images that it was trained on, in words; None where nothing says.
        training: options of the training.
        measured: figures with their commands.
        pictures: path in the repository's folder -> what it shows.
        license: of the weights, as the Hub abbreviates it; None leaves it to the reader to ask.
        made_with: versions of the libraries.
    """

    repository: Repository
    configs: Mapping[str, Mapping[str, Any]]
    trained_on: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    measured: Sequence[Measured] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    made_with: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        """That of the first checkpoint."""
        return next(iter(self.configs.values()))


def cards(card: Card) -> dict[str, str]:
    """Path in the repository -> text: the card beside the checkpoint and, of one in a subfolder, at the top, which is
    what the Hub shows."""
    folder = card.repository.subfolder
    below = {} if folder is None else {f"{folder}/{CARD}": card_text(card)}
    pictures = {card.repository.within(path): text for path, text in card.pictures.items()}
    return {CARD: card_text(replace(card, pictures=pictures)), **below}


def card_text(card: Card) -> str:
    """The card as Markdown with the Hub's metadata in front; paths of pictures are as they stand in the card."""
    import yaml
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("tide.hub", ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pages.filters |= {"cell": _cell, "code": _code, "address": quote}
    body = pages.get_template("card.md").render(
        card=card, kind=_kind(card.config), mark=_mark(card.repository.subfolder)
    )
    return f"---\n{yaml.safe_dump(_metadata(card), sort_keys=False)}---\n{body}"


def belongs(text: str, subfolder: str | None) -> bool:
    """Whether a card was made here, of this folder, and may be replaced."""
    return _mark(subfolder) in text.splitlines()


def _mark(subfolder: str | None) -> str:
    return _MARK.format(folder="this repository" if subfolder is None else subfolder)


def _metadata(card: Card) -> dict[str, Any]:
    pipeline = card.config.get("pipeline")
    return {
        **({"license": card.license} if card.license else {}),
        "library_name": "tide-sae",
        **({"base_model": pipeline} if pipeline and in_repository(pipeline) else {}),
        "tags": list(TAGS),
    }


def _kind(config: Mapping[str, Any]) -> str:
    kind = "temporal-aware sparse autoencoder (TIDE)" if config.get("modulation") else "plain sparse autoencoder"
    return kind if config.get("target") is None else f"{kind}, trained as a transcoder of {config['target']}"


def _code(text: str) -> str:
    """Text as code within a line, between more backticks than it has in a row."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{' '.join(text.split())}{space}{fence}"


def _cell(value: Any) -> str:
    """A value in a table of Markdown."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.4g}" if isinstance(value, float) else "not finite" if value is None else str(value)
    return " ".join(text.split()).replace("|", "\\|")
