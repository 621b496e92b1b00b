"""What is special of Latte: spatial and temporal blocks in turn, whose rows are frames and places of a clip."""

from __future__ import annotations

import torch

from tests.helpers.families import FAMILIES, draw, pipeline
from tide.adapters import adapter_for, tap


def test_spatial_and_temporal_blocks_run_in_turn():
    own, ran = adapter_for(pipeline("latte")), []
    shapes: dict[int, set[torch.Size]] = {}
    handles = [
        block.register_forward_hook(lambda _m, _a, output, i=i: shapes.setdefault(i, set()).add(output.shape))
        for i, block in enumerate(own.blocks)
    ]
    with tap(own, dict.fromkeys(range(own.n_blocks), lambda x, call: ran.append(x.shape))):
        draw("latte", n_steps=1)
    for handle in handles:
        handle.remove()
    assert list(shapes) == [0, 1, 2, 3]
    assert list(shapes.values()) == [{(6, 8, 32)}, {(16, 3, 32)}] * 2
    assert ran == [(2, 24, 32)] * 4


def test_a_token_is_the_same_place_in_both_kinds_of_blocks():
    """A frame's row is put back where it was: the other tokens of the module's output keep their bits."""
    own = adapter_for(pipeline("latte"))
    frame, place = 1, 5
    chosen = torch.zeros(24, 1)
    chosen[frame * 8 + place] = 1
    for block, at in ((0, (frame, place)), (1, (place, frame))):
        before, after = [], []
        first = own.blocks[block].register_forward_hook(lambda _m, _a, output, kept=before: kept.append(output.clone()))
        with tap(own, {block: lambda x, call: x + chosen}):
            second = own.blocks[block].register_forward_hook(lambda _m, _a, output, kept=after: kept.append(output))
            draw("latte", n_steps=1)
        first.remove()
        second.remove()
        moved = (after[0] - before[0]).abs().amax(2).nonzero()
        rows = 3 if block == 0 else 8  # of one clip
        assert [[row % rows, column] for row, column in moved.tolist()] == [list(at)] * 2
        assert [int(row) // rows for row, _ in moved.tolist()] == [0, 1]


def test_a_clip_of_one_frame():
    own, seen = adapter_for(pipeline("latte")), []
    picture = torch.rand(1, 3, 64, 32) * 2 - 1
    latents = own.encode_images(picture)
    assert latents.shape == (1, 4, 1, 8, 4)
    assert torch.equal(own.encode_images(picture.unsqueeze(2)), latents)
    assert own.decode_latents(latents).shape == (1, 3, 1, 64, 32)
    with tap(own, {1: lambda x, call: seen.append((x.shape, call.grid))}):
        draw("latte", num_frames=1)
    assert set(seen) == {((2, 8, 32), (1, 4, 2))}


def test_two_clips_of_a_prompt():
    own, seen = adapter_for(pipeline("latte")), []
    with tap(own, {0: lambda x, call: seen.append(call.conditional.tolist())}):
        own.generate(
            FAMILIES["latte"].prompts,
            n_steps=2,
            guidance_scale=3.0,
            generators=[torch.Generator().manual_seed(i) for i in range(4)],
            **{**FAMILIES["latte"].pixels, "num_images_per_prompt": 2},
        )
    assert seen == [[False] * 4 + [True] * 4] * 2
