"""The jobs of a sweep. What became of each lies in a file: it outlives the process, and other machines can read it."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.system.interrupts import SIGNALS
from runner.system.process import message

if TYPE_CHECKING:
    from runner.records.result import Result

FOLDER_VARIABLE = "PRUNE_DISTILL_SWEEP"
"""Environment: the folder of the sweep that a process works for."""
NUMBER_VARIABLE = "PRUNE_DISTILL_JOB"
"""Environment: the number of the one job that a process runs."""

INTERRUPTED = frozenset(128 + number for number in SIGNALS)
"""Exit statuses of a process that was asked to end, and saved."""


@dataclass
class Outcome:
    """What became of a job."""

    overrides: list[str]
    error: str | None = None
    """What went wrong, if it failed."""
    folder: str | None = None
    """The run's folder, if it did not."""
    score: float | None = None
    """Main metric of the sparse model, or of the dense one with prune=false: what a sweeper optimises."""


@dataclass(frozen=True)
class Place:
    """Where a job's outcome and log lie."""

    folder: Path
    number: int

    @property
    def log(self) -> Path:
        """What the job printed; in a sweep without a launcher, only the traceback of a failure."""
        return self.folder / f"{self.number}.log"

    @property
    def file(self) -> Path:
        """The outcome."""
        return self.folder / f"{self.number}.json"

    def write(self, outcome: Outcome) -> None:
        """Write the outcome whole or not at all."""
        partial = self.file.with_suffix(".tmp")
        self.folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(asdict(outcome), indent=1) + "\n", encoding="utf-8")
        partial.replace(self.file)

    def read(self) -> Outcome | None:
        """The outcome, or None while there is none."""
        try:
            return Outcome(**json.loads(self.file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def clear(self) -> None:
        """Forget what an earlier job left."""
        for file in (self.file, self.log):
            file.unlink(missing_ok=True)

    def attempt(self, run: Callable[[], Result], overrides: list[str]) -> Outcome:
        """Run a job and keep what becomes of it. Only what ends the whole process is raised."""
        try:
            result = run()
            scores = result.dense if result.sparse is None else result.sparse
            outcome = Outcome(overrides, folder=str(Path(result.folder).resolve()), score=scores[result.metric])
        except Exception as error:
            outcome = Outcome(overrides, message(error) or f"{type(error).__name__}: {error}")
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as log:
                log.write(traceback.format_exc())
        self.write(outcome)
        return outcome


def place(number: int | None = None) -> Place | None:
    """Where the outcome of this process's job belongs; None outside of a sweep.

    Args:
        number: of a job in the process of the sweep itself; None if the environment tells.
    """
    folder, told = os.environ.get(FOLDER_VARIABLE), os.environ.get(NUMBER_VARIABLE)
    if number is None and told is not None:
        number = int(told)
    return None if folder is None or number is None else Place(Path(folder), number)


# --- a job as a process of its own --------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A command line, and what it needs around it. Sent as it is to other machines."""

    name: str
    """The overrides that tell it from the others of its sweep."""
    overrides: tuple[str, ...]
    command: tuple[str, ...]
    environment: dict[str, str]
    """Added to that of the machine where it runs."""
    working_folder: str
    place: Place


class Worker:
    """Runs a job's process, and ends it if it must itself end."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, environment: dict[str, str] | None = None) -> int:
        """Run the job to its end.

        Args:
            environment: more of it, known only where the job runs.

        Returns:
            The exit status; negative: the signal that killed it.
        """
        job = self.job
        job.place.folder.mkdir(parents=True, exist_ok=True)
        with job.place.log.open("ab") as log:
            self.process = subprocess.Popen(
                job.command, cwd=job.working_folder, env={**os.environ, **job.environment, **(environment or {})},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C comes to the sweep alone, which passes it on once
                preexec_fn=_in_child if sys.platform == "linux" else None,  # noqa: PLW1509 (one call of libc)
            )  # fmt: skip
        try:
            status = self.process.wait()
        except BaseException:
            self.stop()
            raise
        if status in INTERRUPTED and job.place.read() is None:
            job.place.write(Outcome(list(job.overrides), "it was asked to end, and saved first"))
        return status

    def stop(self) -> None:
        """Ask the process to end, and wait until it has saved."""
        if self.process is None:
            return
        self.process.terminate()
        if not hasattr(os, "waitid"):
            self.process.wait()
            return
        with suppress(ChildProcessError):
            # Not Popen.wait: this may run in a signal's handler, above a frame that holds the lock of that very wait.
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def checkpoint(self) -> Any:
        """Called by submitit before Slurm takes the machine away: the job is queued again, and goes on from there."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Worker(self.job))


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def _in_child() -> None:
    """In the new process: a SIGTERM when the one that started it is gone, however that ended."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm warns all processes with it; the worker ends this one
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
    _libc().prctl(set_parent_death_signal, signal.SIGTERM)


def command_line(overrides: list[str]) -> str:
    """How a person repeats a job."""
    return "python -m runner " + shlex.join(overrides)
