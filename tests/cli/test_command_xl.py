"""The size of PixArt-XL at 1024 pixels: 4096 tokens of width 1152, on one block with random weights."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

from tide import TIDE, Erase, adapter_for, edit
from tide.activations import ActivationStore, Prepared, collect
from tide.activations.stores import write_stores
from tide.adapters import tap

GB = 1e9
N_IMAGES = 6
#: n = 16 d as in the default configuration, k 5 % of it.
N_LATENTS, K = 18432, 922


class PeakMemory:
    """Resident memory above what the process holds at the start, sampled while the context is open."""

    def __enter__(self) -> PeakMemory:
        self.start, self.peak, self.done = resident(), 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.01):
            self.peak = max(self.peak, resident() - self.start)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def pipe() -> PixArtAlphaPipeline:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=16,
        attention_head_dim=72,
        num_layers=1,
        cross_attention_dim=1152,
        caption_channels=4096,
        sample_size=128,
    )
    parts = {"tokenizer": None, "text_encoder": None, "vae": None}
    made = PixArtAlphaPipeline(**parts, transformer=transformer.eval(), scheduler=DPMSolverMultistepScheduler())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_collect_train_and_edit(pipe, cli, tmp_path):
    adapter = adapter_for(pipe)
    pipe.save_pretrained(tmp_path / "pipeline")
    generator = torch.Generator().manual_seed(0)
    data = []
    for _ in range(N_IMAGES):
        text = {
            "encoder_hidden_states": torch.randn(1, 120, 4096, generator=generator),
            "encoder_attention_mask": torch.ones(1, 120),
        }
        data.append(Prepared(torch.randn(1, 4, 128, 128, generator=generator), text))
    info = {"pipeline": str(tmp_path / "pipeline"), "family": "pixart", "tensor": "output", "seed": 0}

    # One pair of images through the block: a few tensors of [2, 4096, 4 x 1152] in fp32, 76 MB each.
    with PeakMemory() as collecting:
        rows, n_images = write_stores(
            lambda _, start, stop: collect(adapter, data, [0], batch_size=1, start=start, stop=stop),
            {0: tmp_path / "store"},
            info,
            n=N_IMAGES,
        )
    assert n_images == N_IMAGES
    assert rows == len(ActivationStore(tmp_path / "store")) == N_IMAGES * 2 * 256
    assert ActivationStore(tmp_path / "store").manifest["d_conditioning"] == 1152  # resolution and aspect ratio
    assert collecting.peak < 1.0 * GB

    # Weights of both sides, their gradients and Adam's two moments: 8 x 85 MB, the transformer besides; the
    # pre-activations of all 2048 rows at once would be 151 MB apiece.
    with PeakMemory() as training:
        settings = ["--steps", 2, "--set", "batch_tokens=2048", f"n_latents={N_LATENTS}", f"k={K}"]
        result = cli("train", "--store", tmp_path / "store", "--out", tmp_path / "tide", *settings)
    assert result.code == 0, result.err
    assert training.peak < 2.0 * GB
    history = json.loads((tmp_path / "tide/training.json").read_text())["history"]
    assert history[-1]["step"] == 2

    sae = TIDE.from_pretrained(tmp_path / "tide")
    assert sae.modulation is not None
    assert sae.modulation.config.conditioned
    embeddings = {
        "prompt_embeds": data[0].text["encoder_hidden_states"],
        "prompt_attention_mask": data[0].text["encoder_attention_mask"],
        "negative_prompt_embeds": data[1].text["encoder_hidden_states"],
        "negative_prompt_attention_mask": data[1].text["encoder_attention_mask"],
    }

    def draw() -> torch.Tensor:
        return pipe(
            prompt=None,
            negative_prompt=None,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            use_resolution_binning=False,
            clean_caption=False,
            height=1024,
            width=1024,
            **embeddings,
        ).images

    plain = draw()
    seen: list[tuple[int, ...]] = []
    # Dense latents of all 4096 tokens would be 302 MB apiece, before and after; they come 2048 at a time.
    started = time.perf_counter()
    with (
        PeakMemory() as editing,
        edit(pipe, sae, Erase(top_k=64)),
        tap(adapter, {0: lambda x, call: seen.append(tuple(x.shape))}),
    ):
        edited = draw()
    assert seen == [(2, 4096, 1152)] * 2
    assert not torch.equal(plain, edited)
    assert torch.isfinite(edited).all()
    assert editing.peak < 1.5 * GB
    print(
        f"peak GB: collect {collecting.peak / GB:.2f}, train {training.peak / GB:.2f}, edit {editing.peak / GB:.2f}; "
        f"edit {time.perf_counter() - started:.0f} s"
    )
