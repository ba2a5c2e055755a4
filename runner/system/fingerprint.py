"""Fingerprints: SHA-256 of contents, as hexadecimal digits. Stored data depends on them, so they must never change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SHORT = 16
"""Digits of a fingerprint that names a cache entry or identifies a run."""


def hash_text(text: str, digits: int = 64) -> str:
    """The fingerprint of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def hash_json(
    values: Any, digits: int = 64, *, sort_keys: bool = False, default: Callable[[Any], Any] | None = None
) -> str:
    """The fingerprint of values as JSON.

    Args:
        sort_keys: whether the order of dictionaries' keys has no meaning.
        default: converts values that JSON does not have, such as `str`.

    Raises:
        TypeError: there is such a value, and no `default`.
    """
    return hash_text(json.dumps(values, sort_keys=sort_keys, default=default), digits)


def hash_files(files: Iterable[Path], digests: dict[Path, bytes] | None = None) -> str:
    """The fingerprint of the names and contents of files, in the order of their paths, each once.

    Args:
        digests: SHA-256 of files that were read before; those that are read now are added.
    """
    digests = {} if digests is None else digests
    combined = hashlib.sha256()
    for file in sorted(set(files)):
        if file not in digests:
            with file.open("rb") as stream:
                digests[file] = hashlib.file_digest(stream, "sha256").digest()
        combined.update(file.name.encode() + digests[file])
    return combined.hexdigest()
