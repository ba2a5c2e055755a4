"""A folder served on loopback in the part of the hub's protocol that loading models and datasets needs.

Layout: models/<owner>/<name>/..., datasets/<owner>/<name>/...
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


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

    def _json(self, value: Any) -> None:
        self._reply(200, json.dumps(value).encode(), Content_Type="application/json")

    def _missing(self, code: str) -> None:
        self._reply(404, b"{}", X_Error_Code=code, X_Error_Message=code)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

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
        files = sorted(p for p in repository.rglob("*") if p.is_file())
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
            self._json({"_id": "0" * 24, "id": name, "sha": COMMIT, "private": False, "gated": False,
                        "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings})  # fmt: skip


@contextmanager
def serve(root: Path, home: Path) -> Iterator[dict[str, str]]:
    """Serve `root`; yields the environment with which a process sees it as the hub, with `home` as its cache."""
    handler = type("Handler", (_Handler,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
        }
    finally:
        server.shutdown()
        server.server_close()
