"""The base of all launchers: each job of a sweep is a process of its own, and one that was killed is started again.

Hydra's own plugins for joblib, Slurm and Ray end a sweep with the first worker that dies and do not report which job it
was. Here each job is a process with the command line that a person would type. A job that was killed is started again
and resumes from its last checkpoint; the others are not touched.

All machines must see the working folder, `output_dir` and `cache_dir` under the same paths.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from runner.sweeps.jobs import NUMBER_VARIABLE, Job, Outcome, Place
from runner.system.errors import UserError
from runner.system.process import SWEEP_FOLDER
from runner.tracking import PARENT_VARIABLE

log = logging.getLogger(__name__)

THREADS = "OMP_NUM_THREADS"

Ended = int | str
"""How a job's process ended: its exit status (negative: a signal), or the engine's message about a lost worker."""


class ProcessLauncher(Launcher):
    """Runs each job in a process of its own; subclasses say where."""

    def __init__(self, retries: int, ranks: int) -> None:
        """
        Args:
            retries: how many times a job that was killed is started again.
            ranks: processes of a data-parallel job.
        """
        if retries < 0 or ranks < 1:
            raise UserError(f"hydra.launcher.retries={retries}, ranks={ranks}: at least 0 and 1")
        self.retries, self.ranks = retries, ranks

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take the configuration of the sweep; Hydra calls it before `launch`."""
        self.config = config

    @abstractmethod
    def run(self, jobs: list[Job]) -> Iterator[tuple[Job, Ended]]:
        """Run jobs, and yield each when it ends."""

    def threads(self) -> int | None:
        """Threads for each job; None: the launcher leaves it to the machine."""
        return None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs, and those that were killed again. A job that fails does not stop the others."""
        common = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
        jobs = [
            self._job(number, list(overrides), " ".join(o for o in overrides if o not in common))
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        for job in jobs:
            job.place.clear()
        waiting = jobs
        for attempt in range(self.retries + 1):
            waiting = [job for job, status in self.run(waiting) if self._needs_retry(job, status, attempt)]
            if not waiting:
                break
        return [_returned(job) for job in jobs]

    def _needs_retry(self, job: Job, status: Ended, attempt: int) -> bool:
        """Log how a job ended; returns whether it must be started again."""
        outcome = job.place.read()
        if outcome is None:
            how = status if isinstance(status, str) else f"signal {-status}" if status < 0 else f"exit status {status}"
            again = attempt < self.retries
            if not again:
                outcome = Outcome(list(job.overrides), f"its process was lost: {how} (see {job.place.log})")
                job.place.write(outcome)
            log.warning("%d: %s was lost: %s%s", job.place.number, job.name, how, "; started again" if again else "")
            return again
        if outcome.error is None:
            log.info("%d: %s ended", job.place.number, job.name)
        else:
            log.error("%d: %s failed: %s (%s)", job.place.number, job.name, outcome.error, job.place.log)
        return False

    def _job(self, number: int, overrides: list[str], name: str) -> Job:
        hydra = self.config.hydra
        options: list[str] = []
        for source in hydra.runtime.config_sources:
            if source.provider == "command-line":
                options += ["--config-dir", source.path]
        if hydra.job.config_name != "config":
            options += ["--config-name", hydra.job.config_name]
        if hydra.searchpath:
            options.append(f"hydra.searchpath=[{','.join(hydra.searchpath)}]")
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks)]
        command = [sys.executable, *(torchrun if self.ranks > 1 else []), "-m", "runner"]
        command += options + overrides
        environment = {
            SWEEP_FOLDER: os.environ[SWEEP_FOLDER],
            NUMBER_VARIABLE: str(number),
            PARENT_VARIABLE: os.environ[PARENT_VARIABLE],
        }
        environment |= {name: os.environ[name] for name in ("PYTHONPATH", THREADS) if name in os.environ}
        threads = self.threads()
        if threads is not None and THREADS not in environment:
            environment[THREADS] = str(max(1, threads // self.ranks))
        place = Place(Path(os.environ[SWEEP_FOLDER]).resolve(), number)
        return Job(name, tuple(overrides), tuple(command), environment, os.getcwd(), place)


def _returned(job: Job) -> JobReturn:
    """The result for Hydra and its sweepers. A failure is the score NaN: an exception would end the sweep."""
    outcome = job.place.read()
    assert outcome is not None
    return JobReturn(
        overrides=job.overrides,
        status=JobStatus.COMPLETED,
        _return_value=outcome.score if outcome.score is not None else float("nan"),
    )


def require(package: str, launcher: str, extra: str) -> None:
    """Refuse a launcher whose package is not installed.

    Raises:
        UserError: names the package and the extra of this one that has it.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"hydra/launcher={launcher} needs the package {package}: install it, or the extra {extra} of this one"
        )
