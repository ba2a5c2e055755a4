"""The runs in an output folder: finished, running, interrupted and failed, with score, age and size.

python -m runner.runs [--output-dir outputs] [--state failed] [--json]

An interrupted run resumes by its own command, or by that of its sweep. A run that is refused before it begins has no
folder; a sweep's log and MLflow have it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from results import columns
from results.safe_text import without_secrets
from runner.system import files
from runner.system.commands import command_parser
from runner.system.disk import human_bytes, size_of
from runner.system.errors import UserError
from runner.system.process import LOG, command, message
from runner.system.spelling import did_you_mean
from runner.system.text_tables import aligned

STATES = ("finished", "running", "interrupted", "failed")
FAILURE = "failure.json"
"""File with the error that ended a run; the run's next start removes it."""
CHECKPOINTS = "checkpoints"
_RESULT = "result.json"


@dataclass
class RunEntry:
    """A run in an output folder."""

    folder: str
    state: str
    """One of STATES."""
    metric: str | None
    """The main metric, of a finished run."""
    dense: float | None
    sparse: float | None
    """Scores by the main metric, fractions; None: not finished, or prune=false."""
    written: float
    """Time of the last line of its log, in seconds since 1970."""
    bytes: int
    checkpoints: int
    """Bytes of its training checkpoints."""
    error: str | None
    """The message of a failed run."""


def note_failure(folder: Path, error: Exception) -> None:
    """Write the error that ends a run into its folder; a disk that is full keeps none."""
    text = without_secrets(message(error) or f"{type(error).__name__}: {error}")
    with suppress(OSError):
        files.write_json(folder / FAILURE, {"error": text})


def runs_in(output_dir: Path) -> Iterator[RunEntry]:
    """The runs in a folder, the oldest first."""
    logs = [file for file in output_dir.glob(f"*/{LOG}") if file.is_file()]
    for log in sorted(logs, key=lambda log: (log.stat().st_mtime, log)):
        yield _entry(log.parent, log.stat().st_mtime)


def _entry(folder: Path, written: float) -> RunEntry:
    result, failure = files.read_json(folder / _RESULT), files.read_json(folder / FAILURE)
    state = "running" if is_running(folder) else "interrupted"
    if state != "running":
        state = "finished" if result else "failed" if failure else state
    finished: Mapping[str, Any] = result if result is not None and state == "finished" else {}
    metric = finished.get("metric")
    dense, sparse = ((finished.get(name) or {}).get(metric) for name in ("dense", "sparse"))
    error = failure["error"] if failure is not None and state == "failed" else None
    sizes = size_of(folder), size_of(folder / CHECKPOINTS)
    return RunEntry(str(folder), state, metric, dense, sparse, written, *sizes, error)


def is_running(folder: Path) -> bool:
    """Whether a process runs this run at this moment."""
    lock = folder / ".lock"
    return lock.is_file() and files.lock_is_held(FileLock(lock))


def table(entries: list[RunEntry], now: float) -> Iterator[str]:
    """An aligned line for each run, the errors below theirs, and a sum."""
    lines = [("STATE", "SCORE", "AGE", "SIZE", "FOLDER")]
    for entry in entries:
        score = entry.sparse if entry.sparse is not None else entry.dense
        shown = "-" if score is None else f"{columns.written(str(entry.metric))} {score:.4f}"
        lines.append((entry.state, shown, age(now - entry.written), human_bytes(entry.bytes), entry.folder))
    for line, error in zip(aligned(lines), [None, *(entry.error for entry in entries)], strict=True):
        yield line
        if error:
            yield f"  {error}"
    counts = [f"{sum(entry.state == state for entry in entries)} {state}" for state in STATES]
    held, checkpoints = (sum(sizes) for sizes in zip(*((e.bytes, e.checkpoints) for e in entries), strict=True))
    yield f"{', '.join(counts)}; {human_bytes(held)}, of which checkpoints {human_bytes(checkpoints)}"


def age(seconds: float) -> str:
    """A span of time in its largest unit, such as "3 h"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def main(arguments: list[str]) -> None:
    """Show the runs of an output folder."""
    parser = command_parser("runs", "", "--state interrupted")
    folder = "as output_dir of the runs (%(default)s)"
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR", help=folder)
    parser.add_argument("--state", choices=STATES, help="only runs in this state")
    parser.add_argument("--json", action="store_true", help="a list of objects with all figures")
    options = parser.parse_args(arguments)
    if not options.output_dir.is_dir():
        end = did_you_mean(options.output_dir) or "; name the output_dir of your runs"
        raise UserError(f"--output-dir {options.output_dir}: there is no such folder{end}")
    entries = [entry for entry in runs_in(options.output_dir) if options.state in (None, entry.state)]
    if options.json:
        print(json.dumps([asdict(entry) for entry in entries], indent=1))
    elif entries:
        print(*table(entries, time.time()), sep="\n")
    else:
        print(f"no {options.state + ' ' if options.state else ''}run in {options.output_dir}")


if __name__ == "__main__":
    command(main)
