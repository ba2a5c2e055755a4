"""A folder served on loopback in the part of the hub's protocol that loading models and datasets needs, and uploading
models: create_repo, validate-yaml, preupload, LFS batch and PUT, commit.

Layout: models/<owner>/<name>/..., datasets/<owner>/<name>/...
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_" + "t" * 34
"""The token that `serve(..., token=TOKEN)` takes."""
OWNER = "me"
"""The only owner below whom that token may write."""
PRIVATE = ".private"
"""A file that marks a private repository."""


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _entry(repository: Path, file: Path) -> dict[str, Any]:
    return {
        "type": "file",
        "path": file.relative_to(repository).as_posix(),
        "size": file.stat().st_size,
        "oid": _oid(file),
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    token: str | None
    """Without it nothing is uploaded; None: there is no such token."""
    objects: dict[str, bytes]
    """Large files that were sent and are not committed yet, by SHA-256."""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._reply(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _missing(self, code: str) -> None:
        self._reply(404, b"{}", X_Error_Code=code, X_Error_Message=code)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body, parts = self._body(), unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts == ["api", "validate-yaml"]:
            self._validate(json.loads(body))
        elif parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            if self._may_write(asked["organization"]):
                self._create(asked)
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["preupload"]:
            if self._may_write(parts[2]):
                self._preupload(json.loads(body))
        elif parts[2:] == ["info", "lfs", "objects", "batch"]:  # owner/name.git/info/...
            if self._may_write(parts[0]):
                self._batch(json.loads(body))
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["commit"]:
            if self._may_write(parts[2]):
                self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])
        else:
            self.do_GET(body)

    def do_PUT(self) -> None:
        body, oid = self._body(), self.path.rsplit("/", 1)[-1]
        if hashlib.sha256(body).hexdigest() != oid:
            self._json({"error": "this is not what was announced"}, 400)
            return
        self.objects[oid] = body
        self._reply(200)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _knows(self) -> bool:
        return self.token is not None and self.headers.get("Authorization") == f"Bearer {self.token}"

    def _may_write(self, owner: str) -> bool:
        if not self._knows():
            said = "Invalid credentials in Authorization header"
            self._json({"error": said}, 401, X_Error_Message=said)
        elif owner != OWNER:
            said = f"You don't have the rights to create a model under the namespace {owner}"
            self._json({"error": said}, 403, X_Error_Message=said)
        else:
            return True
        return False

    def _validate(self, asked: dict[str, str]) -> None:
        try:
            metadata = yaml.safe_load(asked["content"].split("---\n")[1])
            errors = [] if isinstance(metadata.get("license", ""), str) else ['"license" must be a string']
        except (yaml.YAMLError, IndexError, AttributeError) as error:
            errors = [str(error)]
        self._json({"errors": [{"message": said} for said in errors], "warnings": []}, 400 if errors else 200)

    def _create(self, asked: dict[str, str]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        repository = self.root / "models" / name
        status = 409 if repository.is_dir() else 200
        repository.mkdir(parents=True, exist_ok=True)
        if status == 200 and asked.get("visibility") == "private":
            (repository / PRIVATE).touch()
        self._json({"url": f"http://{self.headers['Host']}/{name}"}, status)

    def _preupload(self, asked: dict[str, Any]) -> None:
        modes = {True: "lfs", False: "regular"}
        self._json({"files": [{"path": file["path"], "shouldIgnore": False,
                               "uploadMode": modes[file["path"].endswith(".safetensors")]}
                              for file in asked["files"]]})  # fmt: skip

    def _batch(self, asked: dict[str, Any]) -> None:
        address = f"http://{self.headers['Host']}/lfs"
        self._json({"transfer": "basic", "objects": [
            {**found, "actions": {"upload": {"href": f"{address}/{found['oid']}"}}} for found in asked["objects"]
        ]})  # fmt: skip

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        header, operations = lines[0]["value"], lines[1:]
        if header.get("parentCommit") not in (None, COMMIT):
            self._json({"error": "the branch has changed"}, 412)
            return
        for operation in operations:
            value = operation["value"]
            content = {"file": lambda v=value: base64.b64decode(v["content"]),
                       "lfsFile": lambda v=value: self.objects[v["oid"]]}[operation["key"]]()  # fmt: skip
            file = self.root / "models" / name / value["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        with (self.root / "commits.jsonl").open("a", encoding="utf-8") as log:
            names = [operation["value"]["path"] for operation in operations]
            log.write(json.dumps({"repository": name, "message": header["summary"], "files": names}) + "\n")
        url = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
        self._json({"commitUrl": url, "commitOid": COMMIT})

    def do_GET(self, body: bytes = b"") -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api":
            self._api(parts[1], self.root / "/".join(parts[1:4]), parts[4:], body)
            return
        kind = parts.pop(0) if parts[0] == "datasets" else "models"
        repository = self.root / kind / parts[0] / parts[1]
        file = repository / "/".join(parts[4:])  # owner/name/resolve/revision/path
        if not repository.is_dir():
            self._missing("RepoNotFound")
        elif not file.is_file():
            self._missing("EntryNotFound")
        else:
            self._reply(200, file.read_bytes(), X_Repo_Commit=COMMIT, ETag=f'"{_oid(file)}"')

    def _api(self, kind: str, repository: Path, rest: list[str], body: bytes) -> None:
        if not repository.is_dir():
            self._missing("RepoNotFound")
            return
        files = sorted(p for p in repository.rglob("*") if p.is_file() and p.name != PRIVATE)
        if rest[:1] == ["tree"]:
            base = repository / "/".join(rest[2:])
            folders = {d for p in files for d in p.relative_to(repository).parents if d != Path(".")}
            tree = [{"type": "directory", "path": d.as_posix(), "size": 0, "oid": "0" * 40} for d in sorted(folders)]
            self._json(tree + [_entry(repository, p) for p in files if p.is_relative_to(base)])
        elif rest[:1] == ["paths-info"]:
            asked = [repository / path for path in json.loads(body or b"{}").get("paths", [])]
            self._json([_entry(repository, p) for p in asked if p.is_file()])
        else:
            siblings = [{"rfilename": p.relative_to(repository).as_posix()} for p in files]
            name = repository.relative_to(self.root / kind).as_posix()
            self._json({"_id": "0" * 24, "id": name, "sha": COMMIT, "private": (repository / PRIVATE).exists(),
                        "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
                        "siblings": siblings})  # fmt: skip


@contextmanager
def serve(root: Path, home: Path, token: str | None = None) -> Iterator[dict[str, str]]:
    """Serve `root`; yields the environment with which a process sees it as the hub, with `home` as its cache.

    Args:
        token: with it, models are uploaded; the environment does not hold it. `root/commits.jsonl` has a line for each
            commit.
    """
    handler = type("Handler", (_Handler,), {"root": root, "token": token, "objects": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # the other way to send large files, by a storage server of its own
        }
    finally:
        server.shutdown()
        server.server_close()
