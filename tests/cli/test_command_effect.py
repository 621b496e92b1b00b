"""``tide effect``: its files, what it says, and the command that it prints."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from PIL import Image

from tide.interpretation.effect import load_effects
from tide.interpretation.effect.curves import COUNTS
from tide.loading import load_adapter, load_sae
from tide.runs import contents

RUN = ["--prompt", "a red house", "--change", "red=blue", "--n-steps", 2, "--seed", 3, "--guidance", 2]


@pytest.fixture
def sae(checkpoint, pipeline):
    return load_sae(checkpoint, load_adapter(str(pipeline), device="cpu"))


@pytest.fixture
def made(cli, checkpoint, tmp_path):
    out = tmp_path / "out"
    return cli("effect", "--sae", checkpoint, *RUN, "--top", 4, "--points", 1, "--out", out), out


def test_what_is_written(made, sae, checkpoint):
    result, out = made
    assert (result.code, result.err) == (0, "")
    effects, report = load_effects(out / "effects.safetensors", sae), json.loads((out / "effects.json").read_text())
    assert effects.attribution.shape == effects.integrated.shape == (2, 96)
    assert [row["latent"] for row in report["latents"]] == effects.largest(4) == effects.ablated.tolist()
    for i, row in enumerate(report["latents"]):
        assert row["ablation"] == pytest.approx(float(effects.ablation[:, i].mean()))
        assert row["attribution"] == pytest.approx(float(effects.attribution[:, row["latent"]].mean()))
        assert row["timestep"] in effects.timesteps.tolist()
    assert report["correlation"]["attribution"] == pytest.approx(effects.correlation())
    assert report["curves"]["latents"] == list(COUNTS)
    assert {len(values) for values in report["curves"].values()} == {len(COUNTS)}
    with Image.open(out / "effects.png") as picture:
        assert min(picture.size) > 400
    holds = contents(out)
    assert (holds.kind, holds.blocks) == ("effect", [6])
    assert holds.data == {"prompt": "a red house", "towards": "a blue house"}
    assert holds.measured == {"correlation": report["correlation"], "curves": report["curves"]}
    assert holds.autoencoder["folder"] == str(checkpoint)
    assert all((out / name).is_file() for name in holds.files)


def test_what_is_said_and_the_command_that_follows(cli, made, sae):
    result, out = made
    effects, report = load_effects(out / "effects.safetensors", sae), json.loads((out / "effects.json").read_text())
    said, command = result.out.splitlines()
    assert said.startswith(
        "Without up to 16 of the 96 latents of block 6, the model's predictions go this share of the way to"
    )
    assert f"{report['curves']['attribution'][COUNTS.index(16)]:.0%} by attribution" in said
    assert f"correlate by {report['correlation']['attribution']:.2f}; see {out}/effects.png." in said
    program, *words = shlex.split(command)
    assert program == "tide"
    assert words[words.index("--erase") + 1] == ",".join(map(str, effects.strongest(16)))
    drawn = cli(*words)
    assert drawn.code == 0, drawn.err
    edited = contents(f"{out}-edit")
    assert edited.data == {"prompt": "a red house"}
    assert edited.configuration | contents(out).configuration == edited.configuration


def test_the_command_that_follows_has_the_options_that_the_run_needed(cli, checkpoint, tmp_path):
    """A slash at the end of the folder, as a shell completes it, makes no folder in the folder."""
    options = ["--device", "cpu", "--dtype", "fp32", "--backend", "reference", "--trust-remote-code"]
    run = [*RUN, "--top", 1, "--points", 1, "--out", f"{tmp_path}/out/"]
    words = shlex.split(cli("effect", "--sae", checkpoint, *run, *options).out.splitlines()[1])
    assert words[-2:] == ["--out", f"{tmp_path}/out-edit"]
    for name, value in zip(options[:6:2], options[1:6:2], strict=True):
        assert words[words.index(name) + 1] == value
    assert "--trust-remote-code" in words


def test_an_sae_without_an_active_latent(cli, checkpoint, sae, tmp_path):
    silent, out = tmp_path / "silent", tmp_path / "out"
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    sae.save_pretrained(silent)
    result = cli("effect", "--sae", silent, *RUN, "--out", out)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "no latent of block 6 has an effect on 'a red house'; take an SAE whose latents are active" in result.err
    assert not out.exists()


def test_what_does_not_fit(cli, checkpoint, tmp_path):
    effect = ["effect", "--sae", checkpoint, "--prompt", "a red house", "--out", tmp_path / "out"]
    for words, message in (
        (["--change", "blue=red"], "the prompt 'a red house' does not say 'blue'; name a word that it says"),
        (["--towards", "a red house", "--n-steps", 2], "both prompts predict the same, so there is no way to go; name"),
        (["--change", "red=blue", "--n-steps", 1], "PixArt alpha draws in one step with an LCM scheduler only"),
        ([], "one of these is required: --towards, --change; see `tide effect --help`"),
    ):
        result = cli(*effect, *words)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert message in result.err
        assert not (tmp_path / "out").exists()
