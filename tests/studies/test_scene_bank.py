"""Banks of rendered scenes: what scenes do not have."""

from __future__ import annotations

import pytest

from tide.errors import TideError
from tide.studies.scene_bank import scene_bank


@pytest.mark.parametrize(
    ("concepts", "contrasts"),
    [(["zebra"], []), (["red"], [("red", "zebra")]), (["red"], [("zebra", "red")])],
    ids=["concept", "target", "source"],
)
def test_words_that_scenes_do_not_have_are_refused(concepts, contrasts):
    """A source, too: the pipeline's tokenizer takes it for an unknown word."""
    with pytest.raises(TideError, match="scenes have no concept 'zebra'; they have"):
        scene_bank(None, None, concepts, contrasts, n_images=8, timesteps=1, n_tokens=8, seed=0)
