"""``tide push`` and ``tide pull`` against the stand-in for the Hub."""

from __future__ import annotations

import pytest

from tide.sae import TIDE, TIDEConfig


@pytest.fixture
def run(tmp_path):
    TIDE(TIDEConfig(d_model=8, n_latents=32, k=4, block=1, pipeline="scenes")).save_pretrained(tmp_path / "tide")
    return tmp_path / "tide"


@pytest.mark.usefixtures("token")
def test_there_and_back(cli, hub, run, tmp_path):
    sent = cli("push", run, "me/tide", "--license", "mit")
    assert (sent.code, sent.err) == (0, "")
    assert sent.out.splitlines()[0] == "to me/tide:"
    assert (
        sent.out.splitlines()[-1] == f"It is at {hub.url}/me/tide/commit/{hub.repositories['me/tide'].commit('main')}."
    )
    got = cli("pull", "me/tide", "--out", tmp_path / "back")
    assert (got.code, got.err) == (0, "")
    assert got.out == (
        f"In {tmp_path / 'back'}: 32 latents of width 8, block 1 of scenes. "
        f"`tide evaluate --sae {tmp_path / 'back'}` measures it on your images.\n"
    )
    assert cli("pull", "me/tide", "--out", tmp_path / "again", "--offline").code == 0


@pytest.mark.usefixtures("token")
def test_one_that_does_not_know_where_it_is_from(cli, hub, tmp_path):
    TIDE(TIDEConfig(d_model=8, n_latents=32, k=4)).save_pretrained(tmp_path / "plain")
    assert cli("push", tmp_path / "plain", "me/plain").code == 0
    assert cli("pull", "me/plain", "--out", tmp_path / "my back").out == (
        f"In {tmp_path / 'my back'}: 32 latents of width 8, a block that it does not name of a pipeline that it does "
        f"not name. `tide evaluate --sae '{tmp_path / 'my back'}'` measures it on your images.\n"
    )


def test_a_dry_run_asks_nobody(cli, hub, run):
    result = cli("push", run, "me/tide", "--dry-run")
    assert result.code == 0
    assert "# tide\n" in result.out
    assert "model.safetensors" in result.out
    assert hub.asked == []
    assert hub.repositories == {}


def test_a_refusal_is_one_line(cli, hub, tmp_path):
    hub.add("you/t5", {"config.json": b"{}", "model.safetensors": b""})
    result = cli("pull", "you/t5", "--out", tmp_path / "out")
    assert result.code == 2
    assert result.err.startswith("tide: error: you/t5 holds")
    assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
