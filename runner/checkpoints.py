"""Checkpoints of a training: written beside their place, sealed with a list of what they hold, then renamed. So what
has a checkpoint's name was written to its end, and what the disk spoilt since is noticed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from pathlib import Path

log = logging.getLogger(__name__)

SEAL = "sealed.json"
"""Name, size and CRC-32 of each file of a checkpoint."""
PREFIX = "checkpoint-"
_CHUNK = 2**24


def step(checkpoint: Path) -> int:
    """The optimizer steps that were taken before it."""
    return int(checkpoint.name.removeprefix(PREFIX))


def seal(written: Path, place: Path) -> None:
    """Give a checkpoint that is complete its name, after all of it has reached the disk."""
    files = sorted(file for file in written.rglob("*") if file.is_file())
    listed = {file.relative_to(written).as_posix(): [file.stat().st_size, _crc32(file)] for file in files}
    (written / SEAL).write_text(json.dumps(listed, indent=1), encoding="utf-8")
    for path in (*files, written / SEAL, written):
        _flush(path)
    if place.exists():  # of this very step, and damaged: else the training would have gone on from it
        shutil.rmtree(place)
    written.rename(place)
    _flush(place.parent)


def newest(folder: Path) -> Path | None:
    """The newest sound checkpoint, or None. Damaged ones are told, and passed over."""
    for checkpoint in sorted(_all(folder), key=step, reverse=True):
        problem = fault(checkpoint)
        if problem is None:
            return checkpoint
        log.warning("%s is damaged (%s): it is not used", checkpoint, problem)
    return None


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        listed = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        for name, (size, checksum) in listed.items():
            file = checkpoint / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size or _crc32(file) != checksum:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return f"{SEAL} is missing"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{SEAL} cannot be read: {error}"
    return None


def rotate(folder: Path, keep: int) -> None:
    """Remove all but the newest."""
    for checkpoint in sorted(_all(folder), key=step)[:-keep]:
        shutil.rmtree(checkpoint, ignore_errors=True)


def _all(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]


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
