"""What a run could not log because the MLflow server was away: a file in the run's folder, in the order of the calls.

JSON lines: a header, then one operation each. A process may be killed while it appends: a torn last line is dropped.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NAME = "mlflow-pending.jsonl"
"""The file, in the folder of a run."""


@dataclass
class Header:
    """The run that the operations belong to."""

    uri: str
    """Of the store; without a password."""
    experiment: str
    name: str
    tags: dict[str, str]
    run_id: str | None
    """None: the run could not even be begun."""
    start_ms: int
    """When it began, in milliseconds since 1970."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """A tag of the run, by which one that an upload has begun is found again."""


@dataclass
class Operation:
    """One call to MLflow, as it was made."""

    kind: str
    """params, tags, metrics, text, input or end."""
    values: Any
    """params, tags, input: a mapping; metrics: a list of [key, value, milliseconds since 1970, step]; text:
    [text, name]; end: [status, milliseconds since 1970]."""


class Outbox:
    """The file of a run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @classmethod
    def create(cls, file: Path, header: Header) -> Outbox:
        """Begin a file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(header)) + "\n", encoding="utf-8")
        return cls(file)

    @classmethod
    def of(cls, folder: Path) -> Outbox | None:
        """The file in a run's folder, if there is a whole header."""
        file = folder / NAME
        if not file.is_file() or b"\n" not in file.read_bytes():
            return None
        found = cls(file)
        found._mend()
        return found

    def add(self, operation: Operation) -> None:
        """Append an operation."""
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([operation.kind, operation.values]) + "\n")

    def header(self) -> Header:
        """The first line."""
        return Header(**json.loads(self._lines()[0]))

    def operations(self) -> list[Operation]:
        """All others."""
        return [Operation(*json.loads(line)) for line in self._lines()[1:]]

    def status(self) -> str | None:
        """How the run ended; None if it did not."""
        last = self.operations()[-1:]
        return last[0].values[0] if last and last[0].kind == "end" else None

    def remove(self) -> None:
        """All of it was uploaded."""
        self.file.unlink()

    def _lines(self) -> list[str]:
        return self.file.read_text(encoding="utf-8").splitlines()

    def _mend(self) -> None:
        """Drop a line that was not written to its end."""
        data = self.file.read_bytes()
        if not data.endswith(b"\n"):
            self.file.write_bytes(data[: data.rindex(b"\n") + 1])
