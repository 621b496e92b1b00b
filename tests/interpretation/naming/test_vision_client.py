"""A vision-language model behind an address: good answers, late ones, none, and nothing asked elsewhere."""

from __future__ import annotations

import time

import pytest

from tests.helpers.vision_server import Reply, vision_server
from tide.errors import TideError
from tide.interpretation.naming.vision_client import MOST_BYTES, NoAnswerError, VisionModel

PARTS = [{"type": "text", "text": "what is it?"}]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("TIDE_VISION_KEY", raising=False)


def ask(reply: Reply | list[Reply], timeout: float = 30, pause: float = 0.001) -> tuple[str, list]:
    """The answer of a server, or why there is none, and what it got."""
    replies = list(reply) if isinstance(reply, list) else None
    with vision_server(lambda asked: replies.pop(0) if replies is not None else reply) as (address, got):
        try:
            return VisionModel(address, "m", timeout, pause).ask(PARTS), got
        except NoAnswerError as error:
            return str(error), got


def test_a_chat_completion_is_asked_and_read(monkeypatch):
    answer, (asked,) = ask(Reply("a roof ü"))
    assert answer == "a roof ü"
    assert asked.path == "/v1/chat/completions"
    assert (asked.body["model"], asked.parts, asked.body["temperature"]) == ("m", PARTS, 0)
    assert "Authorization" not in asked.headers
    monkeypatch.setenv("TIDE_VISION_KEY", "secret\n")
    _, (asked,) = ask(Reply("x"))
    assert asked.headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_twice(status):
    answer, got = ask([Reply(b"{}", status), Reply(b"", status), Reply("roof")])
    assert (answer, len(got)) == ("roof", 3)
    answer, got = ask([Reply(b"busy now", status)] * 3)
    assert (answer, len(got)) == (f"it answered with the error {status} (busy now)", 3)


def test_the_pauses_grow(monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    ask([Reply(b"", 429)] * 3, pause=0.5)
    assert waits == [0.5, 2.0]


@pytest.mark.parametrize("status", [400, 401, 404])
def test_other_errors_are_final(status):
    answer, got = ask(Reply(b'{"error": "no\nsuch model"}', status))
    assert (answer, len(got)) == (f'it answered with the error {status} ({{"error": "no such model"}})', 1)


def test_a_key_is_not_repeated(monkeypatch):
    monkeypatch.setenv("TIDE_VISION_KEY", "secret")
    assert ask(Reply(b"wrong key: secret", 401))[0] == "it answered with the error 401 (wrong key: ...)"


def test_redirections_are_not_followed(monkeypatch):
    monkeypatch.setenv("TIDE_VISION_KEY", "secret")
    with vision_server(lambda asked: Reply("x")) as (elsewhere, got):
        for status in (301, 302, 307, 308):
            answer, _ = ask(Reply(b"", status, headers={"Location": elsewhere}))
            assert answer.startswith(f"it answered with the error {status} (")
    assert got == []


@pytest.mark.parametrize("reply", [Reply("x", delay=30), Reply("x" * 1000, drip=0.02)], ids=["late", "slow"])
def test_a_slow_answer_is_not_waited_for(reply):
    began = time.monotonic()
    answer, got = ask(reply, timeout=0.2)
    assert (answer, len(got)) == ("it did not answer in 0.2 s", 1)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "its answer is no chat completion (empty)"),
        (b"\xff<html>", "its answer is no chat completion (\ufffd<html>)"),
        (b"[" * 10**5, "its answer is no chat completion ([[["),
        (b"{}", "its answer is no chat completion ({})"),
        (b'{"choices": []}', "its answer is no chat completion"),
        (b'{"choices": [{"message": {"content": null}}]}', "its answer holds no text"),
        (b" " * (MOST_BYTES + 1), f"its answer is longer than {MOST_BYTES} bytes"),
    ],
    ids=lambda each: each[:20],
)
def test_garbage_is_no_answer(data, why):
    answer, got = ask(Reply(data))
    assert answer.startswith(why)
    assert len(answer) < 150
    assert len(got) == 1


def test_an_address_where_nobody_is():
    with vision_server(lambda asked: Reply()) as (address, _):
        pass
    with pytest.raises(NoAnswerError, match=r"it cannot be reached \(.*Connection refused"):
        VisionModel(address, "m").ask(PARTS)


@pytest.mark.parametrize(
    "address",
    ["", "localhost:8000", "file:///etc", "ftp://a/b", "http://", "http://a:x/", "http://a b/", "http://a..b/", "http://ä/"],
)  # fmt: skip
def test_what_is_no_address(address):
    with pytest.raises(TideError, match="is not an address; give one such as http://localhost:8000/v1"):
        VisionModel(address, "m")


@pytest.mark.parametrize("address", ["http://me:secret@a/v1", "http://a/v1?key=secret", "http://a/#secret"])
def test_an_address_holds_no_key(address):
    with pytest.raises(
        TideError, match="the address of a holds more than a path; give the key in TIDE_VISION_KEY"
    ) as e:
        VisionModel(address, "m")
    assert "secret" not in str(e.value)


def test_names_and_keys_and_times_that_cannot_be(monkeypatch):
    for name in ("", "a\nb", "m" * 300):
        with pytest.raises(TideError, match=r"the model '.* cannot be named"):
            VisionModel("http://a", name)
    with pytest.raises(TideError, match="give seconds above 0"):
        VisionModel("http://a", "m", timeout=0)
    monkeypatch.setenv("TIDE_VISION_KEY", "a\nb")
    with pytest.raises(TideError, match="TIDE_VISION_KEY holds characters that no key has; set it again"):
        VisionModel("http://a", "m")
