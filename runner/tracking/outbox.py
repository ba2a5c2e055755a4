"""The outbox of a run: operations that wait for an MLflow store that does not answer, in a file in the run's folder.

JSON lines: a header, then one operation each, in the order of the calls. A torn last line, of a process that was
killed while it appended, is dropped.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NAME = "mlflow-pending.jsonl"
"""File name of the outbox."""


@dataclass
class Header:
    """The run that the operations belong to."""

    uri: str
    """URI of the store, without a password."""
    experiment: str
    name: str
    tags: dict[str, str]
    run_id: str | None
    """None: the run could not be created."""
    start_ms: int
    """Start time in milliseconds since 1970."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """A tag of the run, by which a repeated upload finds the run that it has created."""


@dataclass
class Operation:
    """One call to MLflow."""

    kind: str
    """params, tags, metrics, text, input, model or end."""
    values: Any
    """params, tags, input: a mapping; metrics: a list of [key, value, milliseconds since 1970, step]; text:
    [text, name]; model: see `logged_model.log_model`; end: [status, milliseconds since 1970]."""


def metric_entries(values: Mapping[str, float]) -> list[list[Any]]:
    """Metrics of the whole run as the values of an operation."""
    return [[name, float(value), now(), 0] for name, value in values.items()]


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


class Outbox:
    """The outbox file of a run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @classmethod
    def create(cls, file: Path, header: Header) -> Outbox:
        """Create the file with its header."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(header)) + "\n", encoding="utf-8")
        return cls(file)

    @classmethod
    def read(cls, folder: Path) -> Outbox | None:
        """The outbox in a run's folder; None without a file or a complete header."""
        file = folder / NAME
        if not file.is_file() or b"\n" not in file.read_bytes():
            return None
        outbox = cls(file)
        outbox._drop_torn_line()
        return outbox

    def add(self, operation: Operation) -> None:
        """Append an operation."""
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([operation.kind, operation.values]) + "\n")

    def header(self) -> Header:
        """Read the header: the first line."""
        return Header(**json.loads(self._lines()[0]))

    def operations(self) -> list[Operation]:
        """Read the operations: all other lines."""
        return [Operation(*json.loads(line)) for line in self._lines()[1:]]

    def status(self) -> str | None:
        """The status with which the run ended; None if it did not end."""
        last = self.operations()[-1:]
        return last[0].values[0] if last and last[0].kind == "end" else None

    def remove(self) -> None:
        """Delete the file."""
        self.file.unlink()

    def _lines(self) -> list[str]:
        return self.file.read_text(encoding="utf-8").splitlines()

    def _drop_torn_line(self) -> None:
        data = self.file.read_bytes()
        if not data.endswith(b"\n"):
            self.file.write_bytes(data[: data.rindex(b"\n") + 1])
