"""Stores in a bucket: a local server that speaks S3, and the errors of the driver for it."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.helpers.store_batches import go_on
from tide.activations import ActivationBatch, ActivationStore
from tide.errors import TideError
from tide.files import remote

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
pytest.importorskip("flask_cors")
URL = "s3://bucket/acts"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    import boto3
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket="bucket")
    yield address
    running.stop()


@pytest.fixture(autouse=True)
def signed_in(server, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    s3fs.S3FileSystem.clear_instance_cache()


def rows(store: ActivationStore) -> torch.Tensor:
    return ActivationBatch.cat([store.read(i) for i in range(len(store.shards))]).x


def test_a_store_in_a_bucket(tmp_path):
    go_on(URL, 3)
    go_on(URL)
    go_on(tmp_path / "local")
    store, own = ActivationStore(URL), ActivationStore(tmp_path / "local")
    assert torch.equal(rows(store), rows(own))
    assert store.samples() == own.samples()
    store.verify()
    with pytest.raises(TideError, match=rf"^{URL}/none holds no manifest.json; give the folder of an activation store"):
        ActivationStore(f"{URL}/none")


class Rows(IterableDataset):
    def __init__(self, store: ActivationStore) -> None:
        self.store = store

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self.store.batches(16)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="does not fork")
def test_workers_that_were_forked_read_from_the_bucket(tmp_path):
    """The driver's thread is not there in a fork."""
    go_on(f"{URL}-forked", 40, shard_bytes=20_000)
    store = ActivationStore(f"{URL}-forked")
    store.read(0)
    batches = list(DataLoader(Rows(store), batch_size=None, num_workers=2, multiprocessing_context="fork"))
    assert sum(map(len, batches)) == len(store) == 1600


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills")
def test_kills_at_random_moments_lose_nothing_that_was_uploaded(tmp_path):
    options = ["--pipeline", "scenes", "--data", "scenes", "--images", "96", "--batch-size", "4", "--block", "3"]
    command = [sys.executable, "-m", "tide", "collect", *options, "--token-fraction", "1", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, tmp_path / "one"], check=True, env=environment, capture_output=True)
    url, chance = "s3://bucket/killed", random.Random(0)
    for _ in range(3):
        with subprocess.Popen(
            [*command, url, "--resume"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as run:
            while not list((tmp_path / "cache").glob("staging/*/.lock")) and run.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 2))
            run.send_signal(signal.SIGKILL)
        if remote.RemotePath(f"{url}/manifest.json").read_text() is not None:
            ActivationStore(url).verify()
    subprocess.run([*command, url, "--resume"], check=True, env=environment, capture_output=True)
    store, own = ActivationStore(url), ActivationStore(tmp_path / "one")
    assert store.complete
    assert store.fingerprint == own.fingerprint
    assert torch.equal(rows(store), rows(own))


def test_a_bucket_that_is_not_there():
    with pytest.raises(TideError, match=r"^s3://nobucket/acts holds no manifest.json"):
        ActivationStore("s3://nobucket/acts")
    with (
        pytest.raises(
            TideError, match=r"\.tmp cannot be written \(The specified bucket does not exist\); check the buc"
        ),
        remote.writable("s3://nobucket/acts"),
    ):
        pass


def test_nobody_is_signed_in(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(TideError) as error:
        ActivationStore(URL)
    assert str(error.value) == f"{URL} needs credentials, and none were found; sign in as s3fs asks"


def test_a_bucket_of_others(monkeypatch):
    """The server's answer 403, as botocore tells it."""
    from botocore.exceptions import ClientError

    async def forbidden(self, method, *args, **kwargs):
        raise s3fs.errors.translate_boto_error(ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, method))

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", forbidden)
    with pytest.raises(TideError, match=rf"^{URL} cannot be read \(Forbidden\); check your rights to it$"):
        ActivationStore(URL)


def test_a_server_that_does_not_answer(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(TideError, match=rf"^{URL} cannot be read \(.*endpoint.*\); try again later$") as error:
        ActivationStore(URL)
    assert "\n" not in str(error.value)
