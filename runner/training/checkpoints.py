"""Checkpoints of a training: sealed folders in the order of their steps."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from runner.system import files

PREFIX = "checkpoint-"


def step(checkpoint: Path) -> int:
    """The optimizer steps that were taken before it."""
    return int(checkpoint.name.removeprefix(PREFIX))


def newest(folder: Path) -> Path | None:
    """The newest sound checkpoint, or None. Damaged ones are told, and passed over."""
    return next((found for found in sorted(_all(folder), key=step, reverse=True) if files.is_intact(found)), None)


def rotate(last: Path, keep: int) -> None:
    """Remove all checkpoints but the newest that lead to the last, which was just made.

    One of a later step was damaged, for the training did not go on from it: it goes first.
    """
    for checkpoint in sorted(_all(last.parent), key=lambda found: (step(found) <= step(last), step(found)))[:-keep]:
        with suppress(OSError):
            files.remove(checkpoint)


def _all(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
