"""Whether edits turn the picture of one caption into that of another: ``python scripts/swap_words.py --sae T ...``.

Pairs of captions differ by one word, such as "man farmer" and "woman farmer", and both have a real picture. The
pipeline draws the first caption, and edits try to make the second of it, all from one noise. ``DIR/swaps.json`` says
for each edit in how many pairs the picture is nearer to the real one of the second caption than to that of the first
(mean squared error of the pixels), with the 95 % interval of Wilson, and what share of all other pictures is farther
than the second's: a picture that was destroyed is near to nothing. ``DIR/swaps.png`` shows some pairs.

Edits that are given the second caption: the block's activations moved to what it makes of the same noisy picture at
every step (``tide edit --beside``), the same written by the TIDE's latents alone, and by those of an untrained
autoencoder of the same shape. Edits that know the two words alone, from ``tide bank``: the difference of their mean
latents, of their mean activations, and what the words changed in the most similar tokens. Pairs are those whose second
picture is in ``--data`` and the first in it or in ``--beside``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from draw_pictures import Around, drawn, nearness
from mistakes import told
from named_pictures import Pictures
from torch import Tensor

from tide import editing
from tide.adapters import Adapter
from tide.checks import GUIDANCE
from tide.errors import TideError
from tide.evaluation.baselines import untrained
from tide.evaluation.statistics import wilson_interval
from tide.files import json_writer, new_folders, replace_files
from tide.loading import load_adapter, load_sae
from tide.pictures import image_writer, to_image
from tide.sae import TIDE
from tide.strips import Row, labelled

#: Strengths of the edits that know the words alone.
STRENGTHS = (1.0, 2.0)
#: Pairs of each swap to show, and pixels of the side of a picture.
SHOWN, SIDE = 3, 128


@dataclass(frozen=True)
class Pair:
    """Captions that differ in a word, and the rows of their pictures in the gallery."""

    source: str
    target: str
    source_row: int
    target_row: int


def pairs_of(captions: Sequence[str], n_targets: int, swap: tuple[str, str]) -> list[Pair]:
    """The pairs of ``captions`` whose second is one of the first ``n_targets`` and says the second word of ``swap``."""
    before, after = swap
    rows = {caption: row for row, caption in reversed(list(enumerate(captions)))}
    said = re.compile(rf"(?<!\w){re.escape(after)}(?!\w)")
    sources = [(said.sub(before, caption), caption) for caption in captions[:n_targets] if said.search(caption)]
    return [Pair(source, target, rows[source], rows[target]) for source, target in sources if source in rows]


def edits_of(
    adapter: Adapter, model: TIDE, bank: editing.Bank, pairs: Sequence[Pair], swap: tuple[str, str]
) -> dict[str, Around]:
    """The edits of ``pairs`` by name."""
    before, after = swap
    targets = [pair.target for pair in pairs]
    edit = partial(editing.edit, adapter.pipe, warns=False)

    def beside(latents: TIDE | None) -> Around:
        return lambda part: edit(None, editing.Beside(adapter, targets[part], latents=latents), block=bank.block)

    def known(by: Any, strength: float) -> Around:
        change = bank.what(after, by=by, source=before, factor=strength, model=model)
        return lambda _: edit(model, change)

    edits = {
        "caption: activations": beside(None),
        "caption: TIDE": beside(model),
        "caption: untrained": beside(untrained(model, 0)),
    }
    names = {"latents": "words: TIDE", "mean": "words: mean activations", "contrast": "words: nearest activations"}
    return edits | {f"{name}, {at:g}": known(by, at) for by, name in names.items() for at in STRENGTHS}


def judged(images: Tensor, gallery: Tensor, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Of ``images [n, 3, H, W]``, one for each of ``pairs``: how many are nearer to the second picture than to the
    first, and the mean share of the other pictures of ``gallery`` that are farther than the second."""
    to_target = nearness(images, gallery, torch.tensor([pair.target_row for pair in pairs]))
    to_source = nearness(images, gallery, torch.tensor([pair.source_row for pair in pairs]))
    reached = int((to_target > to_source).sum())
    share = {"share": reached / len(pairs), "interval": wilson_interval(reached, len(pairs))}
    return {"reached": share, "nearness": to_target.mean().item()}


def shown(gallery: Tensor, pairs: Sequence[Pair], images: Mapping[str, Tensor], header: bool) -> list[Row]:
    """A row for each of some pairs: the real first picture, all that was drawn, and the real second picture."""
    rows = []
    for i in range(0, len(pairs), -(-len(pairs) // SHOWN)):
        pair = pairs[i]
        real = [to_image(gallery[row].float() / 127.5 - 1) for row in (pair.source_row, pair.target_row)]
        made = [to_image(each[i]) for each in images.values()]
        labels = ["real", *images, "real"] if header and not i else []
        rows.append(Row([real[0], *made, real[1]], labels, f"{pair.source} to {pair.target}"))
    return rows


def measured(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    adapter = load_adapter(args.pipeline)
    model, bank = load_sae(args.sae, adapter), editing.load_bank(args.bank)
    bank.check(adapter)
    folders = [Pictures.read(folder) for folder in (args.data, *args.beside)]
    captions = [row["text"].lower() for folder in folders for row in folder.rows]
    gallery = torch.cat([folder.images for folder in folders])
    figures: dict[str, Any] = {"pictures": len(gallery), "swaps": {}}
    rows: list[Row] = []
    for swap in args.swap:
        pairs = pairs_of(captions, len(folders[0].rows), swap)
        if not pairs:
            raise TideError(f"no pair of captions differs by {swap[0]}={swap[1]}; name words that captions say")
        draw = partial(drawn, adapter, guidance=args.guidance, seed=args.seed)
        sources, targets = [pair.source for pair in pairs], [pair.target for pair in pairs]
        images = {"drawn": draw(sources)}
        for name, around in edits_of(adapter, model, bank, pairs, swap).items():
            images[name] = draw(sources, around=around)
        images["second caption"] = draw(targets)
        of_edits = {name: judged(each, gallery, pairs) for name, each in images.items()}
        figures["swaps"]["=".join(swap)] = {"pairs": len(pairs), "edits": of_edits}
        rows += shown(gallery, pairs, images, not rows)
        print(f"{swap[0]} to {swap[1]}, {len(pairs)} pairs")
        for name, each in of_edits.items():
            (low, high), share = each["reached"]["interval"], each["reached"]["share"]
            print(f"  {name:32} {share:6.1%} ({low:.0%} to {high:.0%}), nearer than {each['nearness']:.1%}")
    return labelled(rows, side=SIDE), figures


def swap_of(text: str) -> tuple[str, str]:
    before, _, after = text.partition("=")
    if not (before and after and before != after):
        raise argparse.ArgumentTypeError(f"{text!r} is not WORD=WORD")
    return before.lower(), after.lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder of the pipeline")
    parser.add_argument("--sae", required=True, help="folder of the TIDE")
    parser.add_argument(
        "--bank", type=Path, required=True, help="bank.safetensors that `tide bank` wrote, with contrasts"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the second captions' pictures")
    parser.add_argument(
        "--beside", type=Path, nargs="*", default=[], metavar="FOLDER", help="folders of other pictures"
    )
    parser.add_argument(
        "--swap", type=swap_of, nargs="+", required=True, metavar="WORD=WORD", help="first and second word"
    )
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for swaps.png and swaps.json")
    args = parser.parse_args()
    with told(), new_folders(args.out):
        picture, figures = measured(args)
        replace_files({args.out / "swaps.png": image_writer(picture), args.out / "swaps.json": json_writer(figures)})


if __name__ == "__main__":
    main()
