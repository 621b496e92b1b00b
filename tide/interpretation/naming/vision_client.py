"""A vision-language model behind an address that speaks OpenAI's chat completions."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tide.errors import TideError
from tide.interpretation.names import Entry, now
from tide.messages import one_line

#: The environment variable with the key, where the address asks for one.
KEY = "TIDE_VISION_KEY"
#: Times the pause before the second and the third attempt.
BACKOFF = (1, 4)
#: Bytes of an answer at most, and tokens that are asked for: a model may think before it answers.
MOST_BYTES, MOST_TOKENS = 2**20, 2000
#: What is said of an address where nothing answers.
UNREACHABLE = "it cannot be reached"


class NoAnswerError(Exception):
    """The model gave no answer that can be used; the message says why, in one line."""


@dataclass(frozen=True)
class VisionModel:
    """A model that looks at pictures, at an address of the user's choice; nothing else is ever asked.

    The pictures are sent there, and with them the key in ``TIDE_VISION_KEY``, if there is one. Redirections are not
    followed.

    Attributes:
        base_url: ``http://localhost:8000/v1``, to which ``/chat/completions`` is added.
        model: its name there.
        timeout: seconds for an answer.
        pause: seconds before the second attempt after a server that is busy or fails (429, 5xx); the third waits
            four times as long.

    Raises :class:`~tide.errors.TideError` for an address that is none, a name that no entry can have, and a key that
    cannot be sent.
    """

    base_url: str
    model: str
    timeout: float = 60.0
    pause: float = 1.0

    def __post_init__(self) -> None:
        _check_address(self.base_url)
        if not 0 < self.timeout < float("inf") or not 0 <= self.pause < float("inf"):
            raise TideError(f"a timeout of {self.timeout} s and a pause of {self.pause} s; give seconds above 0")
        try:
            Entry(0, self.by, now(), "a")
        except TideError as error:
            raise TideError(f"the model {self.model!r:.60} cannot be named ({error})") from None
        _key()

    @property
    def by(self) -> str:
        """Who gives the names, for entries."""
        return f"model:{self.model}"

    def ask(self, parts: Sequence[dict[str, Any]]) -> str:
        """The model's answer to one message of ``parts``, texts and pictures as chat completions have them.

        Raises :class:`NoAnswerError` if there is none: the address cannot be reached or is too slow, answers with an
        error (after three attempts, if it is busy), or with anything but a chat completion.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": list(parts)}],
            "temperature": 0,
            "max_tokens": MOST_TOKENS,
        }
        data = json.dumps(body).encode()
        for wait in (*BACKOFF, None):
            try:
                return _content(self._post(data))
            except urllib.error.HTTPError as error:
                with error:
                    if wait is None or not (error.code == 429 or error.code >= 500):
                        raise NoAnswerError(_refused(error)) from None
                time.sleep(wait * self.pause)
            except TimeoutError:
                raise NoAnswerError(f"it did not answer in {self.timeout:g} s") from None
            except (OSError, http.client.HTTPException) as error:
                if isinstance(getattr(error, "reason", None), TimeoutError):
                    raise NoAnswerError(f"it did not answer in {self.timeout:g} s") from None
                raise NoAnswerError(f"{UNREACHABLE} ({one_line(error, 200)})") from None
        raise AssertionError

    def _post(self, data: bytes) -> bytes:
        """The body of the answer to a request of ``data``, within the timeout as a whole."""
        headers = {"Content-Type": "application/json"}
        if key := _key():
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.base_url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, data, headers, method="POST")
        until = time.monotonic() + self.timeout
        found = b""
        with urllib.request.build_opener(_NoRedirection).open(request, timeout=self.timeout) as answer:
            while part := answer.read1(2**16):
                found += part
                if len(found) > MOST_BYTES:
                    raise NoAnswerError(f"its answer is longer than {MOST_BYTES} bytes")
                if time.monotonic() > until:  # the socket's own timeout begins anew with every byte
                    raise TimeoutError
        return found


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """The key goes to the address that was given, and to no other."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        raise TideError(f"{KEY} holds characters that no key has; set it again")
    return key


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        known = parts.scheme in ("http", "https") and (parts.hostname or "").encode("idna") and (parts.port or 1)
    except ValueError:  # also UnicodeError
        known = False
    if not known or not address.isascii() or not address.isprintable() or " " in address:
        raise TideError(f"{one_line(address, 100)!r} is not an address; give one such as http://localhost:8000/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise TideError(f"the address of {parts.hostname} holds more than a path; give the key in {KEY}")


def _refused(error: urllib.error.HTTPError) -> str:
    """What an error of the server says, without the key, which some servers repeat."""
    try:
        said = error.read(4096).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        said = ""
    if key := _key():
        said = said.replace(key, "...")
    return f"it answered with the error {error.code} ({one_line(said or error.reason, 200)})"


def _content(data: bytes) -> str:
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise NoAnswerError(f"its answer is no chat completion ({_start(data)})") from None
    if not isinstance(content, str):
        raise NoAnswerError("its answer holds no text")
    return content


def _start(data: bytes) -> str:
    return one_line(data[:400].decode(errors="replace"), 80) if data else "empty"
