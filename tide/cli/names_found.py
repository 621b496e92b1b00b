"""What ``tide names`` finds by itself: names from a checkpoint's index, written as they are found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

from tide.devices import device_of
from tide.errors import TideError
from tide.evaluation.scorers import CLIPScorer
from tide.files import read_text
from tide.fingerprint import fingerprint
from tide.index import Index
from tide.index.naming import batches, captions, concept_names, heat, peaks, pictures
from tide.interpretation.names import Entry, Names, now
from tide.interpretation.naming import VisionModel, ask_names, name_by_captions, name_by_clip
from tide.interpretation.naming.clip import BATCH
from tide.interpretation.naming.vision_client import UNREACHABLE
from tide.loading import quiet
from tide.messages import counted
from tide.sae import TIDE

T = TypeVar("T")


def index_of(folder: Path) -> Index:
    """The index of a checkpoint.

    Raises :class:`~tide.errors.TideError` if there is none, or if the checkpoint has other weights by now: names would
    be those of other latents.
    """
    index = Index(folder)
    if index.facts["sae"] != fingerprint([TIDE.from_pretrained(folder)]):
        raise TideError(f"the index of {folder} is of other weights; make the index again (tide browse --index)")
    return index


def by_concepts(index: Index, names: Names) -> str:
    """Each of these writes entries and returns a line that says how many, and how good they are."""
    return _said(_write(names, "concepts", concept_names(index)), "concepts", index.n_latents)


def by_captions(index: Index, names: Names) -> str:
    found = name_by_captions(_peaks(index, "captions"), captions(index))
    return _said(_write(names, "captions", found), "captions", index.n_latents)


def clip_of(folder: str) -> CLIPScorer:
    """Raises :class:`~tide.errors.TideError` for a folder without CLIP."""
    with quiet():
        return CLIPScorer(folder, device=device_of(None))


def words_of(path: str | None) -> list[str]:
    """The lines of a file, but for blank ones."""
    if path is None:
        return []
    found = [line.strip() for line in read_text(Path(path)).splitlines() if line.strip()]
    if not found:
        raise TideError(f"{path} holds no words; write one a line")
    return found


def by_clip(index: Index, names: Names, scorer: CLIPScorer, words: Sequence[str]) -> str:
    images = _watched(batches(index, BATCH), len, index.n_images, "image", "CLIP")
    found = name_by_clip(_peaks(index, "CLIP"), images, captions(index), scorer, words=words)
    return _said(_write(names, "clip", found), "clip", index.n_latents)


def by_model(index: Index, names: Names, model: VisionModel, asked: Sequence[int], seed: int) -> str:
    """Writes each entry as soon as it is there; of latents that ``model`` has named it is not asked again.

    Raises :class:`~tide.errors.TideError` for a latent that does not exist, and if the model cannot be reached.
    """
    for latent in asked:
        index.check_latent(latent)
    done = {latent for latent, each in names.read().items() if any(e.by == model.by and e.name for e in each.all)}
    left = [latent for latent in dict.fromkeys(asked) if latent not in done]
    found: dict[int, Entry] = {}
    with tqdm(total=len(left), unit="latent", desc=model.model, disable=None) as bar:

        def report(line: str) -> None:
            if UNREACHABLE in line:  # nor would it be for the other latents
                raise TideError(f"{line}; check the address {model.base_url}, and give the same command again")
            bar.write(line)
            bar.update()

        for entry in ask_names(
            peaks(index, left, at_once=16), pictures(index), heat(index), model, left, seed=seed, report=report
        ):
            names.add([entry])
            found[entry.latent] = entry
            bar.update()
    before = len(set(asked) & done)
    return _said(found, model.by, len(left)) + (f" {before} had been named by it before." if before else "")


def most_active(index: Index, n: int) -> list[int]:
    """The ``n`` latents that fire on the most tokens, of those that fire at all; of equal ones the lower number."""
    said = index.query("SELECT latent FROM latents WHERE frequency > 0 ORDER BY frequency DESC, latent LIMIT ?", (n,))
    return [row["latent"] for row in said]


def _peaks(index: Index, what: str) -> Iterator[tuple[Sequence[int], Tensor]]:
    return _watched(peaks(index), lambda piece: len(piece[0]), index.n_latents, "latent", what)


def _watched(parts: Iterable[T], size: Callable[[T], int], total: int, unit: str, what: str) -> Iterator[T]:
    """``parts`` with a bar, which begins when the first is asked for."""
    with tqdm(total=total, unit=unit, desc=what, disable=None) as bar:
        for each in parts:
            yield each
            bar.update(size(each))


def _write(names: Names, by: str, found: Mapping[int, Entry]) -> Mapping[int, Entry]:
    """Adds what is new, and takes back what ``by`` said before and says no more. Returns ``found``."""
    said = {latent: e for latent, each in names.read().items() for e in each.all if e.by == by and e.name}
    new = [each for latent, each in found.items() if not _same(said.get(latent), each)]
    names.add([*new, *_taken_back(said.keys() - found.keys(), by)])
    return found


def _same(former: Entry | None, entry: Entry) -> bool:
    return former is not None and (former.name, former.score) == (entry.name, entry.score)


def _taken_back(latents: Collection[int], by: str) -> list[Entry]:
    at = now()
    return [Entry(latent, by, at, "") for latent in sorted(latents)]


def _said(found: Mapping[int, Entry], by: str, of: int) -> str:
    areas = [each.score.auroc for each in found.values() if each.score is not None]
    how = f"median AUROC {median(areas):.2f}" if areas else "without a score"
    some = f" of {len(areas)} of them" if 0 < len(areas) < len(found) else ""
    return f"{len(found)} of {counted(of, 'latent')} named by {by}{f', {how}{some}' if found else ''}."
