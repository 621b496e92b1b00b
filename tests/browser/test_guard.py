"""Who is answered: requests under the server's own names, from its own pages, and with the token where there is one."""

from __future__ import annotations

import asyncio

import pytest
from fastapi.testclient import TestClient

from tide.browser.guard import MOST_BYTES, Guard

TOKEN = "cNn3-Ur1_token"
NAME = Guard(None, token=TOKEN).cookie
OWN = "http://127.0.0.1:8000"
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


async def echo(scope, receive, send) -> None:
    """Answers everything with the number of bytes that it got."""
    got = (await receive()).get("body", b"")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(got)).encode()})


@pytest.fixture
def open_client() -> TestClient:
    return TestClient(Guard(echo, frozenset({"studio.lan"})), base_url=OWN)


def with_token(address: str = "http://studio.lan:8000") -> TestClient:
    return TestClient(Guard(echo, frozenset({"studio.lan"}), TOKEN), base_url=address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "[::1]", "studio.lan", "Studio.LAN:1"]
)
def test_own_names(open_client, host):
    assert open_client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.",
        "",
        "[::1",
        "]",
        "10.0.0.7:8000",
        "[fe80::2]",
        "a b",
        ":80",
    ],
)
def test_other_names_are_refused(open_client, host):
    """A page that makes its own name mean this machine is asked for under that name."""
    answer = open_client.get("/", headers={"host": host})
    assert (answer.status_code, "open the address that tide browse printed" in answer.text) == (421, True)


def test_with_a_token_addresses_in_numbers_are_own_names():
    """A machine behind a router does not know under which it is reached."""
    for host in ("10.0.0.7:8000", "[fe80::2]:8000"):
        assert with_token().get("/", headers={"host": host}).status_code == 401
        assert with_token().get("/", params={"token": TOKEN}, headers={"host": host}).status_code == 200
    assert with_token().get("/", params={"token": TOKEN}, headers={"host": "evil.example"}).status_code == 421


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "", "http://127.0.0.1:8001", "http://127.0.0.1", "http://[", "127.0.0.1:8000"],
)
def test_other_origins_are_refused(open_client, origin):
    answer = open_client.post("/", json={}, headers={"origin": origin})
    assert (answer.status_code, "comes from another page" in answer.text) == (403, True)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "[::1]:8000"])
def test_the_own_origin(open_client, host):
    assert open_client.post("/", json={}, headers={"origin": f"http://{host}", "host": host}).status_code == 200


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON ;charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/jsonp", 415),
        ("", 415),
    ],
)
def test_only_json_is_taken(open_client, kind, status):
    """A form of another page sends other types unasked, this one only after asking, which is not answered."""
    assert open_client.post("/", content=b"{}", headers={"content-type": kind}).status_code == status
    assert open_client.options("/").status_code == 415


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-length": str(MOST_BYTES)}, 200),
        ({"content-length": str(MOST_BYTES + 1)}, 413),
        ({"content-length": "many"}, 413),
        ({"content-length": "9" * 5000}, 413),
        ({"transfer-encoding": "chunked"}, 413),
    ],
)
def test_long_bodies_are_refused_before_they_are_read(open_client, headers, status):
    answer = open_client.post("/", content=b"{}", headers={"content-type": "application/json", **headers})
    assert answer.status_code == status


def test_without_the_token():
    for given in ({}, {"params": {"token": "wrong"}}, {"params": {"token": "\u00e9"}}, {"params": {"token": ""}}):
        answer = with_token().get("/", **given)
        assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
        assert TOKEN not in answer.text


def test_the_token_in_the_address_sets_the_cookie():
    client = with_token()
    answer = client.get("/", params={"token": TOKEN})
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert client.get("/api").status_code == 200  # which the client sends along now
    assert "set-cookie" not in client.get("/api").headers
    assert with_token().get("/api").status_code == 401


@pytest.mark.parametrize(
    ("cookie", "status"),
    [
        (f"{NAME}={TOKEN}", 200),
        (f'other={{"a": [1, "b"]}}; {NAME}={TOKEN}', 200),
        (f"a,b=1; path; ;; {NAME}={TOKEN}; x=y", 200),
        (f"{NAME}=wrong", 401),
        (f"{NAME}=", 401),
        (f"{NAME}s={TOKEN}", 401),
        (f"{NAME}={TOKEN}x", 401),
        (f"{NAME}=\xe9", 401),
    ],
)
def test_cookies(cookie, status):
    """Beside those of other servers of this machine, whatever they are."""
    assert with_token().get("/", headers={"cookie": cookie.encode("latin-1")}).status_code == status


def test_the_token_is_not_asked_for_on_this_machine(open_client):
    answer = open_client.get("/", params={"token": "anything"})
    assert (answer.status_code, "set-cookie" in answer.headers) == (200, False)


@pytest.mark.parametrize(
    "headers", [{}, {"host": "evil.example"}, {"origin": "null"}, {"transfer-encoding": "chunked"}]
)
def test_every_answer_has_the_headers(open_client, headers):
    found = open_client.get("/", headers=headers).headers
    assert {name: found[name] for name in HEADERS} == HEADERS
    policy = dict(each.strip().split(" ", 1) for each in found["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")


def test_web_sockets_are_closed():
    """Their requests are not checked, and nothing here listens to them."""
    sent = []

    async def send(message) -> None:
        sent.append(message)

    asyncio.run(Guard(echo)({"type": "websocket", "headers": []}, None, send))
    assert [each["type"] for each in sent] == ["websocket.close"]
