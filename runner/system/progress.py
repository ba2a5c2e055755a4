"""Progress of a stage: a bar of at most 80 columns on a terminal, else a log line each 10 %."""

from __future__ import annotations

import logging
import os
import sys
import time
from types import TracebackType
from typing import Any

LINE_SECONDS = 15.0
"""Seconds between two lines at least, so that a short stage needs none."""
WIDEST = 80
"""Columns of a bar at most."""

log = logging.getLogger(__name__)


def on_terminal() -> bool:
    """Whether a person sees stderr as it is written, so that bars make sense."""
    return sys.stderr is not None and sys.stderr.isatty()


class Progress:
    """What is done of a stage, of a known number of steps."""

    def __init__(self, title: str, total: int, done: int = 0, remaining: bool = True) -> None:
        """
        Args:
            done: steps that an interrupted process did before.
            remaining: show how much time is left; not in a dry run, where it would be read as that of the runs.
        """
        self._remaining = remaining
        self.title, self.total = title, total
        self._first = self._done = done
        self._begin = self._last = time.monotonic()
        self._tenths = 10 * done // total if total else 10
        self._numbers = ""
        self._bar: Any = None
        if on_terminal():
            from tqdm import tqdm

            columns = os.get_terminal_size(sys.stderr.fileno()).columns or WIDEST
            self._bar = tqdm(
                total=total, initial=done, desc=title, ncols=min(WIDEST, columns) - 1, nrows=24,  # a size may be 0 by 0
                bar_format="{desc} {percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt}"
                + ", {remaining} left" * remaining + "{postfix}",
            )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def update(self, steps: int = 1) -> None:
        """Count steps that were done."""
        self._done += steps
        if self._bar is not None:
            self._bar.update(steps)
            return
        now, tenths = time.monotonic(), 10 * self._done // max(1, self.total)
        if tenths > self._tenths and now - self._last >= LINE_SECONDS:
            left = _clock((now - self._begin) * (self.total - self._done) / (self._done - self._first))
            shown = f", {left} left" if tenths < 10 and self._remaining else ""
            log.info("%s: %d %%%s", self.title, 10 * tenths, self._numbers + shown)
            self._last, self._tenths = now, tenths

    def numbers(self, **values: float) -> None:
        """Show these numbers, such as the loss, from the next step on."""
        self._numbers = "".join(f", {name} {value:.3g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers.removeprefix(", "), refresh=False)

    def close(self) -> None:
        """End it: the next message begins a line."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    """Seconds as M:SS or H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
