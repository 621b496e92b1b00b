"""docs/adapters.md: its family by probe runs as it stands, and its tables name everything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.adapters import own_modules
from tests.helpers.families import hooks_of
from tests.helpers.pages import ROOT, run_page
from tide.adapters import tap

PAGE = ROOT / "docs" / "adapters.md"


@pytest.fixture(scope="module")
def example(photos, tmp_path_factory) -> Iterator[dict[str, Any]]:
    """The names that the page's code defines; its families are known only while these tests run."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(photos, folder / "photos")
    with own_modules(folder), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield run_page("docs/adapters.md")


def test_the_example_runs(example):
    own, images = example["adapter"], example["images"]
    assert own.family == "my"
    assert images.shape == (2, 4, 8, 8)
    plain = own.generate(
        ["a house", "a tree"],
        n_steps=5,
        guidance_scale=3.0,
        generators=[torch.Generator().manual_seed(i) for i in (0, 1)],
    )
    assert torch.isfinite(images).all()
    assert not torch.allclose(images, plain, atol=1e-3)
    assert hooks_of(own.pipe) == 0


def test_the_examples_commands_wrote_what_they_say(example):
    assert example["sae"].config.family == "my"
    for file in ("runs/my-acts/manifest.json", "runs/my-figures/metrics.json", "runs/my-edit/strip.png"):
        assert Path(file).is_file()
    assert json.loads(Path("runs/mine/run.json").read_text())["arguments"]["adapter"] == "my_family.py"


def test_the_examples_modulation_and_rows_are_right(example):
    own, seen = example["adapter"], {}
    block = own.blocks[1]
    hooks = [
        block.norm.register_forward_hook(lambda _m, _a, output: seen.update(normed=output)),
        block.mix.register_forward_pre_hook(lambda _m, args: seen.update(read=args[0])),
    ]
    with tap(own, {1: lambda x, call: seen.update(call=call)}):
        own.generate(["a house"], n_steps=2, guidance_scale=3.0, generators=[torch.Generator()])
    for hook in hooks:
        hook.remove()
    scale, shift = own.modulation(1)(seen["call"].timestep)
    expected = seen["normed"] * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(seen["read"], expected, rtol=1e-4, atol=1e-4)
    assert seen["call"].conditional.tolist() == [True, False]
    torch.testing.assert_close(seen["call"].timestep, own.pipe.scheduler.timesteps[-1:].float().expand(2))
