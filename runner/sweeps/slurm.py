"""Jobs in Slurm's queue, through submitit."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from runner.sweeps.jobs import Job
from runner.sweeps.launcher import Ended, ProcessLauncher, require
from runner.sweeps.worker import Worker

if TYPE_CHECKING:
    import submitit

log = logging.getLogger(__name__)

FINISHED_STATES = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
"""States of Slurm's jobs, which its queue shows for some minutes after their end."""


class SubmititLocal(ProcessLauncher):
    """submitit's processes on this machine: to try a sweep that is meant for Slurm."""

    cluster = "local"
    poll_seconds = 1.0

    def __init__(self, retries: int, ranks: int, **parameters: Any) -> None:
        """
        Args:
            parameters: parameters of submitit's executor; those of Slurm alone without their prefix `slurm_`.
        """
        super().__init__(retries, ranks)
        require("submitit", f"submitit_{self.cluster}", "slurm")
        self.parameters: dict[str, Any] = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in parameters.items()
            if value is not None
        }

    def threads(self) -> int | None:
        """Threads for each job: the CPUs that Slurm gives it."""
        return self.parameters.get("cpus_per_task")

    def run(self, jobs: list[Job]) -> Iterator[tuple[Job, Ended]]:
        """Run jobs as one job array."""
        import submitit

        parameters, at_once = dict(self.parameters), {}
        if "max_num_timeout" in parameters:
            at_once["slurm_max_num_timeout"] = parameters.pop("max_num_timeout")
        executor = submitit.AutoExecutor(jobs[0].place.folder / "submitit", cluster=self.cluster, **at_once)
        general = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"}
        named = {key if key in general else f"slurm_{key}": value for key, value in parameters.items()}
        executor.update_parameters(stderr_to_stdout=True, **named)
        with executor.batch():
            submitted = {executor.submit(Worker(job)): job for job in jobs}
        for handle, job in submitted.items():
            log.info("%d: %s is job %s (%s)", job.place.number, job.name, handle.job_id, job.place.log)
        try:
            suspects: set[submitit.Job[int]] = set()
            while submitted:
                gone = self.gone(list(submitted))
                for handle in [h for h in submitted if h.paths.result_pickle.exists() or h in gone & suspects]:
                    yield (
                        submitted.pop(handle),
                        f"{self.cluster} job {handle.job_id} was killed (see {handle.paths.stdout})",
                    )
                suspects = gone  # gone twice: a shared disk may show its last file late
                time.sleep(self.poll_seconds)
        finally:
            for handle in submitted:
                handle.cancel()

    def gone(self, submitted: list[submitit.Job[int]]) -> set[submitit.Job[int]]:
        """The jobs that neither run nor wait any more."""
        return {job for job in submitted if job.done()}


class SubmititSlurm(SubmititLocal):
    """Slurm's queue. A job at its time limit, or that is preempted, saves and is queued again."""

    cluster = "slurm"
    poll_seconds = 10.0

    def gone(self, submitted: list[submitit.Job[int]]) -> set[submitit.Job[int]]:
        """The jobs that have left the queue. submitit asks Slurm's accounting, which small clusters do not have."""
        ids = ",".join(job.job_id for job in submitted)
        asked = subprocess.run(["squeue", "--noheader", "--array", f"--jobs={ids}", "--format=%i %T"],
                               capture_output=True, text=True, check=False)  # fmt: skip
        if asked.returncode and "Invalid job id" not in asked.stderr:
            log.debug("squeue: %s", asked.stderr)
            return set()  # the controller does not answer: ask again later
        states = dict(line.split(maxsplit=1) for line in asked.stdout.splitlines() if line.strip())
        return {job for job in submitted if states.get(job.job_id, "FAILED") in FINISHED_STATES}
