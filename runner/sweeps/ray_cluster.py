"""Jobs on a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.sweeps.jobs import Job
from runner.sweeps.launcher import Ended, ProcessLauncher, require
from runner.sweeps.worker import Worker
from runner.system.errors import UserError
from runner.system.interrupts import raise_on_signals

log = logging.getLogger(__name__)

PASSED_ON = ("HF_", "MLFLOW_", "PRUNE_DISTILL_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Prefixes of the environment variables that a job needs from the sweep: Ray's workers may have started long before."""


class Ray(ProcessLauncher):
    """A Ray cluster."""

    def __init__(self, ray: DictConfig, retries: int, ranks: int) -> None:
        """
        Args:
            ray: `init`, arguments of ray.init; `remote`, resources of a job.
        """
        super().__init__(retries, ranks)
        require("ray", "ray", "ray")
        self.options: dict[str, dict[str, Any]] = OmegaConf.to_container(ray)  # type: ignore[assignment]

    def threads(self) -> int:
        """Threads for each job: its CPUs."""
        return max(1, int(self.options["remote"].get("num_cpus") or 1))

    def run(self, jobs: list[Job]) -> Iterator[tuple[Job, Ended]]:
        """Run each job as a task of Ray."""
        import ray
        import ray.exceptions

        if not ray.is_initialized():
            try:
                ray.init(**{"log_to_driver": False, **self.options["init"]})
            except ConnectionError as error:
                raise UserError(
                    f"hydra.launcher.ray.init.address={self.options['init'].get('address')}: no Ray cluster answers; "
                    "start one with `ray start --head`, or let this sweep start one on this machine: address=local"
                ) from error
            raise_on_signals()  # Ray has taken SIGTERM
        task = ray.remote(max_retries=0, max_calls=1, **self.options["remote"])(_in_worker)
        environment = {key: value for key, value in os.environ.items() if key.upper().startswith(PASSED_ON)}
        submitted = {task.remote(job, environment): job for job in jobs}
        for job in jobs:
            log.info("%d: %s (%s)", job.place.number, job.name, job.place.log)
        try:
            while submitted:
                (done, *_), _ = ray.wait(list(submitted), num_returns=1)
                job = submitted.pop(done)
                try:
                    yield job, ray.get(done)
                except ray.exceptions.RayError as error:
                    yield job, f"{type(error).__name__}: {_last_line(error)}"
        finally:
            for left in submitted:
                ray.cancel(left)


def _in_worker(job: Job, environment: dict[str, str]) -> int:
    return Worker(job)({**environment, **job.environment})


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
