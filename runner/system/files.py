"""What is kept on the disk: written beside its place, sealed with checksums of what it holds, then renamed. So what has
its name was written to its end, and what the disk spoilt since is noticed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MANIFEST = "sealed.json"
"""Name, size and CRC-32 of each file of a folder."""
CHECKSUM = "crc32"
"""The key of a JSON file that holds the checksum of all others."""
_CHUNK = 2**24


@contextmanager
def atomic_folder(place: Path) -> Iterator[Path]:
    """A folder to write into, which is sealed and gets its name in the end; it is removed if that fails."""
    written = temporary_path(place)
    try:
        remove(written)  # of a process that was killed and had the same number
        written.mkdir(parents=True)
        yield written
        publish(written, place)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def temporary_path(place: Path) -> Path:
    """Where this process writes what is to be renamed to `place`."""
    return place.with_name(f"{place.name}.tmp-{os.getpid()}")


def publish(written: Path, place: Path) -> None:
    """Give a folder that is complete its name, after all of it has reached the disk."""
    files = sorted(file for file in written.rglob("*") if file.is_file())
    (written / MANIFEST).write_text(json.dumps(checksums(written, files), indent=1), encoding="utf-8")
    for path in (*files, written / MANIFEST, written):
        _flush(path)
    remove(place)  # it was damaged, or is replaced
    written.rename(place)
    _flush(place.parent)


def is_intact(place: Path) -> bool:
    """Whether a sealed folder is there and as it was written. A damaged one is told."""
    if not os.path.lexists(place):
        return False
    problem = integrity_error(place)
    if problem is not None:
        log.warning("%s is damaged (%s): it is not used", place, problem)
    return problem is None


def integrity_error(place: Path) -> str | None:
    """What is wrong with a sealed folder, or None. What was added to it later is not looked at."""
    try:
        listed = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        return difference(place, listed) if listed else f"{MANIFEST} names no file"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"


def manifest_names(place: Path) -> list[str]:
    """The files that were sealed, of a folder that is sound."""
    return sorted(json.loads((place / MANIFEST).read_text(encoding="utf-8")))


def checksums(folder: Path, files: Iterable[Path]) -> dict[str, list[int]]:
    """Size and CRC-32 of files by their names below a folder."""
    return {file.relative_to(folder).as_posix(): [file.stat().st_size, _crc32(file)] for file in files}


def difference(folder: Path, listed: Mapping[str, Sequence[int]]) -> str | None:
    """How the files of a folder differ from their checksums, or None."""
    for name, (size, checksum) in listed.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size or _crc32(file) != checksum:
            return f"{name} is not what was written"
    return None


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file with a checksum, whole or not at all."""
    plain = json.loads(json.dumps(values, default=str))
    written = temporary_path(file)
    try:
        text = json.dumps({**plain, CHECKSUM: _checksum(plain)}, indent=2) + "\n"
        written.write_text(text, encoding="utf-8")
        replace(written, file)
    finally:
        written.unlink(missing_ok=True)


def read_json(file: Path) -> dict[str, Any] | None:
    """What `write_json` wrote, or None if there is nothing. So it is of a damaged file, which is told."""
    if not os.path.lexists(file):
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.pop(CHECKSUM) == _checksum(values):
            return values
        problem = "its contents are not those that were written"
    except KeyError:
        problem = "it has no checksum"
    except OSError as error:
        problem = error.strerror
    except (ValueError, AttributeError, TypeError):
        problem = "it is not the JSON that was written"
    log.warning("%s is damaged (%s): it is not used", file, problem)
    return None


def replace(written: Path, place: Path) -> None:
    """Give a file that is complete its name, whatever had it before."""
    if place.is_dir():
        remove(place)
    written.replace(place)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _checksum(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def _crc32(file: Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows does not open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
