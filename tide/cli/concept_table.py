"""What ``tide concepts`` prints: a table with a row a concept, and a sentence that tells what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tide.evaluation.wording import images_in_words
from tide.messages import counted
from tide.tables import text_table

Row = dict[str, Any]

CAPTION_COLUMNS = ("with", "without", "latent", "auroc", "95 %", "neuron", "random", "remark")
SCENE_COLUMNS = ("latent", "auroc", "neuron", "iou", "remark")
#: What the columns mean.
OF_CAPTIONS = (
    "Read: {read}; used: {used}.\nwith, without: images used whose caption holds the word, or does not. The latent was "
    "chosen on one half of them, and\nauroc, neuron and random are of the other half; of a word with too few images to "
    "score it was chosen on all of them.\nauroc: how well the latent's mean over an image tells images with the word "
    "from those without (0.5 chance, 1 perfect);\nneuron, random: of the best raw channel and of the best latent "
    "of an untrained autoencoder, chosen and scored alike."
)
OF_SCENES = (
    "Latents were chosen on development scenes, all figures are of test scenes, of combinations that the bundled\n"
    "pipeline was not trained on. auroc: how well the latent tells tokens of the concept from others (0.5 chance, 1\n"
    "perfect); neuron: that of the best raw channel, chosen alike; iou: of the latent's map with the concept's mask."
)
OF_BLOCKS = (
    "auroc: of the best block's latent, and on each block (0.5 chance, 1 perfect); neuron: of the best raw channel of\n"
    "the best block. The best of several blocks is a little better by chance alone."
)
#: Blocks whose AUROCs stand beside the best one's.
MOST_BLOCKS = 10
#: The AUROC at which a latent is said to find a concept of rendered scenes, as in the demo's headline.
CLEAR = 0.85


def concepts_text(found: Row) -> str:
    """The table of captions or of rendered scenes, the clearest concept first, and what its columns mean."""
    ordered = sorted(found["concepts"].items(), key=lambda item: -_area(item[1]))
    if "images" not in found:
        table = _table(SCENE_COLUMNS, [(concept, *_of_scenes(row)) for concept, row in ordered])
        return f"{table}\n\n{OF_SCENES}"
    table = _table(CAPTION_COLUMNS, [(concept, *_of_captions(row)) for concept, row in ordered])
    images = found["images"]
    used = images_in_words(images["used"], images["of"])
    return f"{table}\n\n{OF_CAPTIONS.format(read=images['read'], used=used)}"


def concepts_sentence(found: Row, block: int | str | None) -> str:
    """How many concepts have a latent, the clearest three, and of captions which have none."""
    rows, of_captions = found["concepts"], "images" in found
    told = {concept: row for concept, row in rows.items() if (_above_chance if of_captions else _clear)(row)}
    clearest = sorted(told.items(), key=lambda item: -item[1]["auroc"])[:3]
    named = ", ".join(f"{concept} (latent {row['latent']}, {row['auroc']:.2f})" for concept, row in clearest)
    others = ", ".join(concept for concept in rows if concept not in told) if of_captions else ""
    has = "has" if len(told) == 1 else "have"
    return (
        f"{len(told)} of {counted(len(rows), 'concept')} on block {block} {has} a latent "
        f"{'above chance' if of_captions else f'of AUROC {CLEAR} or more'}"
        f"{f': {named}' if named else ''}{f'; not {others}' if others else ''}"
    )


def best_blocks(tables: Mapping[int, Row]) -> dict[str, Row]:
    """Concept -> the block whose latent finds it best, that latent, its AUROC and the best raw channel's there; of the
    concepts whose AUROC is known on some block."""
    best = {}
    for concept in next(iter(tables.values()))["concepts"]:
        rows = {block: table["concepts"][concept] for block, table in tables.items()}
        block = max(rows, key=lambda each: _area(rows[each]))
        row = rows[block]
        if row["auroc"] is not None:
            neuron = row["neuron_auroc"] if "neuron_auroc" in row else row["neuron"]["auroc"]
            best[concept] = {"block": block, "latent": row["latent"], "auroc": row["auroc"], "neuron_auroc": neuron}
    return best


def blocks_text(tables: Mapping[int, Row]) -> str:
    """A row a concept, the clearest first: the block whose latent is best, and of few blocks the AUROC on each."""
    best = best_blocks(tables)
    ordered = sorted(next(iter(tables.values()))["concepts"], key=lambda each: -best.get(each, {"auroc": -1})["auroc"])
    each_block = list(tables) if len(tables) <= MOST_BLOCKS else []
    header = ("concept", "best block", "latent", "auroc", "neuron", *(f"on {block}" for block in each_block))
    table = text_table(header, [_best_row(concept, best.get(concept), tables, each_block) for concept in ordered])
    return f"{table}\n\n{OF_BLOCKS}"


def _best_row(concept: str, best: Row | None, tables: Mapping[int, Row], blocks: Sequence[int]) -> tuple[str, ...]:
    found = ("-",) * 4
    if best is not None:
        found = str(best["block"]), str(best["latent"]), _cell(best["auroc"]), _cell(best["neuron_auroc"])
    return (concept, *found, *(_cell(tables[block]["concepts"][concept]["auroc"]) for block in blocks))


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """The last column, of remarks, aligned to the left."""
    width = max(len(row[-1]) for row in rows)
    header = ("concept", *columns[:-1], columns[-1].ljust(width))
    table = text_table(header, [(*row[:-1], row[-1].ljust(width)) for row in rows])
    return "\n".join(line.rstrip() for line in table.splitlines())


def _above_chance(row: Row) -> bool:
    return row["interval"] is not None and row["interval"][0] > 0.5


def _clear(row: Row) -> bool:
    return _area(row) >= CLEAR


def _area(row: Row) -> float:
    return -1.0 if row["auroc"] is None else row["auroc"]


def _of_captions(row: Row) -> tuple[str, ...]:
    interval = "-" if row["interval"] is None else "{:.2f}-{:.2f}".format(*row["interval"])
    return (
        str(row["images"]),
        str(row["without"]),
        str(row["latent"]),
        _cell(row["auroc"]),
        interval,
        _cell(row["neuron"]["auroc"]),
        _cell(row["random"]["auroc"]),
        row["remark"],
    )


def _of_scenes(row: Row) -> tuple[str, ...]:
    known = None not in (row["auroc"], row["neuron_auroc"])
    remark = "neuron as good" if known and row["neuron_auroc"] >= row["auroc"] else ""
    return str(row["latent"]), _cell(row["auroc"]), _cell(row["neuron_auroc"]), _cell(row["iou"]), remark


def _cell(value: float | None) -> str:
    """The figure; "-" for one that is not known."""
    return "-" if value is None else f"{value:.2f}"
