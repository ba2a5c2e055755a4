"""Around a sweep: every job is checked before the first is launched, and one MLflow run is their parent."""

import atexit
import logging
import sys
import traceback
from contextlib import ExitStack, suppress
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from runner import config as configuration
from runner import ranks, tracking
from runner.edge import guarded, message
from runner.errors import UserError
from runner.experiment import Result, set_up_process, settled

log = logging.getLogger(__name__)


class Sweep(Callback):
    """Hydra's callback, named in conf/config.yaml."""

    def __init__(self) -> None:
        self.open = ExitStack()
        self.jobs = 0
        self.results: list[Result] = []
        self.failed: list[str] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Compose and convert all jobs; a mistake in any stops the sweep before job 0."""
        # Hydra makes a warning of what a callback raises, and goes on. Not of SystemExit; and no job runs yet.
        try:
            status = guarded(lambda: self._begin(config))
        except Exception:
            traceback.print_exc()
            status = 1
        if status:
            sys.exit(status)

    def _begin(self, config: DictConfig) -> None:
        if ranks.world_size() > 1:
            raise UserError(
                "a sweep (-m) runs in one process, not in the ranks of torchrun or accelerate launch: start it without "
                "them and let its jobs start ranks of their own, with hydra.launcher.ranks=N"
            )
        set_up_process()
        swept = config.hydra.sweeper.get("params") or {}
        jobs = expand([*(f"{key}={value}" for key, value in swept.items()), *config.hydra.overrides.task])
        for overrides in jobs:
            experiment = settled(configuration.compose_experiment(overrides)[0])
        log.info("a sweep of %d runs, all configurations checked", len(jobs))
        self.jobs = len(jobs)
        atexit.register(self._abandon)
        self.open.enter_context(tracking.sweep(experiment.tracking, tracking.command_line()))

    def _abandon(self) -> None:
        """Tell MLflow of a sweep that a signal ended: then Hydra calls nothing more."""
        with suppress(BaseException):
            self.open.__exit__(KeyboardInterrupt, KeyboardInterrupt("the sweep was interrupted"), None)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Report a failed job at once, not when the sweep ends."""
        if job_return.status is JobStatus.COMPLETED and isinstance(job_return.return_value, Result):
            self.results.append(job_return.return_value)
        if job_return.status is JobStatus.FAILED and config.hydra.mode.name == "MULTIRUN":
            error = job_return._return_value
            text = message(error)
            self.failed.append(" ".join(config.hydra.overrides.task))
            log.error("failed: %s\n%s", " ".join(config.hydra.overrides.task), text or "see the traceback",
                      exc_info=None if text else error)  # fmt: skip

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Close the parent run, and say what came out and what is missing."""
        self.open.close()
        if self.results:
            log.info("the sweep's results:\n%s", "\n".join(f"  {line}" for line in overview(self.results)))
        if self.failed:
            lines = "".join(f"\n  {overrides}" for overrides in self.failed)
            log.error("%d of %d runs failed:%s", len(self.failed), self.jobs, lines)
            log.error("The same command runs only what is missing.")


def overview(results: list[Result]) -> list[str]:
    """A line for each result, aligned."""
    names = [f"{r.model} on {r.dataset}, {r.pattern}, seed {r.seed}" for r in results]
    lines = []
    for name, result in zip(names, results, strict=True):
        line = f"{name:<{max(map(len, names))}}  dense {result.metric} {result.dense[result.metric]:.4f}"
        if result.sparse is not None:
            line += f"  sparse {result.sparse[result.metric]:.4f}"
        lines.append(line + (f"  {result.relative_drop:+.2%}" if result.relative_drop is not None else ""))
    return lines


def expand(overrides: list[str]) -> list[list[str]]:
    """The overrides of each job of a basic sweep, such as pattern=4x1,2:4 seed=0,1."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parsed = OverridesParser.create().parse_overrides(overrides)
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]
