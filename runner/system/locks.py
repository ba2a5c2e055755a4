"""Folders that one process writes at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from runner.system.errors import UserError, writing
from runner.system.process import SWEEP_FOLDER

log = logging.getLogger(__name__)


@contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Lock a folder for this process; a run that another process runs at this moment is refused. A job of a sweep waits
    instead: the other process, an earlier sweep's job perhaps, may do its work.

    Yields:
        Whether it waited.

    Raises:
        UserError: another process holds the lock, outside of a sweep.
    """
    lock, waits = FileLock(folder / ".lock"), False
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        if SWEEP_FOLDER not in os.environ:
            raise UserError(
                f"{folder}: another process runs this very run at this moment; wait for it, or give another output_dir"
            ) from error
        log.info("waiting for another process that runs this very run (%s)", folder)
        waits = True
        lock.acquire()
    try:
        yield waits
    finally:
        lock.release()


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Make a folder and turn a full or read-only disk, while it is written, into a UserError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield
