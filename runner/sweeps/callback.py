"""Hydra's callback for sweeps: every job is checked before the first is launched; one MLflow run is their parent."""

import atexit
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from results import columns
from results.safe_text import printable
from runner import tracking
from runner.config.compose import as_typed, override_parser
from runner.config.keys import check_key
from runner.config.sweep import Composer
from runner.sweeps import preview
from runner.sweeps.jobs import Outcome, Place, command_line
from runner.system import disk, files, provenance, ranks
from runner.system.device import keep_bf16_speedup
from runner.system.errors import UserError
from runner.system.fingerprint import SHORT, hash_json
from runner.system.locks import exclusive, saving
from runner.system.process import SWEEP_FOLDER, exit_status, set_up_process
from runner.system.progress import Progress
from runner.system.text_tables import aligned

log = logging.getLogger(__name__)

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class JobsFailed(Exception):
    """The error of a sweep in MLflow if some of its jobs failed."""


class Sweep(Callback):
    """Hydra's callback, named in conf/config.yaml."""

    def __init__(self) -> None:
        self.open = ExitStack()
        self.jobs: list[list[str]] | None = None
        self.folder = Path()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Compose and convert all jobs; a mistake in any stops the sweep before job 0."""
        _ending(lambda: self._begin(config))

    def _begin(self, config: DictConfig) -> None:
        if ranks.world_size() > 1:
            raise UserError(
                "a sweep (-m) runs in one process, not in the ranks of torchrun or accelerate launch: start it without "
                "them and let its jobs start ranks of their own, with hydra.launcher.ranks=N"
            )
        set_up_process()
        overrides = as_typed(config.hydra)
        parsed = override_parser().parse_overrides(overrides)
        varied = [o.input_line or "" for o in parsed if o.is_sweep_override()]
        swept = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        if config.hydra.sweeper._target_ == BASIC:
            checked = self.jobs = expand([*swept, *overrides])
            if not checked:
                raise UserError(f"{' '.join(varied)}: no option matches, so this sweep has no run")
        else:  # it chooses the jobs one by one: what they have in common is checked
            checked = [[o.input_line or "" for o in parsed if not o.is_sweep_override()]]
            for given in [*swept, *varied]:
                check_key(given)
        jobs = composed(checked)
        for job in jobs:
            experiment = job.experiment.resolved()
            if self.jobs is None and not experiment.dataset.holdout:
                raise UserError(
                    "this sweeper chooses by the score, and dataset.holdout=0 takes it on the set that the table "
                    "reports; set dataset.holdout=0.1 to choose on a part of train"
                )
        for key in ("output_dir", "cache_dir"):
            disk.check_writable(key, getattr(experiment, key))
        if any(job.experiment.dry_run for job in jobs):
            self._preview(jobs)
        if self.jobs is not None:
            log.info("a sweep of %d runs, all configurations checked", len(self.jobs))
        tracking.check(experiment.tracking, waits=False)
        keep_bf16_speedup(Path(experiment.cache_dir))
        atexit.register(self._abandon)
        identity = hash_json(checked, SHORT)
        self.folder = (Path(experiment.output_dir) / "sweeps" / identity).resolve()
        self.open.enter_context(saving(self.folder))
        self.open.enter_context(exclusive(self.folder))
        self.parent = self.open.enter_context(
            tracking.sweep(experiment.tracking, " ".join(varied), provenance.command_line(), identity, self.folder)
        )
        if self.jobs is not None:
            self.parent.params(labels(jobs))
        for number in self._numbers():
            Place(self.folder, number).clear()
        os.environ[SWEEP_FOLDER] = str(self.folder)

    def _preview(self, jobs: list[preview.Job]) -> None:
        """Show what the sweep would do, and end this process."""
        if self.jobs is None:
            raise UserError("dry_run=true: this sweeper chooses its runs one by one; leave -m and the sweeper out")
        if not all(job.experiment.dry_run for job in jobs):
            raise UserError("dry_run=true,false: a sweep is shown or done; give one value")
        preview.show(jobs)
        sys.exit(0)

    def _abandon(self) -> None:
        """Close the MLflow run of a sweep that a signal ended: Hydra does not call on_multirun_end then."""
        with suppress(BaseException):
            self.open.__exit__(KeyboardInterrupt, KeyboardInterrupt("the sweep was interrupted"), None)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Log the results and the failures, and close the parent run."""
        _ending(self._end)

    def _end(self) -> None:
        outcomes = self._outcomes()
        done = [outcome for outcome in outcomes if outcome.folder is not None]
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        lines = overview(done)
        if lines:
            print(*lines, sep="\n", flush=True)
        if failed:
            each = "".join(f"\n  {command_line(o.overrides)}\n    {o.error}" for o in failed)
            log.error("%d of %d runs failed:%s", len(failed), len(outcomes), each)
            log.error("These commands repeat them one by one; the sweep's own command runs all that is missing.")
        lines += [f"failed: {' '.join(outcome.overrides)}: {outcome.error}" for outcome in failed]
        summary = "\n".join(lines)
        self.parent.text(f"{summary}\n", "summary.txt")
        self.parent.tags({"mlflow.note.content": f"`{provenance.command_line()}`\n```\n{summary}\n```"})
        if not failed:
            self.open.close()
            return
        error = JobsFailed(f"{len(failed)} of {len(outcomes)} runs failed")
        with suppress(JobsFailed):
            self.open.__exit__(JobsFailed, error, None)
        sys.exit(1)

    def _outcomes(self) -> list[Outcome]:
        """The outcomes of all jobs, in their order."""
        by_number = {number: Place(self.folder, number).read() for number in self._numbers()}
        if self.jobs is None:
            return [outcome for outcome in by_number.values() if outcome is not None]
        return [by_number.get(i) or Outcome(job, "it has no outcome") for i, job in enumerate(self.jobs)]

    def _numbers(self) -> list[int]:
        """The numbers of the jobs that have an outcome or a log."""
        return sorted({int(file.stem) for file in self.folder.glob("*.*") if file.stem.isdigit()})


def _ending(work: Callable[[], None]) -> None:
    """Hydra only warns when a callback raises, so turn errors into SystemExit."""
    try:
        status = exit_status(work)
    except Exception:
        print(printable(traceback.format_exc()), end="", file=sys.stderr)
        status = 1
    if status:
        sys.exit(status)


def composed(jobs: Sequence[list[str]]) -> list[preview.Job]:
    """The configurations of jobs, given by their overrides."""
    composer = Composer()
    with Progress("Composing", len(jobs)) as progress:
        made = []
        for overrides in jobs:
            made.append(preview.Job(overrides, *composer(overrides)))
            progress.update()
    return made


def labels(jobs: Sequence[preview.Job]) -> dict[str, str]:
    """Params that label a sweep as its runs are labelled: each has the values of all jobs, such as "4x1, 2:4"."""
    each = [{**job.origin.labels, columns.SEED: job.experiment.seed} for job in jobs]
    return {key: ", ".join(dict.fromkeys(str(values[key]) for values in each)) for key in each[0]}


def overview(outcomes: list[Outcome]) -> list[str]:
    """An aligned line for each run that succeeded: its labels, the overrides that differ, and its scores."""
    common = set.intersection(*(set(outcome.overrides) for outcome in outcomes)) if outcomes else set()
    lines = []
    for outcome in outcomes:
        r = files.read_json(Path(str(outcome.folder)) / "result.json")
        if r is None:
            continue
        other = [o for o in outcome.overrides if o not in common and o.split("=")[0] not in preview.LABELLED]
        metric, dense, sparse, drop = r["metric"], r["dense"], r["sparse"], r["relative_drop"]
        lines.append((
            ", ".join([f"{r['model']} on {r['dataset']}, {r['pattern']}, seed {r['seed']}", *other]),
            f"dense {columns.written(metric)} {dense[metric]:.4f}",
            "" if sparse is None else f"sparse {sparse[metric]:.4f}",
            "" if drop is None else f"{drop:+.2%}",
        ))  # fmt: skip
    return aligned(lines)


def expand(overrides: list[str]) -> list[list[str]]:
    """The overrides of each job of a basic sweep, such as pattern=4x1,2:4 seed=0,1."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parsed = override_parser().parse_overrides(overrides)
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]
