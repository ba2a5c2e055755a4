"""Jobs at the same time on this machine."""

from __future__ import annotations

import logging
import os
import queue
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from runner.sweeps.jobs import Job
from runner.sweeps.launcher import Ended, ProcessLauncher
from runner.sweeps.worker import Worker
from runner.system.errors import UserError

log = logging.getLogger(__name__)


class Joblib(ProcessLauncher):
    """Jobs at the same time on this machine, each with its share of the cores, or a GPU of its own."""

    def __init__(self, n_jobs: int | None, threads: int | None, retries: int, ranks: int) -> None:
        """
        Args:
            n_jobs: jobs at the same time; None: one for each GPU (of `ranks` of them), two without GPUs.
            threads: threads of each job; None: its share of the cores. OMP_NUM_THREADS comes before both.
        """
        super().__init__(retries, ranks)
        self.gpus = visible_gpus()
        self.n_jobs = n_jobs or max(1, len(self.gpus) // ranks) if self.gpus else n_jobs or 2
        if self.n_jobs < 1 or (threads is not None and threads < 1):
            raise UserError(f"hydra.launcher.n_jobs={n_jobs}, threads={threads}: at least 1")
        self.given_threads = threads

    def threads(self) -> int:
        """Threads for each job."""
        return self.given_threads or max(1, _cores() // self.n_jobs)

    def run(self, jobs: list[Job]) -> Iterator[tuple[Job, Ended]]:
        """Run jobs, with a thread that waits for each process."""
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

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def gpus_of(slot: int, ranks: int, gpus: list[str]) -> dict[str, str]:
    """The environment that gives the job in a slot GPUs of its own, in turn where there are too few."""
    if not gpus:
        return {}
    mine = [gpus[(slot * ranks + rank) % len(gpus)] for rank in range(ranks)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(mine))}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
