"""`tide train`: from a store, from several, live; configuration from file and command line; resumed."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.helpers.cli_samples import SMALL
from tide import TIDE
from tide.activations import ActivationStore
from tide.cli import common, settings
from tide.cli.app import main
from tide.cli.settings import train_config
from tide.errors import TideError
from tide.files import lock_folder
from tide.runs import contents
from tide.training import Learner, TrainConfig
from tide.training.sources import mixed


def weights(path) -> dict[str, torch.Tensor]:
    return TIDE.from_pretrained(path).state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    train_step = Learner.train_step

    def interrupted(trainer: Learner, batch):
        if trainer.step == step:
            raise KeyboardInterrupt
        return train_step(trainer, batch)

    monkeypatch.setattr(Learner, "train_step", interrupted)


def test_resume_ends_where_an_uninterrupted_run_does(cli, store, checkpoint, tmp_path, monkeypatch):
    command = ["train", "--store", store / "block-6", "--out", tmp_path / "tide", "--steps", 8, *SMALL]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        result = cli(*command)
    assert result.code == 130
    assert result.err == ("tide: interrupted; the checkpoint of step 4 is kept; rerun with resume to continue\n")
    assert cli(*command).err == (
        f"tide: error: {tmp_path}/tide already holds a checkpoint; resume, or choose another folder\n"
    )
    assert cli(*command, "--resume").code == 0
    assert equal(weights(tmp_path / "tide"), weights(checkpoint))
    result = cli(*command, "--resume", "--set", "lr=1e-4")
    assert (result.code, result.err) == (
        2,
        f"tide: error: {tmp_path}/tide was started with other options (lr null, now 0.0001); "
        "use the same configuration or another folder\n",
    )


def test_a_centred_training_resumes_with_the_same_mean(cli, store, tmp_path, monkeypatch):
    command = ["train", "--store", store / "block-6", "--sae", "--steps", 8, *SMALL, "--set", "centre=true"]
    assert cli(*command, "--out", tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert cli(*command, "--out", tmp_path / "parts").code == 130
    assert cli(*command, "--out", tmp_path / "parts", "--resume").code == 0
    assert equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert weights(tmp_path / "whole")["activation_mean"].any()
    assert TIDE.from_pretrained(tmp_path / "whole").config.centre is True


def test_a_transcoder_from_a_store_and_live(cli, pipeline, images, tmp_path):
    """Collected once, trained twice, evaluated; it cannot edit."""
    pairs = ["--transcoder", "feed_forward", "--token-fraction", "1/4", "--block", 2]
    assert cli("collect", "--pipeline", pipeline, "--data", images, *pairs, "--out", tmp_path / "s").code == 0
    assert ActivationStore(tmp_path / "s").info["target"] == "feed_forward"
    trained = cli("train", "--store", tmp_path / "s", "--out", tmp_path / "stored", "--steps", 4, *SMALL)
    assert "Trained a TIDE, a transcoder of feed_forward, of 96 latents" in trained.out
    live = ["--pipeline", pipeline, "--data", images, *pairs, "--out", tmp_path / "live", "--steps", 4, *SMALL]
    assert cli("train", *live).code == 0
    for name in ("stored", "live"):
        config = TIDE.from_pretrained(tmp_path / name).config
        assert (config.tensor, config.target) == ("feed_forward_input", "feed_forward")
    options = ["--pipeline", pipeline, "--data", images, "--loss-timesteps", 1]
    result = cli("evaluate", "--sae", tmp_path / "live", *options, "--out", tmp_path / "figures")
    assert "the transcoder explains" in result.out
    edited = ["--pipeline", pipeline, "--prompt", "a red cube", "--erase", 1, "--out", tmp_path / "edited"]
    assert "the SAE is a transcoder of feed_forward" in cli("edit", "--sae", tmp_path / "live", *edited).err


def test_live_stream(cli, pipeline, images, tmp_path):
    options = ["--pipeline", pipeline, "--data", images, "--token-fraction", "1/4", "--block", 2, *SMALL]
    result = cli("train", *options, "--steps", 6, "--cache", "--out", tmp_path / "live")
    assert result.code == 0
    assert result.err == ""
    announced, held_out, trained, *rest = result.out.splitlines()
    assert announced == f"training on 9 of the 10 images of {images}/"
    assert held_out == f"1 of the 10 images of {images}/ is held out"
    assert trained.startswith("Trained a TIDE of 96 latents, k = 8, on block 2: 6 steps of ")
    assert rest[-2:] == [
        f"  tide evaluate --sae {tmp_path}/live --data {images} --out {tmp_path}/live-figures",
        f"  tide browse {tmp_path}/live --data {images}",
    ]
    about = json.loads((tmp_path / "live/run.json").read_text())["holds"]["data"]
    assert (about["images"], about["hold_out"]) == (9, 0.1)
    model = TIDE.from_pretrained(tmp_path / "live")
    assert model.config.pipeline == str(pipeline)
    assert model.config.block == 2
    assert cli("train", *options, "--steps", 6, "--out", tmp_path / "again").code == 0
    assert equal(weights(tmp_path / "live"), weights(tmp_path / "again"))


@pytest.mark.parametrize("stop", [3, 8, 13], ids=["in the first epoch", "at its end", "in the second"])
def test_a_live_stream_resumes_bit_for_bit(cli, live, tmp_path, monkeypatch, stop):
    """An epoch is of 9 batches, and mixed in two windows."""
    command, whole = live
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop)
        assert cli(*command, "--out", tmp_path / "parts").code == 130
    assert cli(*command, "--out", tmp_path / "parts", "--resume").code == 0
    assert equal(weights(tmp_path / "parts"), weights(whole))
    histories = [json.loads((out / "training.json").read_text())["history"] for out in (whole, tmp_path / "parts")]
    assert histories[0] == histories[1]


#: The live stream's options that change what is read, beside the value that the fixture ``live`` has.
OTHER_STREAMS = {
    "images": ["--images", 7],
    "size": ["--size", 128],
    "block": ["--block", 3],
    "tensor": ["--tensor", "attention"],
    "timesteps": ["--timesteps", 10],
    "token_fraction": ["--token-fraction", "1/8"],
    "paired": ["--no-pairs"],
    "batch_size": ["--batch-size", 2],
    "buffer_rows": ["--buffer-rows", 4096],
    "reuse": ["--reuse", 2],
    "dtype": ["--dtype", "bf16"],
}


@pytest.mark.parametrize("name", OTHER_STREAMS)
def test_a_live_stream_does_not_resume_on_another(cli, live, tmp_path, name):
    command, whole = live
    shutil.copytree(whole, tmp_path / "live")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # The last of two values counts.
    result = cli(*command, "--out", tmp_path / "live", "--resume", "--steps", 16, *OTHER_STREAMS[name])
    assert result.code == 2
    assert result.err.startswith(f"tide: error: {tmp_path}/live was ")
    assert f"({name}" in result.err
    assert result.err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("change", ["a caption", "a pixel", "a weight"])
def test_a_live_stream_does_not_resume_on_changed_files(cli, live, pipeline, images, tmp_path, change):
    command, whole = live
    for source in (whole, pipeline, images):
        shutil.copytree(source, tmp_path / source.name)
    if change == "a caption":
        captions = tmp_path / images.name / "metadata.jsonl"
        captions.write_text(captions.read_text().replace("red", "blue").replace("small", "large"))
    elif change == "a pixel":
        with Image.open(tmp_path / images.name / "03.png") as image:
            image.putpixel((5, 5), (1, 2, 3))
            image.save(tmp_path / images.name / "03.png")
    else:
        file = next((tmp_path / pipeline.name / "transformer").glob("*.safetensors"))
        tensors = load_file(file)
        next(iter(tensors.values())).view(-1)[0] += 1
        save_file(tensors, file, metadata={"format": "pt"})
    moved = [tmp_path / each.name if each in (pipeline, images) else each for each in command]
    result = cli(*moved, "--out", tmp_path / whole.name, "--resume", "--steps", 16)
    assert result.code == 2
    assert f"was trained on other data ({'pipeline.transformer' if change == 'a weight' else 'data'} " in result.err


def test_a_live_stream_resumes_where_its_files_have_moved(cli, live, pipeline, images, tmp_path):
    command, whole = live
    for source in (whole, pipeline, images):
        shutil.copytree(source, tmp_path / source.name)
    moved = [tmp_path / each.name if each in (pipeline, images) else each for each in command]
    assert cli(*moved, "--out", tmp_path / whole.name, "--resume", "--steps", 16).code == 0


@pytest.fixture(scope="module")
def live(pipeline, images, tmp_path_factory):
    """The command of a live stream and the folder that it was trained into."""
    command = ["train", "--pipeline", pipeline, "--data", images, "--token-fraction", "1/4", "--block", 2, *SMALL]
    command += ["--hold-out", 0]
    command += ["--set", "log_every=1", "--buffer-rows", 512, "--batch-size", 4]
    out = tmp_path_factory.mktemp("live") / "whole"
    assert main([str(each) for each in (*command, "--steps", 15, "--out", out)]) == 0
    return [*command, "--steps", 15], out


def test_all_blocks_train_on_one_stream(cli, live, tmp_path):
    """The memory is said before it starts; a block has the weights that it would have alone."""
    command, whole = live
    at = command.index("--block")
    several = [*command[:at], "--block", 2, 0, *command[at + 2 :], "--out", tmp_path / "set"]
    result = cli(*several)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert re.match(
        r"a TIDE of \d+ latents for each of blocks 2, 0: .* GB of weights, gradients and moments, and", lines[1]
    )
    assert "on each of the blocks 0, 2: 15 steps of 64 tokens" in lines[2]
    assert [line.split()[0] for line in lines if line.endswith("too short to say")] == ["0", "2"]
    assert equal(weights(tmp_path / "set/block-2"), weights(whole))
    assert cli(*several, "--resume").code == 0


def test_stores_of_several_blocks_train_together(cli, store, checkpoint, tmp_path):
    assert cli("train", "--store", store, "--out", tmp_path / "set", "--steps", 8, *SMALL).code == 0
    assert sorted(each.name for each in (tmp_path / "set").glob("block-*")) == ["block-3", "block-6"]
    assert equal(weights(tmp_path / "set/block-6"), weights(checkpoint))


# -- what a resumed training may be ------------------------------------------------------------------------------


def test_other_stores_are_refused(cli, store, pipeline, images, checkpoint, tmp_path):
    """Another store, more stores, the same in another order, a store that has grown, another buffer."""
    one, two = store / "block-6", tmp_path / "two"
    options = ["--token-fraction", "1/4", "--block", 6, "--pipeline", pipeline, "--data", images]
    assert cli("collect", *options, "--images", 6, "--out", two).code == 0
    command = ["train", "--steps", 8, *SMALL]
    for before, now, changed in (
        ([one], [two], "stores[0].rows 576, now 192"),
        ([one], [one, two], "stores"),
        ([one, two], [two, one], "stores[0].rows 576, now 192"),
        ([one], [one, "--buffer-rows", 4096], "buffer_rows 65536, now 4096"),
    ):
        assert cli(*command, "--store", *before, "--out", tmp_path / "t", "--seed", 1).code == 0
        result = cli(*command, "--store", *now, "--out", tmp_path / "t", "--seed", 1, "--resume", "--steps", 10)
        assert result.code == 2, changed
        assert f"{tmp_path}/t was trained on other data ({changed}" in result.err
        shutil.rmtree(tmp_path / "t")
    assert cli(*command, "--store", two, "--out", tmp_path / "t").code == 0
    assert cli("collect", *options, "--images", 10, "--out", two, "--resume").code == 0
    assert "stores[0].rows 192, now 288" in cli(*command, "--store", two, "--out", tmp_path / "t", "--resume").err


def test_a_store_may_move(cli, store, checkpoint, tmp_path):
    shutil.copytree(store / "block-6", tmp_path / "moved")
    shutil.copytree(checkpoint, tmp_path / "t")
    command = ["train", "--store", tmp_path / "moved", "--out", tmp_path / "t", *SMALL]
    assert cli(*command, "--steps", 10, "--resume").code == 0


def test_more_steps_follow_the_new_schedules_and_it_is_said(cli, store, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "t")
    command = ["train", "--store", store / "block-6", "--out", tmp_path / "t", *SMALL]
    result = cli(*command, "--steps", 12, "--resume")
    assert result.code == 0
    assert result.out.startswith(
        "Resumes from step 8 to 12 instead of 8: learning rate and k follow the new schedules.\nTrained a TIDE "
    )
    written = json.loads((tmp_path / "t/training.json").read_text())
    assert written["lengths"] == [{"at": 8, "before": 8, "steps": 12}]
    assert written["config"]["steps"] == 12
    runs = json.loads((tmp_path / "t/run.json").read_text())
    assert (runs["arguments"]["steps"], runs["earlier"][0]["arguments"]["steps"]) == (12, 8)
    result = cli(*command, "--steps", 4, "--resume")
    assert (result.code, result.err) == (
        2,
        f"tide: error: {tmp_path}/t has made 12 steps, more than 4; give more steps, or another folder\n",
    )


# -- one folder, one training ------------------------------------------------------------------------------------


def test_a_second_training_into_a_folder_is_refused_before_anything_is_loaded(cli, store, tmp_path, monkeypatch):
    monkeypatch.setattr("tide.loading._from_pretrained", lambda *_: pytest.fail("the pipeline was loaded"))
    with lock_folder(tmp_path / "t"):
        result = cli("train", "--store", store / "block-6", "--out", tmp_path / "t", *SMALL)
    assert result.code == 2
    assert result.err.startswith(f"tide: error: {tmp_path}/t is being written by this process already; ")


def test_a_training_that_another_one_overtakes_is_refused(cli, store, checkpoint, tmp_path, monkeypatch):
    """The other one finished while this one loaded the pipeline."""
    load = common.load_adapter

    def slow(*args, **kwargs):
        shutil.copytree(checkpoint, tmp_path / "t", dirs_exist_ok=True)
        return load(*args, **kwargs)

    monkeypatch.setattr(common, "load_adapter", slow)
    result = cli("train", "--store", store / "block-6", "--out", tmp_path / "t", *SMALL, "--steps", 8)
    assert (result.code, result.err) == (
        2,
        f"tide: error: {tmp_path}/t already holds a checkpoint; resume, or choose another folder\n",
    )
    assert equal(weights(tmp_path / "t"), weights(checkpoint))


def test_a_folder_that_cannot_be_made_is_found_before_anything_is_loaded(cli, store, tmp_path, monkeypatch):
    monkeypatch.setattr("tide.loading._from_pretrained", lambda *_: pytest.fail("the pipeline was loaded"))
    (tmp_path / "file").write_text("")
    result = cli("train", "--store", store / "block-6", "--out", tmp_path / "file" / "t", *SMALL)
    assert result.code == 2
    assert result.err.startswith(f"tide: error: {tmp_path}/file/t cannot be written (")


def test_a_failure_leaves_no_folder(cli, store, tmp_path):
    result = cli(
        "train", "--store", store / "block-6", "--out", tmp_path / "new" / "t", "--set", "n_latents=2000000000"
    )
    assert result.code == 2
    assert "training with n_latents = 2000000000 of width 192 takes" in result.err
    assert not (tmp_path / "new").exists()


def test_json_of_a_run_says_what_it_holds(checkpoint, store, pipeline, images):
    found, stored = contents(checkpoint), ActivationStore(store / "block-6")
    assert (found.kind, found.blocks, found.family, found.pipeline) == ("autoencoder", [6], "pixart", str(pipeline))
    (about,) = found.data["stores"]
    assert about == {"folder": str(store / "block-6"), "rows": len(stored), "fingerprint": stored.fingerprint}
    assert found.data["name"] == str(images)
    assert found.weights == stored.info["weights"]
    assert found.configuration["n_latents"] == 96
    assert 0 < found.measured["mse"]


def test_plain_sae_needs_no_pipeline(cli, store, tmp_path, monkeypatch):
    monkeypatch.setattr("tide.loading._from_pretrained", lambda *_: pytest.fail("the pipeline was loaded"))
    options = ["--store", store / "block-3", "--sae", "--steps", 2, *SMALL]
    result = cli("train", *options, "--out", tmp_path / "sae")
    assert result.code == 0
    assert "plain SAE of 96 latents" in result.out
    assert re.search(r"^variance explained +-?\d+\.\d% +- +too short to say$", result.out, re.MULTILINE)
    model = TIDE.from_pretrained(tmp_path / "sae")
    assert model.modulation is None
    assert model.config.block == 3
    assert model.config.family == "pixart"


def test_the_text_encoder_is_not_loaded_for_a_store(cli, store, tmp_path, monkeypatch):
    from diffusers import DiffusionPipeline

    given = {}
    load = DiffusionPipeline.from_pretrained.__func__

    def spy(cls, name, **kwargs):
        given.update(kwargs)
        return load(cls, name, **kwargs)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(spy))
    assert cli("train", "--store", store / "block-3", "--steps", 1, *SMALL, "--out", tmp_path / "t").code == 0
    assert {name: given[name] for name in ("text_encoder", "tokenizer", "vae")} == dict.fromkeys(
        ("text_encoder", "tokenizer", "vae")
    )


def test_several_stores_are_mixed_by_their_sizes(cli, pipeline, images, store, tmp_path):
    one = store / "block-6"
    options = ["--token-fraction", "1/4", "--seed", 7, "--block", 6]
    assert cli("collect", "--pipeline", pipeline, "--data", images, *options, "--out", tmp_path / "two").code == 0
    command = ["train", "--store", one, tmp_path / "two", "--steps", 4, *SMALL, "--out", tmp_path / "t"]
    assert cli(*command).code == 0
    stores = [ActivationStore(one), ActivationStore(tmp_path / "two")]
    whole = mixed(stores, 64, seed=1, buffer_rows=1024, start=0)
    first = [next(whole).x for _ in range(9)]
    resumed = mixed(stores, 64, seed=1, buffer_rows=1024, start=5)
    assert all(torch.equal(next(resumed).x, x) for x in first[5:])
    assert cli("train", "--store", one, store / "block-3", "--out", tmp_path / "x").err == (
        f"tide: error: {store}/block-3 is of block 3 and {one} of 6; train on stores of one block\n"
    )


def test_file_then_set_then_options(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("lr: 1e-4\nloss:\n  temporal: 0.5\nprogressive_k: {shape: off}\nsteps: 5\n")
    config = train_config(file, ["loss.temporal=1e-3", "k=64", "betas=[0.8, 0.9]"], {"steps": 7, "seed": None})
    assert config.lr == 1e-4  # YAML reads it as a word
    assert config.loss.temporal == 1e-3
    assert config.progressive_k.shape == "off"
    assert (config.k, config.steps, config.betas, config.seed) == (64, 7, (0.8, 0.9), 0)


def test_every_field_can_be_set():
    raw = TrainConfig().to_dict()
    keys = [
        each
        for key, value in raw.items()
        for each in ([f"{key}.{name}" for name in value] if isinstance(value, dict) else [key])
    ]

    def of(key: str) -> object:
        value: object = raw
        for part in key.split("."):
            value = value[part]  # type: ignore[index]
        return "null" if value is None else list(value) if isinstance(value, tuple) else value

    # Beside the other defaults.
    without_effect = {"modulation_chunk", "match_l0", "loss.s_target", "loss.delta", "loss.k_aux"}
    assert train_config(None, [f"{key}={of(key)}" for key in keys if key not in without_effect], {}) == TrainConfig()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps=abc", "steps = 'abc' must be a whole number"),
        ("steps=0", "steps = 0 must be at least 1"),
        ("lr=fast", "lr = 'fast' must be a number"),
        ("lr=true", "lr = True must be a number"),
        ("modulation=1", "modulation = 1 must be true or false"),
        ("modulation_init=copy", "modulation_init = 'copy' is unknown; use one of identity, adaln, random"),
        ("betas=0.9", "betas = 0.9 must be 2 numbers, as in [0.1, 0.9]"),
        ("batch_tokens=63", "batch_tokens = 63 must be even: neighbouring timesteps come in pairs"),
        (
            "loss=1",
            "--set loss names a group; set one of loss.mse, loss.cosine, loss.temporal, loss.sparsity, "
            "loss.reg, loss.auxk, loss.k_aux, loss.s_target, loss.delta, loss.prefixes",
        ),
        ("lr", "--set lr is not an assignment; write it as --set loss.temporal=1e-3"),
        ("lr=[", "--set lr=[ could not be read; write a number, a word or a list"),
    ],
)
def test_bad_settings(assignment, message):
    with pytest.raises(TideError) as error:
        train_config(None, [assignment], {})
    assert str(error.value) == message


def test_unknown_setting_lists_the_known():
    with pytest.raises(TideError, match=r"--set loss.tempo is not an option .* known: pre_norm, .*loss.temporal"):
        train_config(None, ["loss.tempo=1"], {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("block", "6", id="a block that is text"),
        pytest.param("tensor", [1], id="a tensor that is a list"),
        pytest.param("tensor", "outputs", id="a tensor that no block has"),
        pytest.param("family", None, id="no family"),
    ],
)
def test_a_store_that_says_what_no_checkpoint_can_hold_is_refused(cli, store, tmp_path, name, value):
    shutil.copytree(store / "block-6", tmp_path / "store")
    path = tmp_path / "store/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["info"][name] = value
    path.write_text(json.dumps(manifest))
    result = cli("train", "--sae", "--store", tmp_path / "store", "--out", tmp_path / "sae", "--steps", 1, *SMALL)
    assert result.code == 2
    assert result.err.startswith("tide: error: ")
    assert name in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "sae").exists()


def test_a_device_is_given_once(cli, store, tmp_path):
    command = ["train", "--store", store / "block-6", "--out", tmp_path / "tide", "--steps", 1]
    result = cli(*command, "--device", "cpu", *SMALL, "--set", "device=cuda")
    assert (result.code, result.err) == (
        2,
        "tide: error: --set device is not used with --device; leave one of them off\n",
    )


@pytest.mark.parametrize(
    ("text", "assignments", "options", "device"),
    [
        pytest.param("steps: 3", [], {}, None, id="a file that names no device"),
        pytest.param("device: cpu", [], {}, "cpu", id="a file that names one"),
        pytest.param("device: cuda", ["device=cpu"], {}, "cpu", id="an assignment"),
        pytest.param("device: cuda", [], {"device": "cpu"}, "cpu", id="an option"),
    ],
)
def test_where_no_device_is_named_it_is_the_gpu_if_there_is_one(
    tmp_path, monkeypatch, text, assignments, options, device
):
    asked = []

    def device_of(name: str | None) -> torch.device:
        asked.append(name)
        return torch.device("cpu")

    monkeypatch.setattr(settings, "device_of", device_of)
    (tmp_path / "train.yaml").write_text(text)
    train_config(tmp_path / "train.yaml", assignments, options)
    assert asked == [device]
