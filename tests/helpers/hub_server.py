"""A stand-in for the Hub on this machine: repositories in memory, behind the calls that huggingface_hub makes.

Written after the requests that huggingface_hub sends (``hf_api``, ``_commit_api``, ``lfs``, ``file_download``): files
that end in .safetensors are stored by Git LFS, as the Hub does, all others within the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

#: The token that may read private repositories and write; it may write those of :data:`OWNER` alone.
TOKEN = "hf_standin"
OWNER = "me"
#: The licences that it knows.
LICENSES = ("mit", "apache-2.0")


@dataclass
class Repository:
    """``branches``: name or commit -> path -> content."""

    private: bool = False
    gated: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, which is the digest of what it holds, or of a commit itself."""
        if revision not in self.branches:
            return None
        digest = hashlib.sha1()
        for path, content in sorted(self.branches[revision].items()):
            digest.update(path.encode() + b"\0" + content + b"\0")
        return digest.hexdigest()

    def keep(self) -> None:
        """Makes every branch's present state reachable by its commit."""
        for name in [each for each in self.branches if len(each) != 40]:
            commit = self.commit(name)
            assert commit
            self.branches[commit] = dict(self.branches[name])


@dataclass
class Hub:
    """What the server holds, and the requests that it got: method and path."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repository:
        found = self.repositories[name] = Repository(**options)
        found.branches["main"] = dict(files)
        found.keep()
        return found

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return self.repositories[name].branches[revision]


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **more: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    # -- requests ------------------------------------------------------------------------------------------

    def do_GET(self) -> None:
        self._answered(self._read)

    def do_HEAD(self) -> None:
        self._answered(self._read)

    def do_POST(self) -> None:
        self._answered(self._write)

    def do_PUT(self) -> None:
        self._answered(self._put)

    def log_message(self, *args: Any) -> None:
        pass

    def _answered(self, answer: Any) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            content, headers = answer(path.strip("/").split("/"), body)
            status = 200
        except _Refused as refused:
            status, content = refused.status, json.dumps({"error": str(refused), **refused.more}).encode()
            headers = {"X-Error-Code": refused.code} if refused.code else {}
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), "Content-Type": "application/json", **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # -- what is read ---------------------------------------------------------------------------------------

    def _read(self, parts: list[str], body: bytes) -> tuple[bytes, dict[str, str]]:
        if parts[:2] == ["api", "models"]:
            name, what, revision = "/".join(parts[2:4]), parts[4:5], parts[5:6] or ["main"]
            found, commit, files = self._branch(name, revision[0])
            if what == ["tree"]:
                return _json([_entry(path, content) for path, content in files.items()])
            siblings = [{"rfilename": path} for path in files]
            return _json({"id": name, "sha": commit, "private": found.private, "siblings": siblings, "tags": []})
        if parts[2:3] != ["resolve"]:
            raise _Refused(404, message="not a call that this stand-in knows")
        name, (_, revision, *path) = "/".join(parts[:2]), parts[2:]
        _, commit, files = self._branch(name, revision)
        if (file := "/".join(path)) not in files:
            raise _Refused(404, "EntryNotFound")
        etag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
        return files[file], {"ETag": etag, "X-Repo-Commit": commit, "Content-Type": "application/octet-stream"}

    def _branch(self, name: str, revision: str) -> tuple[Repository, str, dict[str, bytes]]:
        found = self._repository(name)
        found.keep()  # a test may have changed files meanwhile
        commit = found.commit(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found, revision if len(revision) == 40 else commit, found.branches[revision]

    def _repository(self, name: str) -> Repository:
        """The Hub answers 401 without a token, and 404 with one, to whoever may not know that a repository exists. The
        code stands for the address by which huggingface_hub tells this 401 from that of a wrong token."""
        found = self.hub.repositories.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not allowed):
            raise _Refused(404 if allowed else 401, "RepoNotFound", "Repository not found")
        if found.gated and not allowed:
            raise _Refused(403, "GatedRepo", "Access to this model is restricted")
        return found

    # -- what is written ------------------------------------------------------------------------------------

    def _write(self, parts: list[str], body: bytes) -> tuple[bytes, dict[str, str]]:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, message="Invalid username or password.")
        if parts == ["api", "repos", "create"]:
            return self._created(json.loads(body))
        if parts == ["api", "validate-yaml"]:
            return self._checked(json.loads(body)["content"])
        if parts[-1] == "batch":
            return _json({"objects": [self._place(each) for each in json.loads(body)["objects"]]})
        name, what, revision = "/".join(parts[2:4]), parts[4], parts[5]
        found = self._repository(name)
        if what == "branch":
            found.branches.setdefault(revision, dict(found.branches["main"]))
            return _json({})
        self._branch(name, revision)
        return self._modes(json.loads(body)) if what == "preupload" else self._commit(name, found, revision, body)

    def _checked(self, card: str) -> tuple[bytes, dict[str, str]]:
        license = yaml.safe_load(card.split("---\n")[1]).get("license", "mit")
        if license not in LICENSES:
            raise _Refused(400, errors=[{"message": f'"license" must be one of {", ".join(LICENSES)}'}])
        return _json({"errors": [], "warnings": []})

    def _created(self, asked: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if not name.startswith(f"{OWNER}/"):
            raise _Refused(403, message="You don't have the rights to create a model under this namespace")
        if name in self.hub.repositories:
            raise _Refused(409, message="You already created this model repo", url=f"{self.hub.url}/{name}")
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=private)
        return _json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.hub.url}/objects/{asked['oid']}", "header": {}}}
        return asked if asked["oid"] in self.hub.objects else {**asked, "actions": upload}

    def _put(self, parts: list[str], body: bytes) -> tuple[bytes, dict[str, str]]:
        if hashlib.sha256(body).hexdigest() != parts[1]:
            raise _Refused(400, message="the content is not that of the object")
        self.hub.objects[parts[1]] = body
        return _json({})

    def _modes(self, asked: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
        def mode(path: str) -> str:
            return "lfs" if path.endswith(".safetensors") else "regular"

        return _json({"files": [{**f, "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in asked["files"]]})

    def _commit(self, name: str, found: Repository, revision: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        files = dict(found.branches[revision])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        found.branches[revision] = files
        found.keep()
        commit = found.commit(revision)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        return _json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


def _json(data: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(data).encode(), {}


def _entry(path: str, content: bytes) -> dict[str, Any]:
    own = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if not path.endswith(".safetensors"):
        return own
    digest = hashlib.sha256(content).hexdigest()
    return {**own, "lfs": {"oid": digest, "size": len(content), "pointerSize": 134}}


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A Hub without repositories, until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
