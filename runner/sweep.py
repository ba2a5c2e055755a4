"""Around a sweep: every job is checked before the first is launched, and one MLflow run is their parent."""

import logging
import sys
import traceback
from contextlib import ExitStack
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from runner import config as configuration
from runner import tracking
from runner.edge import guarded, message
from runner.experiment import set_up_process, settled

log = logging.getLogger(__name__)


class Sweep(Callback):
    """Hydra's callback, named in conf/config.yaml."""

    def __init__(self) -> None:
        self.open = ExitStack()
        self.jobs, self.failed = 0, []

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
        set_up_process()
        swept = config.hydra.sweeper.get("params") or {}
        jobs = expand([*(f"{key}={value}" for key, value in swept.items()), *config.hydra.overrides.task])
        for overrides in jobs:
            experiment = settled(configuration.compose_experiment(overrides)[0])
        log.info("a sweep of %d runs, all configurations checked", len(jobs))
        self.jobs = len(jobs)
        self.open.enter_context(tracking.sweep(experiment.tracking, tracking.command_line()))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Report a failed job at once, not when the sweep ends."""
        if job_return.status is JobStatus.FAILED and config.hydra.mode.name == "MULTIRUN":
            error = job_return._return_value
            text = message(error)
            self.failed.append(" ".join(config.hydra.overrides.task))
            log.error("failed: %s\n%s", " ".join(config.hydra.overrides.task), text or "see the traceback",
                      exc_info=None if text else error)  # fmt: skip

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Close the parent run, and say what is missing."""
        self.open.close()
        if self.failed:
            lines = "".join(f"\n  {overrides}" for overrides in self.failed)
            log.error("%d of %d runs failed:%s", len(self.failed), self.jobs, lines)
            log.error("The same command runs only what is missing.")


def expand(overrides: list[str]) -> list[list[str]]:
    """The overrides of each job of a basic sweep, such as pattern=4x1,2:4 seed=0,1."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parsed = OverridesParser.create().parse_overrides(overrides)
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]
