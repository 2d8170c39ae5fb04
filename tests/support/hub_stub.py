"""A hub of our own on this machine: the answers that the client library and the transfer ask for.

It speaks as the public hub does: metadata under /api/models, files under <repo>/resolve/<revision>,
small ones as they are and large ones by a redirect to another host (here: another name and port of
this machine) with X-Linked-Size and X-Linked-Etag. Every request is kept, and answers can lie.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["Asked", "HubStub", "StubRepo", "git_sha1", "hub_stub"]

TOKEN = "hf_thistokenisgood"
_LARGE = (".safetensors", ".bin", ".gguf", ".pt", ".pkl", ".onnx", ".h5", ".ckpt", ".msgpack")
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_BLOCK = 64 << 10
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")

Files = Mapping[str, bytes]
# Changes the metadata before it is sent; whatever it returns instead is sent as it is.
Lie = Callable[[dict[str, Any]], bytes | None]


@dataclass(frozen=True)
class Asked:
    """One request that arrived."""

    server: str
    method: str
    path: str
    authorization: str | None
    span: str | None
    status: int


@dataclass
class StubRepo:
    """One repository: its commits, oldest first, and what is odd about it."""

    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=lambda: {"license": "apache-2.0"})
    gated: str | bool = False
    private: bool = False
    # Whether weights are kept apart from the small files, as the public hub does.
    lfs: bool = True
    lie: Lie | None = None
    # What is sent for a file, in place of its content.
    swapped: dict[str, bytes] = field(default_factory=dict)

    def push(self, files: Files, branch: str = "main") -> str:
        """Make a commit of exactly these files and move the branch to it."""
        seed = repr((self.name, len(self.commits), branch)).encode()
        commit = hashlib.sha1(seed).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def is_large(self, path: str) -> bool:
        """Whether a file is answered by a redirect."""
        return self.lfs and path.endswith(_LARGE)

    def metadata(self, commit: str) -> dict[str, Any]:
        """The hub's answer for a commit."""
        siblings = []
        for path, content in self.commits[commit].items():
            entry: dict[str, Any] = {
                "rfilename": path, "size": len(content), "blobId": git_sha1(content),
            }  # fmt: skip
            if self.is_large(path):
                sha256 = _sha256(content)
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {
            "_id": "0" * 24,
            "id": self.name,
            "modelId": self.name,
            "sha": commit,
            "lastModified": "2026-01-02T03:04:05.000Z",
            "createdAt": "2026-01-02T03:04:05.000Z",
            "private": self.private,
            "gated": self.gated,
            "disabled": False,
            "downloads": 1,
            "likes": 1,
            "tags": ["safetensors", "text-generation"],
            "cardData": self.card,
            "siblings": siblings,
        }


class HubStub:
    """Repositories, two servers (hub and content), and what was asked of them."""

    def __init__(self) -> None:
        self.repos: dict[str, StubRepo] = {}
        self.asked: list[Asked] = []
        # Statuses for the next requests of any kind, then all is well again.
        self.failures: list[int] = []
        # Sent with every answer.
        self.headers: dict[str, str] = {}
        # Bytes of large files that were given to the system for those who asked.
        self.content_bytes = 0
        self.counting = threading.Lock()
        self._hub = _server(self, "hub")
        self._content = _server(self, "content")

    @property
    def endpoint(self) -> str:
        """Address for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._hub.server_port}"

    @property
    def content_host(self) -> str:
        """Where large files lie."""
        return f"http://localhost:{self._content.server_port}"

    def add(self, name: str, files: Files, **fields: Any) -> StubRepo:
        """Publish a repository with one commit."""
        repo = self.repos[name] = StubRepo(name, **fields)
        repo.push(files)
        return repo

    def fetched(self, name: str) -> list[str]:
        """Names of the files of a repository that were asked for, in order, each once."""
        found = [_FILE.fullmatch(x.path) for x in self.asked if x.server == "hub"]
        return list(dict.fromkeys(x["path"] for x in found if x and x["repo"] == name))

    def blob(self, sha256: str) -> bytes | None:
        """The content of a large file by its hash, with what is swapped."""
        for repo in self.repos.values():
            for files in repo.commits.values():
                for path, content in files.items():
                    if _sha256(content) == sha256:
                        return repo.swapped.get(path, content)
        return None

    def reset(self) -> None:
        """Forget repositories, requests and faults."""
        self.repos, self.asked, self.failures, self.headers = {}, [], [], {}
        self.content_bytes = 0

    def start(self) -> None:
        """Serve, each server in a thread of its own."""
        for server in (self._hub, self._content):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close both servers."""
        for server in (self._hub, self._content):
            server.shutdown()
            server.server_close()


@contextmanager
def hub_stub() -> Iterator[HubStub]:
    """A hub that serves while the block runs."""
    stub = HubStub()
    stub.start()
    try:
        yield stub
    finally:
        stub.stop()


@cache
def _sha256(content: bytes) -> str:
    """Asked for with each request; the same few objects come again and again."""
    return hashlib.sha256(content).hexdigest()


@cache
def git_sha1(content: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _server(stub: HubStub, kind: str) -> ThreadingHTTPServer:
    class Handler(_Handler):
        hub = stub
        server_kind = kind

    server = _QuietServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    return server


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Who asked went away in the middle of it, which tests do on purpose."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubStub
    server_kind: str
    protocol_version = "HTTP/1.1"
    # Head and body leave together, at once.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        """As GET, without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer one request."""
        path = unquote(urlsplit(self.path).path)
        if self.hub.failures:
            return self._send(self.hub.failures.pop(0), b"not now")
        if self.server_kind == "content":
            content = self.hub.blob(path.removeprefix("/"))
            if content is None:
                return self._send(404, b"no such blob")
            return self._send_file(content, {"ETag": f'"{path[1:]}"'})
        if match := _TREE.fullmatch(path):
            return self._tree(match["repo"], match["revision"])
        if match := _API.fullmatch(path):
            return self._metadata(match["repo"], match["revision"])
        if match := _FILE.fullmatch(path):
            return self._file(match["repo"], match["revision"], match["path"])
        return self._send(404, b"nothing here")

    def _tree(self, name: str, revision: str) -> None:
        """The files of a commit, as the library asks for them before it fills its cache."""
        repo = self.hub.repos.get(name)
        commit = self._commit(repo, revision) if repo else None
        if repo is None or commit is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        entries = []
        for sibling in repo.metadata(commit)["siblings"]:
            entry = {"type": "file", "path": sibling["rfilename"], "size": sibling["size"]}
            entry["oid"] = sibling["blobId"]
            if "lfs" in sibling:
                lfs = sibling["lfs"]
                entry["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 134}
            entries.append(entry)
        self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _metadata(self, name: str, revision: str | None) -> None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._has_token()):
            return self._refuse(401, "RepoNotFound", "Repository not found")
        commit = self._commit(repo, revision or "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        answer = repo.metadata(commit)
        raw = repo.lie(answer) if repo.lie else None
        body = json.dumps(answer).encode() if raw is None else raw
        return self._send(200, body, {"Content-Type": "application/json; charset=utf-8"})

    def _file(self, name: str, revision: str, path: str) -> None:
        repo = self.hub.repos.get(name)
        commit = self._commit(repo, revision) if repo else None
        content = repo.commits[commit].get(path) if repo and commit else None
        if repo is None or commit is None or content is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        if repo.gated and not self._has_token():
            return self._refuse(403, "GatedRepo", "Access to model is restricted")
        headers = {"X-Repo-Commit": commit}
        if not repo.is_large(path):
            headers["ETag"] = f'"{git_sha1(content)}"'
            return self._send_file(repo.swapped.get(path, content), headers)
        sha256 = _sha256(content)
        headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        headers["Location"] = f"{self.hub.content_host}/{sha256}?X-Amz-Signature=secret"
        return self._send(302, b"Found. Redirecting", headers)

    def _commit(self, repo: StubRepo, revision: str) -> str | None:
        commit = repo.branches.get(revision, revision)
        return commit if commit in repo.commits else None

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send_file(self, content: bytes, headers: dict[str, str]) -> None:
        """The file, or the range that is asked for."""
        headers["Accept-Ranges"] = "bytes"
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        current = self.headers.get("If-Range") in (None, headers.get("ETag"))
        if asked is None or not current:
            return self._send(200, content, headers)
        begin = int(asked[1])
        end = min(int(asked[2] or len(content) - 1), len(content) - 1)
        if begin > end:
            headers["Content-Range"] = f"bytes */{len(content)}"
            return self._send(416, b"", headers)
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
        return self._send(206, content[begin : end + 1], headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        span, token = self.headers.get("Range"), self.headers.get("Authorization")
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(Asked(self.server_kind, self.command, path, token, span, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        for name, value in self.hub.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            try:
                self._write(body)
            except OSError:
                # Whoever asked has gone.
                self.close_connection = True

    def _write(self, body: bytes) -> None:
        if self.server_kind != "content":
            self.wfile.write(body)
            return
        # Small buffers: what is counted is not far from what arrives.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BLOCK)
        for begin in range(0, len(body), _BLOCK):
            self.wfile.write(body[begin : begin + _BLOCK])
            with self.hub.counting:
                self.hub.content_bytes += len(body[begin : begin + _BLOCK])
