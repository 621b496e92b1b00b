"""Names by a vision-language model, which then has to find the latent's images by the name alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tide.checks import check_count
from tide.errors import TideError
from tide.evaluation.statistics import auroc
from tide.interpretation.image_scores import ALTERNATING
from tide.interpretation.names import Entry, Score, now
from tide.interpretation.naming.firing import firing_images
from tide.interpretation.naming.pieces import Peaks, pieces_of
from tide.interpretation.naming.vision_client import NoAnswerError, VisionModel
from tide.interpretation.naming.vision_questions import detection_question, naming_question, read_fits, read_name
from tide.messages import say

#: The fewest images on which a latent fires, and is silent, for a score.
LEAST_SHOWN = 4


def name_by_model(
    peaks: Peaks,
    images: Sequence[np.ndarray],
    heat: Callable[[int, int], np.ndarray],
    model: VisionModel,
    latents: Collection[int],
    *,
    shown: int = 8,
    detected: int = 20,
    seed: int = 0,
    report: Callable[[str], object] = say,
    at: str | None = None,
) -> dict[int, Entry]:
    """All of :func:`ask_names`.

    Args:
        peaks, images, heat, model, latents, shown, detected, seed, report, at: as for :func:`ask_names`.
    """
    found = ask_names(
        peaks, images, heat, model, latents, shown=shown, detected=detected, seed=seed, report=report, at=at
    )
    return {entry.latent: entry for entry in found}


def ask_names(
    peaks: Peaks,
    images: Sequence[np.ndarray],
    heat: Callable[[int, int], np.ndarray],
    model: VisionModel,
    latents: Collection[int],
    *,
    shown: int = 8,
    detected: int = 20,
    seed: int = 0,
    report: Callable[[str], object] = say,
    at: str | None = None,
) -> Iterator[Entry]:
    """Names of ``latents`` by ``model``, each as soon as it is found, so that it can be kept at once.

    The model is asked twice for each latent. First for a name: it sees up to ``shown`` images of the choosing half
    (every second one) on which the latent peaks highest, with the places marked, and as many on which it is silent.
    Then it gets the name and ``detected`` images of the other half, numbered and unmarked, half of them with the
    latent firing (:func:`~tide.interpretation.naming.firing.firing_images`) and half without, drawn and shuffled by
    ``seed``, and answers which fit. Its answers are yes or no, so the AUROC of the score is their balanced accuracy:
    the mean of the shares of firing and of silent images that it got right.

    A latent of which no name comes gets no entry, and ``report`` gets a line that says why: it fires on fewer than
    :data:`LEAST_SHOWN` images of a half or on nearly all, or the model gave no answer, none in JSON, or an empty name.

    Args:
        peaks: :data:`~tide.interpretation.naming.pieces.Peaks`.
        images: the images by number, uint8 ``[H, W, 3]``; read one at a time.
        heat: of a latent and an image, the latent's map ``[h, w]`` over that image.
        model: who is asked. The images that are shown are sent to its address.
        latents: those to name; each costs two requests with up to ``2 * shown`` and ``detected`` pictures.
        shown, detected: numbers of images; ``detected`` is even.
        seed: of the images for the second question, and their order.
        report: what to do with a line.
        at: of the entries; default the time of each.

    Raises :class:`~tide.errors.TideError` for odd counts, peaks of another number of images, and images that are none.
    """
    check_count("shown", shown)
    check_count("detected", detected)
    if detected % 2 or detected < 2 * LEAST_SHOWN:
        raise TideError(f"detected = {detected} is not an even number of at least {2 * LEAST_SHOWN}; give one")
    left = dict.fromkeys(latents)
    for numbers, columns in pieces_of(peaks, len(images)):
        wanted = [i for i, latent in enumerate(numbers) if latent in left]
        fires = firing_images(columns[:, wanted])
        for column, i in enumerate(wanted):
            del left[numbers[i]]
            try:
                of_latent = _chosen(numbers[i], columns[:, i], fires[:, column], shown, detected, seed)
                yield _asked(of_latent, images, heat, model, at)
            except NoAnswerError as error:
                report(f"latent {numbers[i]} gets no name by {model.model}: {error}")
    for latent in left:
        report(f"latent {latent} gets no name by {model.model}: its peaks were not given")


@dataclass(frozen=True)
class _Chosen:
    """Numbers of the images that are shown for the name, and of those for its detection, with whether it fires."""

    latent: int
    firing: list[int]
    silent: list[int]
    detected: list[tuple[int, bool]]


def _chosen(latent: int, peaks: Tensor, fires: Tensor, shown: int, detected: int, seed: int) -> _Chosen:
    """``peaks [images]`` of the latent and where it ``fires``, bool alike."""
    choosing, scoring = (torch.arange(len(peaks))[half] for half in ALTERNATING)
    sides = [half[fires[half] == side] for half in (choosing, scoring) for side in (True, False)]
    if (fewest := min(map(len, sides))) < LEAST_SHOWN:
        raise NoAnswerError(f"only {fewest} images of a half show it firing, or silent; {LEAST_SHOWN} are needed")
    strong, weak, firing, silent = sides
    draw = random.Random(f"{seed} {latent}")
    n = min(detected // 2, len(firing), len(silent))
    drawn = [(i, side) for half, side in ((firing, True), (silent, False)) for i in draw.sample(half.tolist(), n)]
    draw.shuffle(drawn)
    # Of the silent ones any: the first ones of the data may be all alike.
    rest = weak[torch.tensor(draw.sample(range(len(weak)), len(weak)))]
    return _Chosen(
        latent,
        strong[peaks[strong].argsort(descending=True, stable=True)][:shown].tolist(),
        rest[peaks[rest].argsort(stable=True)][:shown].tolist(),
        drawn,
    )


def _asked(
    of: _Chosen,
    images: Sequence[np.ndarray],
    heat: Callable[[int, int], np.ndarray],
    model: VisionModel,
    at: str | None,
) -> Entry:
    """The entry of a latent. Raises :class:`NoAnswerError`."""
    firing = [(images[i], np.asarray(heat(of.latent, i))) for i in of.firing]
    name = read_name(model.ask(naming_question(firing, [images[i] for i in of.silent])))
    if not name:
        raise NoAnswerError("its name is empty")
    at = now() if at is None else at
    try:
        Entry(of.latent, model.by, at, name)  # before a second request is paid for
    except TideError as error:
        raise NoAnswerError(str(error).removesuffix("; correct the entry")) from None
    answer = model.ask(detection_question(name, [images[i] for i, _ in of.detected]))
    fits = torch.tensor(read_fits(answer, len(of.detected)))
    truth = torch.tensor([side for _, side in of.detected])
    area = float(auroc(fits[:, None].float(), truth[:, None])[0, 0])
    return Entry(of.latent, model.by, at, name, score=Score(area, len(of.detected)))
