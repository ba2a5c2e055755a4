"""Where the jobs of a sweep run: beside each other on this machine, in Slurm's queue (submitit) or on a Ray cluster.

Hydra's own plugins for these engines end a sweep with the first worker that dies and do not tell which job it was. Here
each job is a process with the command line that a person would type; one that was killed is started again, and goes on
from its last checkpoint; the others are not touched.

All machines must see the working folder, `output_dir` and `cache_dir` under the same paths.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from runner.sweeps.jobs import FOLDER_VARIABLE, NUMBER_VARIABLE, Job, Outcome, Place, Worker
from runner.system.errors import UserError
from runner.system.interrupts import raise_on_signals
from runner.tracking import PARENT_VARIABLE

if TYPE_CHECKING:
    import submitit

log = logging.getLogger(__name__)

NAMESPACE = "hydra_plugins.prune_distill"
"""Hydra takes launchers of the package hydra_plugins only, and looks them up by the name they are registered under."""

THREADS = "OMP_NUM_THREADS"
PASSED_ON = ("HF_", "MLFLOW_", "PRUNE_DISTILL_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Beginnings of the environment variables that workers started by others, long before, need too."""
FINISHED_STATES = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
"""States of Slurm's jobs, which its queue shows for some minutes after their end."""

Ended = int | str
"""How a job's process ended: its exit status (negative: a signal), or what the engine says of a worker that is gone."""


def register() -> None:
    """Make the launchers of conf/hydra/launcher known to Hydra."""
    for launcher in (Joblib, SubmititLocal, SubmititSlurm, Ray):
        Plugins.instance().class_name_to_class[f"{NAMESPACE}.{launcher.__name__}"] = launcher


class ProcessLauncher(Launcher):
    """Each job in a process of its own, somewhere."""

    def __init__(self, retries: int, ranks: int) -> None:
        """
        Args:
            retries: how often a job that was killed is started again.
            ranks: processes of a data-parallel job.
        """
        if retries < 0 or ranks < 1:
            raise UserError(f"hydra.launcher.retries={retries}, ranks={ranks}: at least 0 and 1")
        self.retries, self.ranks = retries, ranks

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's, before it launches."""
        self.config = config

    @abstractmethod
    def run(self, jobs: list[Job]) -> Iterator[tuple[Job, Ended]]:
        """Run jobs; yields each as it ends."""

    def threads(self) -> int | None:
        """Threads for each job, where the launcher knows how many."""
        return None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs, and what was killed again. A failing job fails alone."""
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
        """Tell how a job ended; whether it is to be started again."""
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
            FOLDER_VARIABLE: os.environ[FOLDER_VARIABLE],
            NUMBER_VARIABLE: str(number),
            PARENT_VARIABLE: os.environ[PARENT_VARIABLE],
            "TQDM_MININTERVAL": "30",  # a bar in a file is a line each time
        }
        environment |= {name: os.environ[name] for name in ("PYTHONPATH", THREADS) if name in os.environ}
        threads = self.threads()
        if threads is not None and THREADS not in environment:
            environment[THREADS] = str(max(1, threads // self.ranks))
        place = Place(Path(os.environ[FOLDER_VARIABLE]).resolve(), number)
        return Job(name, tuple(overrides), tuple(command), environment, os.getcwd(), place)


def _returned(job: Job) -> JobReturn:
    """What Hydra and its sweepers see. A failure is a score that is no number: raised, it would end the sweep."""
    outcome = job.place.read()
    assert outcome is not None
    return JobReturn(
        overrides=job.overrides,
        status=JobStatus.COMPLETED,
        _return_value=outcome.score if outcome.score is not None else float("nan"),
    )


class Joblib(ProcessLauncher):
    """Jobs beside each other on this machine, each with its share of the cores, or a GPU of its own."""

    def __init__(self, n_jobs: int | None, threads: int | None, retries: int, ranks: int) -> None:
        """
        Args:
            n_jobs: jobs at the same time; None: one for each GPU (of `ranks` of them), two without GPUs.
            threads: for each job; None: its share of the cores. OMP_NUM_THREADS comes before both.
        """
        super().__init__(retries, ranks)
        self.gpus = visible_gpus()
        self.n_jobs = n_jobs or max(1, len(self.gpus) // ranks) if self.gpus else n_jobs or 2
        if self.n_jobs < 1 or (threads is not None and threads < 1):
            raise UserError(f"hydra.launcher.n_jobs={n_jobs}, threads={threads}: at least 1")
        self.given_threads = threads

    def threads(self) -> int:
        """For each job."""
        return self.given_threads or max(1, _cores() // self.n_jobs)

    def run(self, jobs: list[Job]) -> Iterator[tuple[Job, Ended]]:
        """A thread waits for each process."""
        free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.n_jobs):
            free.put(slot)
        workers = [Worker(job) for job in jobs]

        def work(worker: Worker) -> int:
            slot, job = free.get(), worker.job
            log.info("%d: %s starts (%s)", job.place.number, job.name, job.place.log)
            try:
                return worker(gpus_of(slot, self.ranks, self.gpus))
            finally:
                free.put(slot)

        pool = ThreadPoolExecutor(self.n_jobs)
        try:
            futures: dict[Future[int], Worker] = {pool.submit(work, worker): worker for worker in workers}
            for future in as_completed(futures):
                yield futures[future].job, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.stop()
            pool.shutdown()


def visible_gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return told.split(",") if told else [str(i) for i in range(torch.cuda.device_count())]


def gpus_of(slot: int, ranks: int, gpus: list[str]) -> dict[str, str]:
    """The environment that gives the job in a slot GPUs of its own, in turn where there are too few."""
    if not gpus:
        return {}
    mine = [gpus[(slot * ranks + rank) % len(gpus)] for rank in range(ranks)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(mine))}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SubmititLocal(ProcessLauncher):
    """submitit's processes on this machine: to try a sweep for Slurm without one."""

    cluster = "local"
    poll_seconds = 1.0

    def __init__(self, retries: int, ranks: int, **parameters: Any) -> None:
        """
        Args:
            parameters: of submitit's executor; those that are Slurm's alone without their `slurm_`.
        """
        super().__init__(retries, ranks)
        _need("submitit", self.cluster, "slurm")
        self.parameters: dict[str, Any] = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in parameters.items()
            if value is not None
        }

    def threads(self) -> int | None:
        """As many as Slurm gives the job."""
        return self.parameters.get("cpus_per_task")

    def run(self, jobs: list[Job]) -> Iterator[tuple[Job, Ended]]:
        """One job array."""
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
                suspects = gone  # twice: what it wrote last may need a moment to be seen from here
                time.sleep(self.poll_seconds)
        finally:
            for handle in submitted:
                handle.cancel()

    def gone(self, submitted: list[submitit.Job[int]]) -> set[submitit.Job[int]]:
        """The jobs of which nothing runs or waits any more."""
        return {job for job in submitted if job.done()}


class SubmititSlurm(SubmititLocal):
    """Slurm's queue. A job whose time is over, or that is preempted, saves and is queued again."""

    cluster = "slurm"
    poll_seconds = 10.0

    def gone(self, submitted: list[submitit.Job[int]]) -> set[submitit.Job[int]]:
        """submitit asks Slurm's accounting, which small clusters do not have; the queue knows too."""
        ids = ",".join(job.job_id for job in submitted)
        asked = subprocess.run(["squeue", "--noheader", "--array", f"--jobs={ids}", "--format=%i %T"],
                               capture_output=True, text=True, check=False)  # fmt: skip
        if asked.returncode and "Invalid job id" not in asked.stderr:
            log.debug("squeue: %s", asked.stderr)
            return set()  # the controller does not answer: ask again later
        states = dict(line.split(maxsplit=1) for line in asked.stdout.splitlines() if line.strip())
        return {job for job in submitted if states.get(job.job_id, "FAILED") in FINISHED_STATES}


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


class Ray(ProcessLauncher):
    """A Ray cluster."""

    def __init__(self, ray: DictConfig, retries: int, ranks: int) -> None:
        """
        Args:
            ray: `init`, arguments of ray.init; `remote`, resources of a job.
        """
        super().__init__(retries, ranks)
        _need("ray", "ray", "ray")
        self.options: dict[str, dict[str, Any]] = OmegaConf.to_container(ray)  # type: ignore[assignment]

    def threads(self) -> int:
        """As many as a job's CPUs."""
        return max(1, int(self.options["remote"].get("num_cpus") or 1))

    def run(self, jobs: list[Job]) -> Iterator[tuple[Job, Ended]]:
        """One task for each job."""
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


def _need(package: str, option: str, extra: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        name = f"submitit_{option}" if package == "submitit" else option
        raise UserError(
            f"hydra/launcher={name} needs the package {package}: install it, or the extra {extra} of this one"
        )
