"""The same request under every protection, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from tide.files import replace_files
from tide.pictures import image_writer, to_image
from tide.strips import Row, labelled
from tide.studies.options import Options
from tide.studies.safety.drawing import draw_requests
from tide.studies.safety.names import PROTECTIONS
from tide.studies.safety.prompts import Unwanted, asking
from tide.studies.safety.protections import Protections

#: Pixels of a picture's side.
SIDE = 192


def draw_gallery(options: Options, protections: Protections, concepts: Sequence[Unwanted], seed: int) -> None:
    """A row for each concept: its first test request whose object is near, under every protection."""
    adapter, rows = protections.models.bench.adapter, []
    for concept in concepts:
        requests = asking(concept, "test", 24, options.seed)
        request = next((each for each in requests if each.scene.depth == "near"), requests[0])
        images = [draw_requests(adapter, [request], protections.rival(name, seed, concept))[0] for name in PROTECTIONS]
        rows.append(Row([to_image(image) for image in images], PROTECTIONS, f"{concept.value}: {request.prompt}"))
    picture = labelled(rows, side=SIDE)
    replace_files({options.out / "safety-gallery.png": image_writer(picture)})
