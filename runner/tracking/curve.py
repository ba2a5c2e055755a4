"""The metrics by step of a run, in its folder: a store that lacks some of them gets them when the run resumes.

JSON lines, only appended to: lists of [key, value, milliseconds since 1970, step], and where they were logged. A torn
line, of a process that was killed while it appended, is dropped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from runner.system.files import atomic_write

NAME = "steps.jsonl"
"""File name of the curve."""


class Curve:
    """The metrics by step of a run, as its folder has them."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / NAME
        self.place: dict[str, str] | None = None
        """The store, experiment and run where the metrics were logged last."""
        self.waiting: list[Any] = []
        """Metrics of an earlier process, until `resumed` or `rest` returns them."""
        if self.file.is_file():
            self._read()

    def log_in(self, store: str, experiment: str, run: str) -> None:
        """Note where the metrics are logged from now on."""
        place = {"store": store, "experiment": experiment, "run": run}
        if place != self.place:
            self.place = place
            self._append(place)

    def add(self, entries: list[Any]) -> None:
        """Append the metrics of one step."""
        self._append(entries)

    def resumed(self, prefix: str, step: int) -> list[Any]:
        """The metrics of a training up to the step from which it resumes. Later ones are removed from the file: they
        are computed again."""
        mine = [entry for entry in self.waiting if entry[0].startswith(f"{prefix}/")]
        past = [entry for entry in mine if entry[3] > step]
        if past:
            self._write([entry for entry in self.waiting if entry not in past])
        self.waiting = [entry for entry in self.waiting if entry not in mine]
        return [entry for entry in mine if entry[3] <= step]

    def rest(self) -> list[Any]:
        """The metrics of trainings that did not run again."""
        rest, self.waiting = self.waiting, []
        return rest

    def flush(self) -> None:
        """Let the file reach the disk."""
        if self.file.is_file():
            with self.file.open("rb") as lines:
                os.fsync(lines.fileno())

    def _read(self) -> None:
        text = self.file.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                self.place = value
            else:
                self.waiting += value
        if text and not text.endswith("\n"):
            self._write(self.waiting)

    def _append(self, value: Any) -> None:
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(value) + "\n")

    def _write(self, entries: list[Any]) -> None:
        lines = [*([self.place] if self.place else []), *([entries] if entries else [])]
        atomic_write(self.file, "".join(f"{json.dumps(line)}\n" for line in lines))
