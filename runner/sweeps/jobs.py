"""The jobs of a sweep. The outcome of each is a file: it outlives the process, and other machines can read it."""

from __future__ import annotations

import json
import os
import shlex
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from results.safe_text import without_secrets
from runner.system.files import atomic_write
from runner.system.process import SWEEP_FOLDER, message

if TYPE_CHECKING:
    from runner.records.result import Result

NUMBER_VARIABLE = "PRUNE_DISTILL_JOB"
"""Environment variable: the number of the one job that a process runs."""


@dataclass
class Outcome:
    """The outcome of a job."""

    overrides: list[str]
    error: str | None = None
    """The message of a job that failed."""
    folder: str | None = None
    """The run's folder, of a job that succeeded."""
    score: float | None = None
    """Main metric of the sparse model, or of the dense one with prune=false: the number that a sweeper optimises."""


@dataclass(frozen=True)
class Place:
    """The paths of a job's outcome and log."""

    folder: Path
    number: int

    @property
    def log(self) -> Path:
        """The file of the job's output; in a sweep without a launcher, only the traceback of a failure."""
        return self.folder / f"{self.number}.log"

    @property
    def file(self) -> Path:
        """The file of the outcome."""
        return self.folder / f"{self.number}.json"

    def write(self, outcome: Outcome) -> None:
        """Write the outcome completely or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plain = {**asdict(outcome), "overrides": [without_secrets(each) for each in outcome.overrides]}
        plain["error"] = without_secrets(outcome.error) if outcome.error is not None else None
        atomic_write(self.file, json.dumps(plain, indent=1) + "\n")

    def read(self) -> Outcome | None:
        """Read the outcome; None while there is none."""
        try:
            return Outcome(**json.loads(self.file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def clear(self) -> None:
        """Remove the files of an earlier job."""
        for file in (self.file, self.log):
            file.unlink(missing_ok=True)

    def attempt(self, run: Callable[[], Result], overrides: list[str]) -> Outcome:
        """Run a job and write its outcome. Only an exception that ends the whole process is raised."""
        try:
            result = run()
            scores = result.dense if result.sparse is None else result.sparse
            outcome = Outcome(overrides, folder=str(Path(result.folder).resolve()), score=scores[result.metric])
        except Exception as error:
            outcome = Outcome(overrides, message(error) or f"{type(error).__name__}: {error}")
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as log:
                log.write(without_secrets(traceback.format_exc()))
        self.write(outcome)
        return outcome


def place(number: int | None = None) -> Place | None:
    """The place of this process's job; None outside of a sweep.

    Args:
        number: the job's number in the process of the sweep itself; None: it is in the environment.
    """
    folder, variable = os.environ.get(SWEEP_FOLDER), os.environ.get(NUMBER_VARIABLE)
    if number is None and variable is not None:
        number = int(variable)
    return None if folder is None or number is None else Place(Path(folder), number)


@dataclass(frozen=True)
class Job:
    """A command line with its surroundings. It is pickled and sent to other machines."""

    name: str
    """The overrides that differ from those of the other jobs of the sweep."""
    overrides: tuple[str, ...]
    command: tuple[str, ...]
    environment: dict[str, str]
    """Variables added to those of the machine where it runs."""
    working_folder: str
    place: Place


def command_line(overrides: list[str]) -> str:
    """The command that repeats a job by hand."""
    return "python -m runner " + shlex.join(overrides)
