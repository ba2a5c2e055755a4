"""The disk space that a run will take, reported and checked before it starts."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from runner.system.errors import UserError


@dataclass
class DiskNeed:
    """Disk space that a run takes at its peak."""

    folder: Path
    """The folder that takes the space; it need not exist yet."""
    what: str
    bytes: int


def training_bytes(parameters: int, checkpoints: int, engine: int = 0, frozen: int = 0, moments: int = 8) -> int:
    """Bytes of a training's checkpoints: weights in float32, and the state of the optimizer and of the engine.

    Args:
        parameters: number of parameters of the model.
        checkpoints: number of checkpoints that stay; there is one more while it is written.
        engine: bytes of masks and scores, and of an average of the weights.
        frozen: number of parameters that are not trained, of which the optimizer has no state.
        moments: bytes of the optimizer's state for each trained parameter; AdamW has two moments in float32.
    """
    return (checkpoints + 1) * (4 * parameters + moments * (parameters - frozen) + engine)


def model_bytes(parameters: int) -> int:
    """Bytes of a saved model in float32."""
    return 4 * parameters


def check(needs: list[DiskNeed]) -> None:
    """Refuse to start if the free space is too small. Existing files of the same run count as available space.

    Raises:
        UserError: names the folder, what is needed and what is free.
    """
    devices: dict[int, list[DiskNeed]] = {}
    for need in needs:
        devices.setdefault(_existing(need.folder).stat().st_dev, []).append(need)
    for mine in devices.values():
        missing = sum(max(0, need.bytes - size_of(need.folder)) for need in mine)
        free = shutil.disk_usage(_existing(mine[0].folder)).free
        if missing > free:
            raise UserError(
                f"this run will take {human_bytes(missing)} more than there is now ({summary(mine)}), and "
                f"{human_bytes(free)} are free: free space, choose another output_dir or cache_dir, or lower "
                "save_total_limit of train and finetune"
            )


def check_writable(key: str, folder: str) -> None:
    """Refuse a folder that cannot be made or written. Nothing is made.

    Args:
        key: the configuration key that names the folder, for the message.

    Raises:
        UserError: names the key, the folder and the reason.
    """
    if not folder:
        raise UserError(f"{key}=: a folder is needed; {key}=. is the working folder")
    place = Path(folder)
    try:
        with TemporaryFile(dir=_existing(place)):  # has no name on most systems
            pass
    except OSError as error:
        raise UserError(
            f"{key}={folder}: cannot write there: {error.strerror}; choose a folder that this user can write to"
        ) from error


def summary(needs: list[DiskNeed]) -> str:
    """The needs as text, for messages."""
    return ", ".join(f"{need.what} {human_bytes(need.bytes)} in {need.folder}" for need in needs)


def in_one_line(needs: list[DiskNeed], cache: Path) -> str:
    """What the needs add up to in the cache and outside of it, and the free space where it is least."""
    cached = sum(need.bytes for need in needs if need.folder.is_relative_to(cache))
    free = min(shutil.disk_usage(_existing(need.folder)).free for need in needs)
    parts = [f"{human_bytes(sum(need.bytes for need in needs) - cached)} for the run"]
    parts += [f"{human_bytes(cached)} in {cache}"] if cached else []
    return f"at most {', '.join(parts)} ({human_bytes(free)} free)"


def human_bytes(count: float) -> str:
    """A number of bytes as text in decimal units, such as 12 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def file_stats(entries: Iterable[Path]) -> Iterator[os.stat_result]:
    """Stat results of all regular files among and below these entries."""
    for entry in entries:
        below = [Path(folder) / name for folder, _, names in os.walk(entry) for name in names]
        for path in (entry, *below):
            with suppress(OSError):  # a broken link, or removed meanwhile
                about = path.stat()
                if stat.S_ISREG(about.st_mode):
                    yield about


def size_of(*entries: Path) -> int:
    """Bytes of all files among and below these entries; 0 for entries that do not exist."""
    return sum(about.st_size for about in file_stats(entries))


def _existing(folder: Path) -> Path:
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
