"""Atomic, checksummed files and folders: write to a temporary path, add checksums, rename. Later corruption is
detected."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from runner.system.errors import UserError, writing

log = logging.getLogger(__name__)

MANIFEST = "sealed.json"
"""The file of a folder with the name, size and CRC-32 of each other file."""
CHECKSUM = "crc32"
"""The key of a JSON file that holds the checksum of all others."""
_CHUNK = 2**24

_IRREGULAR = {stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}

T = TypeVar("T")


def make_once(
    place: Path, read: Callable[[Path], T | None], make: Callable[[Path], T], waiting: str = "makes the same file"
) -> T:
    """The value stored at `place`: read, or made and written now. If several processes ask at once, one makes it and
    the others wait.

    Args:
        read: reads the value; None if it does not exist or is damaged.
        make: computes the value, writes it to `place` (by `atomic_folder`, `atomic_write` or `write_json`), returns it.
        waiting: what the other process does, for the log: "waiting for another process that ...".

    Raises:
        UserError: the disk refuses.
    """
    with writing(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        # The operating system's lock: it ends with its process, however that ends.
        lock = FileLock(lock_path(place))
        if lock_is_held(lock):
            log.info("waiting for another process that %s", waiting)
        with lock:
            value = read(place)
            return make(place) if value is None else value


def lock_path(place: Path) -> Path:
    """The lock file of what is made at `place`, or at any path next to it with the same name before the first dot."""
    return place.with_name(f"{place.name.split('.')[0]}.lock")


def lock_is_held(lock: FileLock) -> bool:
    """Whether another process has the lock at this moment."""
    try:
        with lock.acquire(blocking=False):
            return False
    except TimeoutError:
        return True


def atomic_write(place: Path, contents: str | bytes | Callable[[Path], object]) -> None:
    """Write a file completely or not at all.

    Args:
        contents: text (UTF-8), bytes, or a function that writes the file to the path that it gets.
    """
    written = temporary_path(place)
    try:
        if callable(contents):
            contents(written)
        else:
            written.write_bytes(contents.encode() if isinstance(contents, str) else contents)
        replace(written, place)
    finally:
        written.unlink(missing_ok=True)


@contextmanager
def atomic_folder(place: Path) -> Iterator[Path]:
    """A folder to write into. At the end it gets a manifest of checksums and its name; after an error it is removed."""
    written = temporary_path(place)
    try:
        remove(written)  # left by a killed process with the same number
        written.mkdir(parents=True)
        yield written
        publish(written, place)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def temporary_path(place: Path) -> Path:
    """The path at which this process writes what it then renames to `place`."""
    return place.with_name(f"{place.name}.tmp-{os.getpid()}")


def publish(written: Path, place: Path) -> None:
    """Rename a complete folder to its place, after its files and a manifest of them have reached the disk."""
    files = sorted(file for file in written.rglob("*") if file.is_file())
    (written / MANIFEST).write_text(json.dumps(checksums(written, files), indent=1), encoding="utf-8")
    for path in (*files, written / MANIFEST, written):
        _flush(path)
    remove(place)  # damaged, or replaced on purpose
    written.rename(place)
    _flush(place.parent)


def extend(place: Path, name: str, text: str) -> None:
    """Add a text file to a published folder and to its manifest; the manifest names it only once it is complete."""
    manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    atomic_write(place / name, text)
    atomic_write(place / MANIFEST, json.dumps(manifest | checksums(place, [place / name]), indent=1))


def is_intact(place: Path) -> bool:
    """Whether a folder exists and its files match its manifest. A damaged one is logged."""
    if not os.path.lexists(place):
        return False
    problem = integrity_error(place)
    if problem is not None:
        log.warning("%s is damaged (%s): it is not used", place, problem)
    return problem is None


def integrity_error(place: Path) -> str | None:
    """What is wrong with a folder that has a manifest, or None. Files that were added later are not checked."""
    check_regular(place / MANIFEST)
    try:
        listed = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        return difference(place, listed) if listed else f"{MANIFEST} names no file"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"


def manifest_names(place: Path) -> list[str]:
    """The files in the manifest of an intact folder."""
    return sorted(json.loads((place / MANIFEST).read_text(encoding="utf-8")))


def checksums(folder: Path, files: Iterable[Path]) -> dict[str, list[int]]:
    """Size in bytes and CRC-32 of files, by their paths relative to a folder."""
    return {file.relative_to(folder).as_posix(): [file.stat().st_size, _crc32(file)] for file in files}


def difference(folder: Path, listed: Mapping[str, Sequence[int]]) -> str | None:
    """The first difference between the files of a folder and their checksums, or None."""
    for name, (size, checksum) in listed.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size or _crc32(file) != checksum:
            return f"{name} is not what was written"
    return None


def check_regular(*paths: Path) -> None:
    """Refuse FIFOs, sockets and devices, before they are opened: reading one may wait for ever, or never end. Links are
    followed; paths that do not exist, and folders, pass.

    Raises:
        UserError: names the first one.
    """
    for path in paths:
        with suppress(OSError):
            mode = path.stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = next(name for is_kind, name in _IRREGULAR.items() if is_kind(mode))
                raise UserError(
                    f"{path}: this is {kind}, and only regular files are read; copy its contents into a file"
                )


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file with a checksum, completely or not at all."""
    plain = json.loads(json.dumps(values, default=str))
    atomic_write(file, json.dumps({**plain, CHECKSUM: _checksum(plain)}, indent=2) + "\n")


def read_json(file: Path) -> dict[str, Any] | None:
    """The values that `write_json` wrote; None if the file does not exist, or is damaged, which is logged."""
    if not os.path.lexists(file):
        return None
    check_regular(file)
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
    """Rename a complete file to its place, whatever is there."""
    if place.is_dir():
        remove(place)
    written.replace(place)


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists."""
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
