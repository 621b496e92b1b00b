"""Bad input: one exact line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.helpers.cli_samples import SMALL


@pytest.fixture
def refused(cli, tmp_path):
    """Runs a command that must fail and leave no ``out`` folder; returns its one line."""

    def run(*arguments: object) -> str:
        out = tmp_path / "out"
        result = cli(*arguments, "--out", out)
        assert result.code == 2
        assert result.err.startswith("tide: error: ")
        assert result.err.count("\n") == 1
        assert not out.exists()
        return result.err.removeprefix("tide: error: ").strip()

    return run


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A copy of the checkpoint, to be damaged."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


def commands(sae, images) -> list[list[object]]:
    """The three commands that read a checkpoint."""
    return [
        ["evaluate", "--sae", sae, "--data", images, "--fast"],
        ["concepts", "--sae", sae, "--data", images, "--concepts", "near"],
        ["edit", "--sae", sae, "--prompt", "a red house", "--erase", "1"],
    ]


def test_unknown_block(refused, pipeline, images, checkpoint):
    message = "block 99 does not exist; this transformer has blocks 0..7"
    assert refused("collect", "--pipeline", pipeline, "--data", images, "--block", 3, 99) == message
    assert refused("train", "--pipeline", pipeline, "--data", images, "--block", 99) == message
    for command in commands(checkpoint, images):
        assert refused(*command, "--block", 99) == message


def test_images_to_evaluate_on(refused, checkpoint, images):
    evaluate = ["evaluate", "--sae", checkpoint]
    assert refused(*evaluate) == "what to evaluate on is not clear; give --data"
    scenes = [*evaluate, "--pipeline", "scenes"]
    assert refused(*scenes, "--size", 64) == "--size is not used without --data; leave it off"
    assert refused(*evaluate, "--data", "scenes", "--size", 64) == "--size is not used with --data scenes; leave it off"
    for fit, n in ((0, 0), (1, 8)):  # 0 is not taken for the default
        assert refused(*evaluate, "--data", images, "--images", 8, "--fit", fit) == (
            f"{n} of 8 images are for fitting the baselines; give more images or another fit"
        )


def test_scenes_with_a_block_that_the_checkpoint_is_not_of(refused, checkpoint):
    assert refused("evaluate", "--sae", checkpoint, "--pipeline", "scenes", "--block", 3) == (
        f"{checkpoint} was trained on block 6, not 3; use a checkpoint made for this block"
    )


def test_k_above_n(refused, store):
    message = refused("train", "--store", store / "block-6", "--set", "n_latents=64", "k=65")
    assert message == "k = 65 must lie between 1 and n_latents = 64; lower k or raise n_latents"


def test_empty_folder(refused, pipeline, checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    for command in (
        ["collect", "--pipeline", pipeline, "--data", tmp_path / "empty"],
        ["train", "--pipeline", pipeline, "--data", tmp_path / "empty"],
        *commands(checkpoint, tmp_path / "empty")[:2],
    ):
        assert refused(*command) == (
            f"{tmp_path}/empty holds no images; add some (.png, .jpg, .jpeg, .jpe, .jfif, .webp, .bmp)"
        )
    assert refused("train", "--store", tmp_path / "empty") == (
        f"{tmp_path}/empty holds no manifest.json; give the folder of an activation store"
    )


def test_unreadable_image(refused, pipeline, checkpoint, tmp_path):
    (tmp_path / "bad").mkdir()
    file = tmp_path / "bad/1.png"
    file.write_bytes(b"no image")
    reason = f"{file} is not a readable image (damaged, or of another format)"
    for command in (
        ["collect", "--pipeline", pipeline, "--data", tmp_path / "bad"],
        ["train", "--pipeline", pipeline, "--data", tmp_path / "bad"],
        commands(checkpoint, tmp_path / "bad")[1],
    ):
        assert refused(*command) == f"{reason}; give a whole one (PNG, JPEG, WEBP, BMP), or skip unreadable images"
    assert refused(
        "edit", "--sae", checkpoint, "--prompt", "a", "--towards", "a house", "--towards-image", file
    ).startswith(f"{file} is not a readable image (")


def test_checkpoint_of_another_width(refused, checkpoint, narrow_pipeline, images):
    for command in commands(checkpoint, images):
        assert refused(*command, "--pipeline", narrow_pipeline) == (
            f"{checkpoint} was trained on d_model 192, not 48; use a checkpoint made for this d_model"
        )


def test_checkpoint_of_another_block_or_model(refused, copy, images):
    for command in commands(copy, images):
        assert refused(*command, "--block", 3) == (
            f"{copy} was trained on block 6, not 3; use a checkpoint made for this block"
        )
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"family": "flux"}))
    for command in commands(copy, images):
        assert refused(*command) == (
            f"{copy} was trained on family 'flux', not 'pixart'; use a checkpoint made for this family"
        )


def test_truncated_or_pickled_checkpoint(refused, copy, images):
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    for content, kind in ((whole[:1000], ""), (pickle.dumps({"W_enc": 1}), "a pickle, which is never loaded")):
        file.write_bytes(content)
        for command in commands(copy, images):
            message = refused(*command)
            assert message.startswith(f"{file} is not a readable safetensors file ({kind}")
            assert message.endswith("; make it again")
    file.unlink()
    assert refused(*commands(copy, images)[2]) == f"{file} does not exist; the checkpoint is incomplete"


def test_no_checkpoint(refused, images, tmp_path):
    for command in commands(tmp_path / "none", images):
        assert refused(*command) == f"{tmp_path}/none/config.json does not exist; check the path"


def test_unknown_backend(refused, store, checkpoint, images):
    for command in (
        ["train", "--store", store / "block-6", *SMALL],
        ["demo"],
        *commands(checkpoint, images),
    ):
        message = refused(*command, "--backend", "abacus")
        assert message.startswith("backend 'abacus' is unknown: use one of auto, triton, native, reference")


def test_backend_that_cannot_serve(refused, store, monkeypatch):
    from tide_kernels import reference

    monkeypatch.setattr(reference, "unavailable", lambda: "it is out of paper")
    assert refused("train", "--store", store / "block-6", "--backend", "reference") == (
        "no backend can serve 'reference': 'reference': it is out of paper; backend='auto' takes one that can"
    )


def test_full_disk(cli, refused, store, checkpoint, images, tmp_path, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    reason = "could not be written ([Errno 28] No space left on device); free some space or choose another folder"
    with monkeypatch.context() as patch:
        patch.setattr("tide.files.tensors.save_file", full)
        result = cli("train", "--store", store / "block-6", "--steps", 2, *SMALL, "--out", tmp_path / "t")
        assert (result.code, result.err) == (2, f"tide: error: {tmp_path}/t/resume/state.safetensors {reason}\n")
        assert not list((tmp_path / "t").glob("*.safetensors"))
        assert not list((tmp_path / "t").glob(".*"))
    monkeypatch.setattr("PIL.Image.Image.save", full)
    result = cli(*commands(checkpoint, images)[2], "--n-steps", 2, "--out", tmp_path / "e")
    assert (result.code, result.err) == (2, f"tide: error: {tmp_path}/e/before.png {reason}\n")
    assert not (tmp_path / "e").exists()


def test_pipelines(refused, images, tmp_path, monkeypatch):
    monkeypatch.setattr("tide.scenes.pipeline.DATA", tmp_path)
    collect = ["collect", "--data", images, "--pipeline"]
    assert refused(*collect, "scenes") == (
        f"{tmp_path}/pipeline holds no pipeline: reinstall tide-sae, or run `python scripts/train_scenes.py`"
    )
    assert refused(*collect, tmp_path) == (
        f"{tmp_path} holds no model_index.json; give the folder of a diffusers pipeline"
    )
    assert refused(*collect, tmp_path / "none").startswith(f"pipeline {tmp_path}/none could not be loaded (")
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    assert refused(*collect, tmp_path).startswith(f"{tmp_path} is a NoSuchPipeline, which diffusers ")
    (tmp_path / "model_index.json").write_text("[]")
    assert refused(*collect, tmp_path).startswith(f"pipeline {tmp_path} could not be loaded (")


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_pipeline_that_lacks_a_weight(refused, pipeline, images, tmp_path, part):
    """diffusers leaves it on the meta device."""
    copy = shutil.copytree(pipeline, tmp_path / "copy")
    path = copy / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    (name, *_) = [name for name in tensors if name.endswith("bias")]
    save_file({key: value for key, value in tensors.items() if key != name}, path, {"format": "pt"})
    found = refused("collect", "--data", images, "--pipeline", copy)
    assert found == f"pipeline {copy} lacks the weight {name} of its {part}; copy or download it again"


def test_edits(refused, checkpoint):
    edit = ["edit", "--sae", checkpoint, "--prompt", "a red house"]
    assert refused(*edit, "--erase", "96") == "feature 96 does not exist; this SAE has latents 0..95"
    assert refused(*edit, "--erase", "1", "--steps", "0.8", "0.2") == (
        "steps = (0.8, 0.2) must be two fractions of the sampling run, 0 <= first < last <= 1"
    )
    assert refused(*edit, "--erase", "1", "--steps", "0.96", "1", "--n-steps", "4") == (
        "steps 0.96 1 holds none of the 4 sampling steps; give fractions 0.25 apart or more"
    )
    # Steps are judged by the run that --fast makes: of 20 one lies in here, of 8 none.
    assert refused(*edit, "--erase", "1", "--steps", "0.3", "0.35", "--fast") == (
        "steps 0.3 0.35 holds none of the 8 sampling steps; give fractions 0.125 apart or more"
    )
    assert refused(*edit, "--erase", "1", "--branch", "unconditional", "--guidance", "1") == (
        "--branch is not used with --guidance at most 1; leave it off"
    )
    for command in (edit, ["trajectory", *edit[1:]]):
        options = ["--erase", "1"] if command is edit else []
        assert refused(*command, *options, "--n-steps", "2000") == "2000 sampling steps asked for; give 1..1000"
    assert refused(*edit, "--erase", "1", "--n-steps", "1") == (
        "PixArt alpha draws in one step with an LCM scheduler only; give 2 steps or more"
    )
    for option in ("--strength", "--guidance"):
        assert refused(*edit, "--erase", "1", option, "nan") == (
            f"{option}: 'nan' is not a number; give a finite one, at most 3e+38; see `tide edit --help`"
        )
    assert refused(*edit, "--erase", "1", "--seed", "-1") == (
        "--seed: '-1' is not a seed; give a whole number, 0 to 4294967295; see `tide edit --help`"
    )
    assert refused(*edit, "--scale", "3=nan") == (
        "--scale: '3=nan' is not a scaling; write it as 12,40=3.0; see `tide edit --help`"
    )
    assert refused(*edit, "--scale", "12") == (
        "--scale: '12' is not a scaling; write it as 12,40=3.0; see `tide edit --help`"
    )
    assert refused(*edit, "--erase", "1", "--towards-pooled") == (
        "--towards-pooled is not used without a target; leave it off"
    )
    assert refused(*edit, "--erase", "1", "--save-target", "t") == (
        "--save-target is not used without a target; leave it off"
    )
    assert refused(*edit, "--towards", "a tree", "--altered", "4", "--strength", "1", "2") == (
        "--altered goes with one --strength; give one"
    )
    assert refused(*edit, "--erase", "1", "--strength", "1", "2", "1.0000001") == (
        "--strength has 1 twice, and each has one picture; give different ones"
    )
    assert refused(*edit, "--towards", "a tree", "--altered", "4", "4") == (
        "--altered has 4 twice, and each has one picture; give different ones"
    )
    assert refused(*edit, "--change", "blue=red") == (
        "the prompt 'a red house' does not say 'blue'; name a word that it says"
    )
    assert refused(*edit, "--change", "red") == (
        "--change: 'red' is not a change of a word; write it as red=blue; see `tide edit --help`"
    )
    assert refused(*edit, "--towards", "a tree", "--altered", "65", "--n-steps", "2") == (
        "65 tokens asked for; the image has 1..64"
    )
    assert refused(*edit).startswith("one of these is required: --towards, --change, --scale, --erase, ")


def test_target_that_does_not_fit_in_memory(refused, checkpoint, monkeypatch):
    monkeypatch.setattr("tide.editing.record.TARGET_BYTES", 10**5)
    assert refused("edit", "--sae", checkpoint, "--prompt", "a", "--towards", "a house") == (
        "the target's latents take 0 GB at 20 steps of 64 tokens; pool the target or lower n_steps"
    )


def test_masks(refused, checkpoint, tmp_path):
    edit = ["edit", "--sae", checkpoint, "--prompt", "a red house", "--erase-top", 4, "--mask"]
    for name, size, value in (("small", 32, 255), ("dark", 64, 9)):
        Image.new("L", (size, size), value).save(tmp_path / f"{name}.png")
    assert refused(*edit, tmp_path / "small.png") == (
        f"{tmp_path}/small.png is 32 x 32 pixels and the image 64 x 64; make the mask of the image's size"
    )
    assert refused(*edit, tmp_path / "dark.png") == (
        f"{tmp_path}/dark.png covers no token by more than half; make the mask larger or brighter"
    )
    (tmp_path / "text.png").write_text("no picture")
    assert refused(*edit, tmp_path / "text.png").startswith(f"{tmp_path}/text.png is not a readable image (")


def test_targets(refused, cli, checkpoint, copy, tmp_path):
    """A file that is no target, and the target of another SAE and of another resolution."""
    edit = ["--prompt", "a red house", "--n-steps", 2]
    kept = tmp_path / "target.safetensors"
    made = cli(
        "edit", "--sae", checkpoint, *edit, "--towards", "a tree", "--save-target", kept, "--out", tmp_path / "o"
    )
    assert made.code == 0
    (tmp_path / "text").write_text("no tensors")
    assert refused("edit", "--sae", checkpoint, *edit, "--target", tmp_path / "text").startswith(
        f"{tmp_path}/text is not a readable safetensors file ("
    )
    assert refused("edit", "--sae", checkpoint, *edit, "--target", checkpoint / "model.safetensors") == (
        f"{checkpoint}/model.safetensors holds no target; make one with `tide edit --save-target`"
    )
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"block": 5}))
    assert refused("edit", "--sae", copy, *edit, "--target", kept) == (
        f"{kept} was recorded with another SAE (block 6, now 5); record it with this SAE"
    )
    assert refused("edit", "--sae", checkpoint, *edit, "--target", kept, "--size", 128) == (
        "the target has 64 tokens and the image 256; make it at the same resolution"
    )


def test_trajectories(refused, checkpoint):
    trajectory = ["trajectory", "--sae", checkpoint, "--prompt", "a red house"]
    assert refused(*trajectory, "--n-steps", 3) == "n_steps = 3 is too few to find a change in; give at least 4"
    assert refused(*trajectory, "--change", "blue=red") == (
        "the prompt 'a red house' does not say 'blue'; name a word that it says"
    )


def test_concepts(refused, checkpoint, images):
    concepts = ["concepts", "--sae", checkpoint]
    said = refused(*concepts, "--data", images, "--concepts", "whale")
    assert said.startswith(f"the 10 images of {images}")
    assert said.endswith(": no caption holds 'whale'; name words that some of them hold")
    assert refused(*concepts, "--data", images) == "no concept is named; give --concepts word,word"
    assert refused(*concepts, "--concepts", "near") == "what to look for concepts in is not clear; give --data"


def test_arguments(refused, pipeline, images):
    collect = ["collect", "--pipeline", pipeline, "--data", images]
    assert refused(*collect, "--tensor", "logits") == (
        "tensor 'logits' is unknown; use one of output, attention, feed_forward"
    )
    assert refused(*collect, "--size", 65) == (
        "a size of 65 x 65 pixels does not divide into tokens; use multiples of 8"
    )
    assert refused(*collect, "--token-fraction", "2") == "token_fraction 2.0 is not in (0, 1]; 1/16 is usual"
    for device, state in {"abacus": "not supported", "meta": "not supported", "mps": "not there"}.items():
        assert refused(*collect, "--device", device).startswith(f"device '{device}' is {state}; use cpu")
    assert refused(*collect, "--device", "cpu", "--offload") == (
        "offload moves models between a GPU and the CPU, and the device is the CPU; leave it off"
    )
    assert refused(*collect, "--prompts", "x.txt") == "--prompts belongs to --sampling; add it, or give --data"
    assert refused("train") == "what to train on is not clear; give --store, or --pipeline and --data"
