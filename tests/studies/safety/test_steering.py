"""Raw steering away from a concept."""

from __future__ import annotations

import pytest
import torch

from tide.adapters import adapter_for
from tide.scenes.pipeline import DATA, load_pipeline
from tide.studies.safety.drawing import draw_requests
from tide.studies.safety.prompts import Unwanted, asking
from tide.studies.safety.steering import away_from, steered

pytestmark = pytest.mark.skipif(not (DATA / "pipeline").is_dir(), reason="needs the bundled pipeline")


@pytest.mark.filterwarnings("ignore:the pipeline ran and nothing was edited")  # at strength 0
def test_every_image_is_moved_and_none_at_strength_0():
    adapter, concept = adapter_for(load_pipeline()), Unwanted("class", "house", "cube")
    direction = away_from(adapter, concept, 6, n_images=2)
    assert direction.direction.shape == (20, 64, 192)
    assert direction.direction.isfinite().all()
    requests = [asking(concept, "dev", 1)[0]]
    plain = draw_requests(adapter, requests)
    none, some = (draw_requests(adapter, requests, steered(direction, factor, 6)) for factor in (0.0, 2.0))
    assert torch.equal(plain, none)
    assert not torch.equal(plain, some)
