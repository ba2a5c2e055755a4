"""A job of a sweep as a process: started with its command line, and ended with the worker that started it."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

from runner.sweeps.jobs import Job, Outcome
from runner.system.interrupts import SIGNALS

INTERRUPTED = frozenset(128 + number for number in SIGNALS)
"""Exit statuses of a process that was asked to end, and saved."""


class Worker:
    """Runs a job's process, and ends it when it must end itself."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, environment: dict[str, str] | None = None) -> int:
        """Run the job to its end.

        Args:
            environment: further variables, known only where the job runs.

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
        """Called by submitit before Slurm takes the machine away: the job is queued again, and resumes."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Worker(self.job))


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def _in_child() -> None:
    """In the new process: ask Linux for a SIGTERM when its parent ends, for whatever reason."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm warns all processes with it; the worker ends this one
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
    _libc().prctl(set_parent_death_signal, signal.SIGTERM)
