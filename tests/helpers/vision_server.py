"""A server that speaks chat completions on this machine, and answers as a test says."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image


@dataclass
class Asked:
    """One request: its path, headers and message."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def parts(self) -> list[dict[str, Any]]:
        (message,) = self.body["messages"]
        return message["content"]

    @property
    def text(self) -> str:
        return "\n".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def pictures(self) -> list[np.ndarray]:
        """The JPEGs, uint8 ``[H, W, 3]``."""
        urls = [part["image_url"]["url"] for part in self.parts if part["type"] == "image_url"]
        data = [re.fullmatch(r"data:image/jpeg;base64,(.*)", url) for url in urls]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1])))) for found in data if found]


@dataclass
class Reply:
    """What the server sends: text is the content of a completion, bytes are sent as they are; after ``delay`` seconds,
    and with so many between two bytes."""

    content: str | bytes = ""
    status: int = 200
    delay: float = 0.0
    drip: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> bytes:
        if isinstance(self.content, bytes):
            return self.content
        return json.dumps({"choices": [{"message": {"role": "assistant", "content": self.content}}]}).encode()


@contextmanager
def vision_server(answer: Callable[[Asked], Reply]) -> Iterator[tuple[str, list[Asked]]]:
    """The server's address and the requests that it got, which grow."""
    got: list[Asked] = []
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            got.append(Asked(self.path, dict(self.headers), json.loads(data)))
            reply = answer(got[-1])
            ended.wait(reply.delay)
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.data)))
                self.end_headers()
                for i in range(len(reply.data)) if reply.drip else ():
                    self.wfile.write(reply.data[i : i + 1])
                    time.sleep(reply.drip)
                if not reply.drip:
                    self.wfile.write(reply.data)
            except OSError:  # who asked has gone
                pass

        def do_GET(self) -> None:
            got.append(Asked(self.path, dict(self.headers), {}))

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", got
        finally:
            ended.set()
            server.shutdown()
            thread.join()
