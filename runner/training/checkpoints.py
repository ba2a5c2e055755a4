"""Checkpoints of a training: checksummed folders in the order of their steps."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from runner.system import files

PREFIX = "checkpoint-"


def step(checkpoint: Path) -> int:
    """Optimizer steps taken before the checkpoint."""
    return int(checkpoint.name.removeprefix(PREFIX))


def newest(folder: Path) -> Path | None:
    """The newest intact checkpoint, or None. Damaged ones are logged and skipped."""
    return next((path for path in sorted(_all(folder), key=step, reverse=True) if files.is_intact(path)), None)


def rotate(last: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` that lead to the last, which was just made.

    A checkpoint of a later step was damaged, because the training did not resume from it: it is removed first.
    """
    for checkpoint in sorted(_all(last.parent), key=lambda path: (step(path) <= step(last), step(path)))[:-keep]:
        with suppress(OSError):
            files.remove(checkpoint)


def _all(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
