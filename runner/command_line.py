"""One run or a sweep: Hydra composes the configuration of each from the command line."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runner.config import plugins
from runner.config.compose import as_typed, chosen_options, load, register
from runner.config.refusals import explained
from runner.sweeps import jobs, launchers
from runner.system import ranks
from runner.system.process import RESUMES, exit_status

if TYPE_CHECKING:
    from runner.records.result import Result

log = logging.getLogger(__name__)

os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to exit_status, which shows them


@hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")
def job(composed: DictConfig) -> float | None:
    """One run, in this process or in one of a launcher's. In a sweep, its score."""
    from runner.experiment import run
    from runner.sweeps.callback import overview

    register()
    hydra_config = HydraConfig.get()
    overrides = as_typed(hydra_config)
    here = hydra_config.mode is RunMode.MULTIRUN

    def once() -> Result:
        ranks.check_launcher()
        choices = chosen_options(hydra_config.runtime.choices)
        result = run(*load(OmegaConf.create(composed), choices, overrides))
        if not here:  # a sweep ends with the results of all its jobs
            print(result.summary, flush=True)
        return result

    def looked_at() -> None:
        from runner.dry_run import show

        show(*load(OmegaConf.create(composed), chosen_options(hydra_config.runtime.choices), overrides))

    if composed.get("dry_run"):
        sys.exit(exit_status(looked_at))
    place = jobs.place(hydra_config.job.num if here else None)
    if place is None:
        if status := exit_status(once, RESUMES):
            sys.exit(status)
        return None
    outcome = place.attempt(once, overrides)
    if outcome.error is not None:
        where = f" ({place.log})" if here else ""
        print(f"job {place.number} failed: {outcome.error}{where}", file=sys.stderr)
        if not here:
            sys.exit(1)
    elif here:
        log.info("%s", *overview([outcome]))
    return float("nan") if outcome.score is None else outcome.score  # to raise would end the whole sweep


def main() -> int:
    """Run the command line; the exit status is the process's. Of several ranks, the first does."""
    if ranks.rank():
        return exit_status(ranks.follow)
    return ranks.lead(lambda: exit_status(_explained_job, RESUMES))


def _explained_job() -> None:
    plugins.load_asked(sys.argv[1:])
    register()
    launchers.register()
    with explained(sys.argv[1:]):
        job()
