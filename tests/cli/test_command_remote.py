"""Commands on stores at URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.remote import URL, Troubled, start
from tide.activations import ActivationStore


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    return start(monkeypatch, tmp_path)


@pytest.fixture
def command(pipeline, images) -> list[object]:
    return ["collect", "--pipeline", pipeline, "--data", images, "--block", 3, "--out", URL]


def test_a_store_is_collected_to_a_url_and_trained_on(cli, command, pipeline, tmp_path):
    result = cli(*command, "--hold-out", "1/4", "--images", 4)
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith(f" in {URL}.\n")
    assert cli(*command, "--resume").code == 0
    assert ActivationStore(URL).info["hold_out"] == 0.25
    small = ["--set", "n_latents=96", "k=8", "batch_tokens=8", "--steps", 2]
    assert cli("train", "--store", URL, "--pipeline", pipeline, "--out", tmp_path / "tide", *small).code == 0


def test_parts_of_several_blocks_at_a_url_are_trained_on(cli, command, pipeline, tmp_path):
    for part in ("0/2", "1/2"):
        assert cli(*command, "--block", 1, 3, "--part", part).code == 0
    small = ["--set", "n_latents=96", "k=8", "batch_tokens=8", "--steps", 2]
    assert cli("train", "--store", URL, "--pipeline", pipeline, "--out", tmp_path / "tides", *small).code == 0
    assert sorted(path.name for path in (tmp_path / "tides").glob("block-*")) == ["block-1", "block-3"]


def test_a_url_that_cannot_be_written_is_found_before_the_pipeline_is_loaded(cli, command, monkeypatch, cache):
    monkeypatch.setattr("tide.cli.common.load_adapter", lambda *_a, **_k: pytest.fail("the pipeline was loaded"))
    Troubled.errors[:] = [PermissionError("Access Denied")]
    result = cli(*command)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "cannot be written (Access Denied); check your rights to it" in result.err
    assert not cache.exists()


@pytest.mark.parametrize("url", ["foo://bucket/acts", "troubled://bucket/none"])
def test_a_store_that_is_not_there(cli, tmp_path, url):
    result = cli("train", "--sae", "--store", url, "--out", tmp_path / "sae")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith(f"tide: error: {url} ")


def test_an_upload_that_breaks_is_resumed(cli, command):
    Troubled.when = lambda call: call.startswith("put ") and "shard" in call
    Troubled.errors[:] = [ConnectionError("reset")] * 4
    result = cli(*command)
    assert result.code == 2
    assert result.err == f"tide: error: {URL}/shard-00000.safetensors cannot be written (reset); try again later\n"
    assert cli(*command, "--resume").code == 0
    assert ActivationStore(URL).complete
