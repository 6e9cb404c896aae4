"""A small hub on loopback, so that fetching and pushing are proved with no network.

(The server stands in this file because tests cannot import their neighbours under ``--import-mode=importlib``.)
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


@dataclass
class Request:
    method: str
    host: str
    path: str
    range: str | None
    token: str | None
    sent: int = 0  # bytes of the body


@dataclass
class Model:
    files: dict[str, bytes]
    branches: tuple[str, ...] = ("main",)
    token: str | None = None  # the one that may read the files
    gated: bool = False  # the list of files is public, the files are not
    commit: str = COMMIT


def is_large(file_name: str) -> bool:
    return file_name.endswith((".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".ot"))


@dataclass
class LoopbackHub:
    """The hub's file end points, as huggingface_hub speaks to them; the large files lie on a second host."""

    models: dict[str, Model] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)  # old name -> name, answered by a redirect
    moved_to: str = ""  # the host that the redirect leads to, where it is another
    cut: dict[str, int] = field(default_factory=dict)  # file -> bytes after which its next transfer breaks
    stalled: dict[str, int] = field(default_factory=dict)  # file -> bytes after which its next transfer stops
    stopped: threading.Event = field(default_factory=threading.Event)  # set when one has
    altered: set[str] = field(default_factory=set)  # files sent with one bit flipped
    status: int | None = None  # answered to everything
    requests: list[Request] = field(default_factory=list)
    writer: str | None = None  # the token that may push
    stored: dict[str, bytes] = field(default_factory=dict)  # large files that were uploaded, by their SHA-256
    commits: list[str] = field(default_factory=list)  # their messages
    fails_at: str = ""  # a part of the path of a request that is answered by 500
    port: int = 0

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Model:
        self.models[name] = Model(files, **options)
        return self.models[name]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage_url(self) -> str:
        return f"http://localhost:{self.port}"

    def fetched(self) -> list[str]:
        """Names of the files whose contents were asked for."""
        gets = [request.path for request in self.requests if request.method == "GET" and "/api/" not in request.path]
        return [path.rsplit("/", 1)[-1] for path in gets]


class Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.take()

    def do_PUT(self) -> None:
        self.take()

    def take(self) -> None:
        """Answer the requests by which huggingface_hub makes a repository, uploads large files, and commits."""
        path, body = unquote(urlsplit(self.path).path), self.body()
        token = self.headers.get("authorization")
        self.request_seen = Request(self.command, self.headers["host"], path, None, token)
        self.hub.requests.append(self.request_seen)
        if self.hub.fails_at and self.hub.fails_at in path:
            self.reply(500)
        elif path.startswith("/upload/"):
            self.hub.stored[path.removeprefix("/upload/")] = body
            self.reply(200)
        elif token != f"Bearer {self.hub.writer}":
            self.reply(403 if token else 401, {"X-Error-Message": "You don't have the rights to create a model."})
        elif path == "/api/repos/create":
            self.make(json.loads(body))
        elif path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": file, "uploadMode": "lfs" if is_large(file) else "regular"} for file in files]
            self.answer_json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/upload/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self.answer_json({"objects": objects, "transfer": "basic"})
        else:
            name, _, _ = path.removeprefix("/api/models/").partition("/commit/")
            self.commit(name, [json.loads(line) for line in body.splitlines()])

    def make(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        there = name in self.hub.models
        if not there:
            self.hub.add(name, {})
        self.answer_json({"url": f"{self.hub.url}/{name}"}, 409 if there else 200)

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.hub.models[name].files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        self.hub.models[name].files = files
        commit = self.hub.models[name].commit
        self.answer_json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def answer_json(self, value: Any, status: int = 200) -> None:
        self.reply(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def body(self) -> bytes:
        if (length := self.headers.get("content-length")) is not None:
            return self.rfile.read(int(length))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("authorization")
        self.request_seen = Request(self.command, self.headers["host"], path, self.headers.get("range"), token)
        self.hub.requests.append(self.request_seen)
        if self.hub.status is not None:
            self.reply(self.hub.status)
            return
        for old, new in self.hub.moved.items():
            for prefix in (f"/api/models/{old}", f"/{old}/resolve/"):
                if path == prefix or path.startswith(prefix.rstrip("/") + "/"):
                    self.reply(307, {"Location": self.hub.moved_to + self.path.replace(old, new, 1)})
                    return
        if path.startswith("/storage/"):
            self.send_large(path)
        elif path.startswith("/api/models/"):
            self.send_listing(path.removeprefix("/api/models/"))
        else:
            self.send_file(path)

    def model(self, name: str, revision: str) -> Model | None:
        """The model, if it, the revision and the right to read are there; otherwise the refusal is sent."""
        model = self.hub.models.get(name)
        if model is None:
            self.reply(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif model.token and not model.gated and self.headers.get("authorization") != f"Bearer {model.token}":
            self.reply(401, {"X-Error-Message": "Invalid username or password."})
        elif revision not in (*model.branches, model.commit):
            self.reply(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"})
        else:
            return model
        return None

    def send_listing(self, rest: str) -> None:
        if "/tree/" in rest:
            name, _, revision = rest.partition("/tree/")
            if (model := self.model(name, revision)) is not None:
                tree = [{"type": "file", "path": file, "size": 1, "oid": "0"} for file in model.files]
                self.answer_json(tree)
            return
        name, _, revision = rest.partition("/revision/")
        model = self.model(name, revision or "main")
        if model is None:
            return
        siblings = []
        for file_name, content in model.files.items():
            entry = {"rfilename": file_name, "size": len(content), "blobId": git_name(content)}
            if is_large(file_name):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        listing = {"id": name, "modelId": name, "sha": model.commit, "private": False, "siblings": siblings}
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())

    def send_file(self, path: str) -> None:
        name, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, file_name = rest.partition("/")
        model = self.model(name, revision)
        if model is None:
            return
        if model.gated and self.headers.get("authorization") != f"Bearer {model.token}":
            self.reply(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."})
            return
        content = model.files.get(file_name)
        if content is None:
            self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": model.commit})
        elif is_large(file_name):
            headers = {
                "X-Repo-Commit": model.commit,
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.hub.storage_url}/storage/{name}/{file_name}",
            }
            self.reply(302, headers)
        else:
            self.send_content(file_name, content, {"X-Repo-Commit": model.commit, "ETag": f'"{git_name(content)}"'})

    def send_large(self, path: str) -> None:
        name, _, file_name = path.removeprefix("/storage/").rpartition("/")
        self.send_content(file_name, self.hub.models[name].files[file_name], {})

    def send_content(self, file_name: str, content: bytes, headers: dict[str, str]) -> None:
        if file_name in self.hub.altered:
            content = content[:-1] + bytes([content[-1] ^ 1])
        size = len(content)
        status = 200
        if asked := self.headers.get("range"):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            content, status = content[start:], 206
            headers = headers | {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        if self.command != "GET":
            self.reply(status, headers, content)
        elif (stop := self.hub.stalled.pop(file_name, None)) is not None:
            self.reply(status, headers, content, stop)
            self.wfile.flush()
            self.hub.stopped.set()
            self.rfile.read(1)  # until the other side is gone
        else:
            self.reply(status, headers, content, self.hub.cut.pop(file_name, None))

    def reply(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.request_seen.sent = len(body[:cut])
            self.wfile.write(body[:cut])


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """An empty hub; ``hub.add`` a model, and give ``hub.url`` as the end point."""
    hub = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()
