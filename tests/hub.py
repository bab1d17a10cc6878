"""A hub on localhost: the part of huggingface.co that the huggingface_hub client needs to fetch models, over folders.

``with Hub({"owner/name": folder}) as hub`` serves the folder; ``hub.env(home)`` is the environment of a command that
uses it with an empty cache, ``hub.use(monkeypatch, home)`` points the client in this process to it. ``hub.calls`` logs
what was asked, ``hub.fetched()`` names the files that were sent.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_localhost"

PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was answered: its method, its path, its Range header and the status."""

    method: str
    path: str
    range: str | None
    status: int


class Revision:
    """A commit: a folder as it is when it is first asked for, its files by name, and what names their contents."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        self.etags = {name: etag(path) for name, path in sorted(self.files.items())}
        self.commit = hashlib.sha1(json.dumps(self.etags).encode()).hexdigest()

    def describe(self, repository: str, gated: bool) -> dict[str, Any]:
        """What api/models says of it, with the sizes that ``blobs=true`` adds."""
        siblings = [
            {"rfilename": name, "size": self.files[name].stat().st_size, "blobId": named}
            for name, named in self.etags.items()
        ]
        return {
            "id": repository,
            "modelId": repository,
            "sha": self.commit,
            "private": False,
            "gated": "manual" if gated else False,
            "tags": [],
            "siblings": siblings,
        }


def etag(path: Path) -> str:
    """What names a file's content, as git does it."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Hub:
    """The server. Attributes may be changed while it runs.

    ``tags`` adds revisions: {"owner/name": {"v1": folder}}. ``gated`` repositories want ``TOKEN``. ``down`` is a status
    to answer everything with, and what it then ``says``. ``cut`` says after how many bytes the connection is lost,
    once, while a file is sent, and ``sizes`` what size a file is said to have.
    """

    repositories: Mapping[str, Path]
    gated: Collection[str] = ()
    tags: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    down: int | None = None
    says: str = "The hub is down."
    cut: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    _known: dict[Path, Revision] = field(default_factory=dict)

    def revisions(self, repository: str) -> dict[str, Revision]:
        """The revisions of a repository by branch, tag and commit."""
        named = {"main": self.repositories[repository], **self.tags.get(repository, {})}
        for folder in named.values():
            if folder not in self._known:
                self._known[folder] = Revision(folder)
        made = {name: self._known[folder] for name, folder in named.items()}
        return made | {revision.commit: revision for revision in made.values()}

    def commit(self, repository: str, revision: str = "main") -> str:
        """The 40-hex commit of a branch or a tag."""
        return self.revisions(repository)[revision].commit

    def fetched(self) -> list[str]:
        """The names of the files whose bytes were sent, in the order of the requests."""
        sent = [call.path for call in self.calls if call.method == "GET" and call.status in (200, 206)]
        return [path.split("/resolve/")[1].partition("/")[2] for path in sent if "/resolve/" in path]

    @property
    def endpoint(self) -> str:
        """The address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def env(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a command that uses this hub, with its cache and login in ``home``."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
        return clean | {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"} | more

    def use(self, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None = None, offline: bool = False) -> None:
        """Point the client in this process to this hub: it has read its environment when it was imported."""
        from huggingface_hub import constants

        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", token or "")
        for name, value in {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": offline,
        }.items():
            monkeypatch.setattr(constants, name, value)

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the door: from now on the connection is refused."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.hub.down is not None:
            self._refuse(self.hub.down, "", self.hub.says)
        elif path.startswith("/api/models/"):
            repository, _, rest = path.removeprefix("/api/models/").partition("/revision/")
            self._answer(repository, rest or "main", None)
        elif "/resolve/" in path:
            repository, _, rest = path.removeprefix("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            self._answer(repository, revision, name)
        else:
            self._refuse(404, "", "This hub serves models only.")

    def _answer(self, repository: str, revision: str, name: str | None) -> None:
        """Send the description of a revision, or one of its files."""
        token = self.headers.get("Authorization")
        if token not in (None, f"Bearer {TOKEN}"):
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository not in self.hub.repositories:
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif (found := self.hub.revisions(repository).get(revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif name is None:
            self._send_json(found.describe(repository, repository in self.hub.gated))
        elif repository in self.hub.gated and token is None:
            self._refuse(401, "GatedRepo", f"Access to model {repository} is restricted.")
        elif name not in found.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self._send_file(found, name)

    def _send_file(self, revision: Revision, name: str) -> None:
        path = revision.files[name]
        size = self.hub.sizes.get(name, path.stat().st_size)
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self._begin(206 if asked else 200, size - start)
        self.send_header("ETag", f'"{revision.etags[name]}"')
        self.send_header("X-Repo-Commit", revision.commit)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return
        left = self.hub.cut.pop(name, size)
        with open(path, "rb") as file, suppress(BrokenPipeError, ConnectionResetError):
            file.seek(start)
            while left and (piece := file.read(min(PIECE, left))):
                self.wfile.write(piece)
                left -= len(piece)

    def _send_json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self._begin(200, len(data))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._begin(status, 0)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.end_headers()

    def _begin(self, status: int, length: int) -> None:
        self.hub.calls.append(Call(self.command, self.path, self.headers.get("Range"), status))
        self.send_response(status)
        self.send_header("Connection", "close")  # so that nothing is left open when the hub stops
        self.send_header("Content-Length", str(length))

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet: ``Hub.calls`` is the log."""
