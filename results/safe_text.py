"""Text that is safe to record and to print: credentials are removed, and control characters are made visible.

Everything that a command records or prints passes `without_secrets`; what people read in a terminal passes `printable`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO
from urllib.parse import quote, unquote

HIDDEN = "***"
"""What stands for a credential."""

# `user:password@` or `token@` of a URL, up to the last @ before its path; a password may have a / that is not quoted.
_INFO = r"""[^\s"'<>`\\{}|^]"""
_USERINFO = re.compile(rf"(\b[a-z][a-z\d+.-]*://)((?:(?!/){_INFO})*|[^\s/@:]+:(?!\d+/)(?:(?!@){_INFO})*)@", re.I)
_WORDS = "token|secret|passw(?:or)?d|passphrase|api_?key|access_?key|secret_?key|account_?key|credentials?"
_VALUE = r"""(?!\*\*\*)[^&;#,\s"'<>\\]+"""
_QUERY = re.compile(rf"([?&][\w.-]*(?:{_WORDS}|pwd|sig|signature|auth|key)=){_VALUE}", re.I)
_VARIABLE = re.compile(rf"(\b(?:[A-Z\d]+_)*(?:{_WORDS.upper()})=){_VALUE}")
_NAMED = re.compile(
    rf"(\b[\w.-]*(?:passw(?:or)?d|secret|secret_?key|account_?key|api_?key|access_token)=){_VALUE}", re.I
)
_HEADER = re.compile(r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?+)[\w.~+/=-]+", re.I)
_TOKEN = re.compile(r"\b(?:(?:hf|gh[opsur])_[A-Za-z\d]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|dapi[\da-f]{30,})")
_SECRET_NAME = re.compile(rf"(?:^|_)(?:{_WORDS}|key|pass|pat|mysql_pwd|connection_string)$", re.I)
_NOT_SECRET = {"true", "false", "none", "null"}
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_known: set[str] = set()
"""Credentials of URIs that this process uses."""


def without_secrets(text: str) -> str:
    """The text without credentials: user and password of URLs, secrets in queries and assignments, known forms of
    tokens, and the values of environment variables whose names say that they are secret."""
    for value in sorted(_secret_values(), key=len, reverse=True):
        if value in text:
            whole_word = rf"(?<![^\W_]){re.escape(value)}(?![^\W_])"
            text = text.replace(value, HIDDEN) if len(value) >= 8 else re.sub(whole_word, HIDDEN, text)
    text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
    for pattern in (_QUERY, _VARIABLE, _NAMED, _HEADER):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return _TOKEN.sub(HIDDEN, text)


def credentials_of(uri: str) -> list[str]:
    """The credentials in a URI: its password, or its user where there is none, and secrets in its query."""
    userinfo = (match[2].partition(":") for match in _USERINFO.finditer(uri))
    given = [password or user for user, _, password in userinfo]
    return [each for each in (*given, *(match[0][len(match[1]) :] for match in _QUERY.finditer(uri))) if each]


def remember(uri: str) -> None:
    """Remove the credentials of this URI from now on, wherever they stand."""
    _known.update(credentials_of(uri))


def visible(text: str) -> str:
    """The text with control characters as escapes, such as \\x1b: they could move the cursor, or hide and reorder what
    is shown. Line ends and tabs stay."""
    return _CONTROLS.sub(lambda c: f"\\x{ord(c[0]):02x}" if ord(c[0]) < 256 else f"\\u{ord(c[0]):04x}", text)


def printable(text: str) -> str:
    """The text without credentials and with visible control characters."""
    return visible(without_secrets(text))


def _secret_values() -> set[str]:
    """Credentials of this process, as they are and as URLs and JSON write them."""
    values = set(_known)
    for name, value in os.environ.items():
        if "://" in value:
            values.update(credentials_of(value))
        elif _SECRET_NAME.search(name) and not os.path.exists(value):
            values.add(value.strip())
        elif name == "MLFLOW_TRACKING_USERNAME" and len(value) >= 20:  # a token, as some hosts of MLflow want it
            values.add(value)
    values |= {unquote(value) for value in values}
    values |= {quote(value, safe="") for value in values} | {json.dumps(value)[1:-1] for value in values}
    return {value for value in values if len(value) >= 4 and value.lower() not in _NOT_SECRET}


class _SafeStream:
    """A text stream that cleans what is written to it."""

    def __init__(self, stream: TextIO, clean: Callable[[str], str]) -> None:
        self._stream, self._clean = stream, clean

    def write(self, text: str) -> int:
        self._stream.write(self._clean(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def safe_streams(bars: bool = True) -> Iterator[None]:
    """Clean what is written to stdout and stderr.

    Args:
        bars: let control characters pass on stderr, where progress bars need them.
    """
    before = sys.stdout, sys.stderr
    if not isinstance(sys.stdout, _SafeStream):
        sys.stdout = _SafeStream(sys.stdout, printable)
    if not isinstance(sys.stderr, _SafeStream):
        sys.stderr = _SafeStream(sys.stderr, without_secrets if bars else printable)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def readers_may_leave() -> Iterator[None]:
    """Let a program end without an error if the reader of its stdout has closed the pipe, as `head` does."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()


def _discard_stdout() -> None:
    """Write nothing more to a pipe whose reader has closed it; else Python reports it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
