"""Signals that ask a process to end: a training saves first, everything else ends at once and reports it to MLflow."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


SAME_SECONDS = 1.0
"""Signals within this time are one: launchers repeat theirs, and Linux sends one for each thread of a dead parent."""

_last = -SAME_SECONDS
"""Time of the last signal that was handled, by time.monotonic."""


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end. It is a KeyboardInterrupt, so that `except Exception` does not catch it."""

    def __init__(self, number: int, saved: str = "") -> None:
        """
        Args:
            saved: a message that names what was saved.
        """
        super().__init__(saved or "interrupted")
        self.number, self.saved = number, saved

    @property
    def status(self) -> int:
        """The exit status that shells expect."""
        return 128 + self.number


def raise_on_signals() -> None:
    """Let SIGTERM end this process as Ctrl-C does, by an exception, so that it leaves nothing half done."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _raise)


def _raise(number: int, frame: Any) -> None:
    if not _is_new():
        return
    if _launched():
        ignore_signals()
    raise Interrupted(number)


def _is_new() -> bool:
    """Whether a signal that arrives now is not a repetition of the last one."""
    global _last
    before, _last = _last, time.monotonic()
    return _last - before >= SAME_SECONDS


def ignore_signals() -> None:
    """Ignore signals in a process that is about to end, also while Python shuts down, when no handler runs any more."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _launched() -> bool:
    """Whether a launcher started this process. Then Ctrl-C arrives twice: from the terminal, and from the launcher,
    which kills processes that do not end soon."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def postponed() -> Iterator[Callable[[], int | None]]:
    """Hold back the first signal; a later one acts at once, unless a launcher sent it.

    Yields:
        A function that returns the signal that arrived, or None.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked: list[int] = []

    def take(number: int, frame: Any) -> None:
        if not _is_new():
            return
        if asked and not _launched():
            raise Interrupted(number)
        asked.append(number)

    before = {number: signal.signal(number, take) for number in SIGNALS}
    try:
        yield lambda: asked[0] if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
