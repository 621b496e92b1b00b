"""What goes to the Hub, what stays here, and what the card says."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml

import tide
from tests.helpers.hub_server import _Refused
from tests.sharing.conftest import checkpoint_in
from tide.errors import TideError
from tide.hub import Repository
from tide.hub.facts import _OLDER
from tide.hub.shared import MOST_BYTES
from tide.sae import TIDE
from tide.sharing import prepared

SENT = {"README.md", "config.json", "model.safetensors", "names.jsonl", "run.json", "training.json"}


def test_a_run_arrives_in_one_commit(hub, token, run):
    before = len(hub.asked)
    address = tide.push(run, "me/tide")
    assert set(hub.files("me/tide")) == SENT
    assert [path for _, path in hub.asked[before:] if "/commit/" in path] == ["/api/models/me/tide/commit/main"]
    assert address == f"{hub.url}/me/tide/commit/{hub.repositories['me/tide'].commit('main')}"
    assert hub.files("me/tide")["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert not hub.repositories["me/tide"].private


def test_no_absolute_path_and_no_earlier_run_leaves_the_machine(hub, token, run, results):
    tide.push(run, "me/tide", results=[results])
    sent = hub.files("me/tide")
    for name, content in sent.items():
        assert b"/home" not in content, name
        assert b"secret" not in content, name
    assert json.loads(sent["config.json"])["pipeline"] == "PixArt"
    assert json.loads(sent["run.json"])["arguments"]["data"] == "photos"
    assert "earlier" not in json.loads(sent["run.json"])
    assert json.loads((run / "config.json").read_text())["pipeline"] == "/home/me/PixArt"  # as it was


def test_a_name_of_a_latent_stays_though_it_looks_like_a_path(hub, token, run):
    """Names are people's text."""
    tide.push(run, "me/tide")
    assert json.loads(hub.files("me/tide")["names.jsonl"])["name"] == "/house/"


def test_the_card_has_figures_with_their_commands_and_pictures(run, results):
    card = prepared(run, "me/tide", subfolder="block-26", results=[results], license="mit").card
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["license"] == "mit"
    assert "base_model" not in yaml.safe_load(metadata)  # a folder of this machine is none
    assert "| 26 | output | 8 | 32 | 4 | topk | no |" in text
    assert 'from_pretrained("me/tide", subfolder="block-26")' in text
    assert "(`tide train --data photos --seed 0 --set k=4 lr=1`)" in text
    assert "Evaluation, on 12 images of photos (`tide evaluate --fast --sae tide --seed 0`)" in text
    assert "| recovered | not finite |" in text
    assert "![eval: map](block-26/results/eval/map.png)" in text  # at the top, where the Hub shows it
    assert "`steps` | 50" in text
    assert "`device`" not in text


def test_without_results_the_card_says_that_nothing_was_measured_after_training(tmp_path):
    TIDE(tide.TIDEConfig(d_model=8, n_latents=32, k=4, block=1)).save_pretrained(tmp_path)
    card = prepared(tmp_path, "me/x").card
    assert "None were published with it. `tide evaluate" in card
    assert "No licence of the weights is stated" in card
    assert "Which images it was trained on is not recorded." in card


def test_a_checkpoint_that_knows_no_block_and_is_older_than_most_options(tmp_path):
    TIDE(tide.TIDEConfig(d_model=8, n_latents=32, k=4)).save_pretrained(tmp_path)
    kept = ("format", "d_model", "n_latents", "k")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({name: config[name] for name in kept}))
    assert "| - | output | 8 | 32 | 4 | topk | no |" in prepared(tmp_path, "me/x").card
    defaults = TIDE.from_pretrained(tmp_path).config
    assert {name: getattr(defaults, name) for name in _OLDER} == _OLDER


def test_a_pipeline_in_a_folder_here_is_no_base_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TIDE(tide.TIDEConfig(d_model=8, n_latents=32, k=4, pipeline="models/pixart")).save_pretrained(tmp_path / "tide")
    assert "base_model: models/pixart" in prepared("tide", "me/x").card
    (tmp_path / "models").mkdir()
    assert "base_model" not in prepared("tide", "me/x").card


def test_pictures_and_commands_of_any_name_stay_whole(run, results, tmp_path):
    run_file = results / "run.json"
    made = json.loads(run_file.read_text())
    run_file.write_text(json.dumps({**made, "arguments": {"prompt": "a `b`\n``c"}}))
    results.rename(tmp_path / "my (eval)")
    card = prepared(run, "me/tide", results=[tmp_path / "my (eval)"]).card
    assert "![my (eval): map](results/my%20%28eval%29/map.png)" in card
    assert "(``` tide evaluate --prompt 'a `b` ``c' ```)" in card


def test_the_folder_of_results_that_one_is_in_has_its_own_name(run, results, monkeypatch):
    monkeypatch.chdir(results)
    assert "results/eval/map.png" in prepared(run, "me/x", results=["."]).files


def test_a_set_of_one_block_is_loaded_as_a_set(tmp_path):
    checkpoint_in(tmp_path / "set" / "block-3", 3)
    card = prepared(tmp_path / "set", "me/set").card
    assert "saes = tide.load_saes(folder, adapter)" in card
    assert "from_pretrained" not in card


def test_the_card_of_a_set_has_the_figures_of_every_block(blocks):
    card = prepared(blocks, "me/set").card
    for block in (3, 26):
        assert f"Block {block} at the end of the training, on training tokens, none of them held out:" in card
    assert "None were published" not in card


def test_a_set_has_one_card_of_all_blocks(hub, token, blocks):
    tide.push(blocks, "me/set", revision="draft", private=True)
    sent = hub.files("me/set", "draft")
    assert {f"block-{n}/{name}" for n in (3, 26) for name in SENT - {"README.md"}} | {"README.md"} == set(sent)
    assert 'tide.pull("me/set", revision="draft")' in sent["README.md"].decode()
    assert "| 3 | output" in sent["README.md"].decode()
    assert "| 26 | output" in sent["README.md"].decode()
    assert hub.repositories["me/set"].private
    assert hub.files("me/set") == {}


@pytest.mark.parametrize("own", [b"# Mine\n", b"<!-- made by tide push of block-3; delete this line ... -->\n"])
def test_a_card_that_a_person_wrote_or_of_another_folder_stays(hub, token, run, own):
    hub.add("me/tide", {"README.md": own})
    said: list[str] = []
    tide.push(run, "me/tide", subfolder="block-26", say=said.append)
    assert said == ["README.md of me/tide stays as it is: a person wrote it, or it is about another folder"]
    assert hub.files("me/tide")["README.md"] == own
    assert b"# tide, block-26" in hub.files("me/tide")["block-26/README.md"]


def test_a_card_that_was_made_here_is_made_anew(hub, token, run, results):
    tide.push(run, "me/tide")
    tide.push(run, "me/tide", results=[results])
    assert b"tide evaluate --fast" in hub.files("me/tide")["README.md"]


def test_a_model_without_a_run(hub, token, run):
    model = TIDE.from_pretrained(run)
    model.push_to_hub("me/model", license="mit", message="as it is")
    assert set(hub.files("me/model")) == {"README.md", "config.json", "model.safetensors"}
    assert torch.equal(TIDE.from_pretrained("me/model").W_enc, model.W_enc)


def test_a_large_picture_is_named_and_left_out(run, results):
    with (results / "map.png").open("ab") as file:
        file.truncate(MOST_BYTES + 1)
    said: list[str] = []
    assert "results/eval/map.png" not in prepared(run, "me/x", results=[results], say=said.append).files
    assert said == [f"{results / 'map.png'} is larger than {MOST_BYTES} bytes and is not sent"]


def test_results_of_another_checkpoint_are_refused(results, tmp_path):
    other = checkpoint_in(tmp_path / "other", block=5)
    with pytest.raises(TideError, match="eval holds results of another checkpoint; measure this one"):
        prepared(other, "me/x", results=[results])


def test_two_folders_of_results_of_one_name_are_refused(run, results, tmp_path):
    shutil.copytree(results, tmp_path / "more" / "eval")
    with pytest.raises(TideError, match="two folders of results are called eval; rename one of them"):
        prepared(run, "me/x", results=[results, tmp_path / "more" / "eval"])


def test_a_folder_without_results_is_refused(run, tmp_path):
    with pytest.raises(TideError, match="holds no results of a checkpoint; give a folder of `tide evaluate`"):
        prepared(run, "me/x", results=[tmp_path])


def test_a_damaged_checkpoint_is_not_sent(hub, token, run):
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[:-4])
    with pytest.raises(TideError, match=r"model\.safetensors is not a readable safetensors file"):
        tide.push(run, "me/tide")
    assert hub.asked == []


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(TideError, match="holds no checkpoint; give the folder that `tide train` wrote"):
        prepared(tmp_path, "me/x")


def test_without_a_token_nothing_is_made(hub, run):
    with pytest.raises(TideError, match=r"^no token was given, .* for me/tide; log in \(`hf auth login`\) or set"):
        tide.push(run, "me/tide")
    assert hub.repositories == {}


def test_somebody_elses_repository(hub, token, run):
    with pytest.raises(TideError) as found:
        tide.push(run, "you/tide")
    assert str(found.value) == (
        "this token may not write to you/tide (You don't have the rights to create a model under this namespace); use "
        "one that may"
    )


def test_a_commit_is_no_branch(run, hub, token):
    with pytest.raises(TideError, match="is a commit, which cannot change; give a branch"):
        tide.push(run, "me/tide", revision="0" * 40)
    tide.push(run, "me/tide", revision=(branch := "trained-with-sixteen-latents-a-dimension"))
    assert len(branch) == 40
    assert "model.safetensors" in hub.files("me/tide", branch)


def test_a_licence_that_the_hub_does_not_know(hub, token, run):
    with pytest.raises(TideError) as found:
        tide.push(run, "me/tide", license="none of the known")
    assert str(found.value) == (
        'the Hub does not take the card for me/tide (Invalid metadata in README.md. - "license" must be one of mit, '
        "apache-2.0); give license as the Hub abbreviates it, such as apache-2.0"
    )
    assert hub.files("me/tide") == {}


def test_a_public_repository_is_not_taken_for_a_private_one(hub, token, run):
    tide.push(run, "me/secret", private=True)
    tide.push(run, "me/secret", private=True)
    hub.add("me/tide", {})
    with pytest.raises(TideError, match="me/tide is public already; make it private in its settings, or leave private"):
        tide.push(run, "me/tide", private=True)
    assert hub.files("me/tide") == {}


def test_nothing_is_sent_offline(hub, token, run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TideError) as found:
        tide.push(run, "me/tide")
    assert str(found.value) == (
        "nothing was sent to me/tide: the Hub is not asked or not reached; push with a connection and without "
        "HF_HUB_OFFLINE"
    )


def test_a_hub_that_does_not_answer_keeps_the_cards(hub, token, run, monkeypatch):
    """Nobody knows then whether a person's card is there."""
    hub.add("me/tide", {"README.md": b"# Mine\n"})
    monkeypatch.setattr("tide.hub.uploading._may_write", _unreachable)
    with pytest.raises(TideError, match="not reached"):
        tide.push(run, "me/tide")
    assert hub.files("me/tide") == {"README.md": b"# Mine\n"}


def _unreachable(*args: object) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError("no connection")


def test_a_file_that_does_not_arrive_commits_nothing(hub, token, run, monkeypatch):
    monkeypatch.setattr("tests.helpers.hub_server._Handler._put", _broken)
    with pytest.raises(TideError, match=r"a file did not arrive at me/tide \(.*\); nothing was committed, push again"):
        tide.push(run, "me/tide")
    assert hub.files("me/tide") == {}


def _broken(*args: object) -> tuple[bytes, dict[str, str]]:
    raise _Refused(400, message="the disk is full")


def test_repository_in_words():
    assert Repository("me/tide", "block-26").within("config.json") == "block-26/config.json"
