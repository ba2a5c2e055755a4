"""Checks of an MLflow store before a run begins: the form of its URI, its database file, and whether it answers."""

from __future__ import annotations

import os
import re
import socket
import urllib.request
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from results import sqlite
from runner.system.errors import UserError

if TYPE_CHECKING:
    from runner.tracking.store import Tracking

CONNECT_SECONDS = 5.0
_SERVERS = {"http": 80, "https": 443, "mysql": 3306, "postgresql": 5432, "mssql": 1433}
"""Kinds of stores that listen, with their usual ports."""
_HOSTED = ("databricks", "databricks-uc", "uc")
_REMEDY = "give a server, http://HOST:PORT, or a file, sqlite:///mlflow.db"


def refuse_unusable(tracking: Tracking) -> None:
    """Refuse a store that cannot be used, without a connection and without MLflow.

    Raises:
        UserError: its URI has no usable form, or its file is no database of this version of MLflow, or read-only.
    """
    problem = _wrong_form(tracking.store)
    if problem is not None:
        raise UserError(f"tracking.uri={tracking.shown}: {problem}; {_REMEDY}")
    file = sqlite.file_of(tracking.store)
    if file is None:
        return
    problem = _wrong_place(file) or (sqlite.fault(file) if file.exists() else None)
    if problem is not None:
        raise UserError(
            f"tracking.uri={tracking.shown}: {problem}; name another file (a new one is made), or move this one away"
        )


def refuse_silent(tracking: Tracking) -> None:
    """Refuse a server whose port does not accept connections. Behind a proxy that is unknown.

    Raises:
        ConnectionError: nothing listens there.
    """
    url = urlsplit(tracking.store)
    port = url.port or _SERVERS.get(url.scheme.split("+")[0])
    proxies = urllib.request.getproxies()
    if not url.hostname or port is None or url.scheme in proxies or "all" in proxies:
        return
    try:
        socket.create_connection((url.hostname, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"nothing listens at {url.hostname}:{port} ({error})") from error


def _wrong_form(uri: str) -> str | None:
    """What is wrong with the form of a URI, or None."""
    kind, separator, _ = uri.partition("://")
    kind = kind.split("+")[0].lower()
    if uri in _HOSTED or (separator and (kind in _HOSTED or kind in {p.name for p in _plugins()})):
        return None
    if kind == "file" or uri.startswith("file:") or not (separator or re.match(r"sqlite:|[\w.-]+:\d+", uri)):
        allowed = os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")
        return None if allowed else "MLflow does not log to plain folders any more"
    if kind == "sqlite":
        return None if sqlite.file_of(uri) not in (None, Path()) else "it names no database file"
    if kind not in _SERVERS:
        return f"MLflow has no store of the kind {kind!r}" if separator else "it does not say which kind of store it is"
    try:
        url = urlsplit(uri)
        if not url.hostname or re.search(r"\s", uri) or url.port == 0:
            return "it names no host"
    except ValueError as error:  # the port, or a bracket
        return str(error)
    return None


def _plugins() -> list:
    return list(entry_points(group="mlflow.tracking_store"))


def _wrong_place(file: Path) -> str | None:
    """Why a database file cannot be written, or None. Its folder is written too, and is made if it does not exist."""
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir():
        return f"{folder} is a file, not a folder"
    readonly = next((path for path in (file, folder) if path.exists() and not os.access(path, os.W_OK)), None)
    return f"{readonly} is read-only" if readonly is not None else None
