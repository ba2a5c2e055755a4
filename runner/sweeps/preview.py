"""What a sweep would do, without doing it: `-m ... dry_run=true`. One line for the runs that differ in their seed."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from pruning import PruningError
from runner.config.experiment import Experiment, Origin
from runner.records.identity import Identity
from runner.speed.settings import CpuBenchmark
from runner.stages import benchmark
from runner.stages.inputs import identity_of
from runner.stages.prepare import Inputs, folder_of, resolve, run_name
from runner.stages.timing import duration, timed, tokens
from runner.sweeps.jobs import command_line
from runner.system import files
from runner.system.disk import human_bytes
from runner.system.errors import UserError
from runner.system.process import message
from runner.system.progress import Progress
from runner.system.text_tables import aligned

log = logging.getLogger(__name__)

LABELLED = ("model", "dataset", "pattern", "seed", "model.path")
"""Keys that labels show."""
_HEADER = ("model", "dataset", "pattern", "seeds", "finished", "dense models", "time", "disk")


@dataclass
class Job:
    """A job of the sweep."""

    overrides: list[str]
    experiment: Experiment
    origin: Origin


@dataclass
class Row:
    """Jobs that differ in their seed only, and what is missing of them."""

    names: tuple[str, ...]
    seeds: list[int] = field(default_factory=list)
    finished: int = 0
    dense: list[bool] = field(default_factory=list)
    """One for each dense model that is to be fine-tuned: True if the cache has it."""
    seconds: float = 0.0
    bytes: int = 0

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        dense = f"{sum(self.dense)} of {len(self.dense)} cached" if self.dense else "given"
        seeds = ",".join(map(str, self.seeds)) if len(self.seeds) < 6 else f"{len(self.seeds)} seeds"
        done = self.finished == len(self.seeds)
        return (*self.names, seeds, f"{self.finished} of {len(self.seeds)}", dense,
                "-" if done else duration(self.seconds), "-" if done else human_bytes(self.bytes))  # fmt: skip


class Preview:
    """Looks at one job after the other; what they share is read, timed and counted once."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.common = set.intersection(*(set(job.overrides) for job in jobs))
        self.rows: dict[tuple[str, ...], Row] = {}
        self.errors: list[str] = []
        self._inputs: dict[tuple[str, ...], Inputs] = {}
        self._seconds_per_token: dict[str, float] = {}
        self._counted: set[Path] = set()

    def look(self) -> None:
        """Look at all jobs."""
        refused: set[tuple[str, ...]] = set()
        with Progress("Looking at the runs", len(self.jobs), remaining=False) as progress:
            for job in self.jobs:
                key = tuple(each for each in job.overrides if not each.startswith("seed="))
                if key not in refused:
                    try:
                        self._add(key, job)
                    except (UserError, PruningError) as error:
                        refused.add(key)
                        command = [each for each in job.overrides if not each.startswith("dry_run=")]
                        self.errors.append(f"{command_line(command)}\n  {message(error)}")
                progress.update()

    def _add(self, key: tuple[str, ...], job: Job) -> None:
        if key not in self._inputs:
            self._inputs[key] = resolve(job.experiment, job.origin, reuse=False)
        inputs, labels, experiment = self._inputs[key], job.origin.labels, job.experiment.resolved()
        identity = identity_of(experiment, inputs.sources, inputs.examples)
        other = [o for o in job.overrides if o not in self.common and o.split("=")[0] not in LABELLED]
        names = (labels["model"], labels["dataset"], ", ".join([labels["pattern"], *other]))
        row = self.rows.setdefault(key, Row(names))
        row.seeds.append(experiment.seed)
        dense = Path(experiment.cache_dir) / "dense" / identity.dense
        if experiment.model.finetuned is None:
            row.dense.append(files.is_intact(dense))
        folder = folder_of(experiment, run_name(labels, experiment.seed), identity)
        if files.read_json(folder / "result.json") is not None:
            row.finished += 1
            return
        row.seconds += self._seconds(experiment, inputs, identity, dense)
        row.bytes += self._bytes(experiment, inputs, dense)
        self._counted.add(dense)

    def _seconds(self, experiment: Experiment, inputs: Inputs, identity: Identity, dense: Path) -> float:
        """Seconds of the trainings and the benchmark of a run."""
        asked, longest = experiment.benchmark, experiment.dataset.max_seq_length
        total = benchmark.seconds(asked, longest) if isinstance(asked, CpuBenchmark) else 0.0
        if inputs.data is None:
            return total
        trainings = [inputs.experiment.train] if experiment.trains_student else []
        if experiment.model.finetuned is None and dense not in self._counted and not files.is_intact(dense):
            trainings.append(inputs.experiment.finetune)
        if not trainings:
            return total
        if identity.control not in self._seconds_per_token:
            stats = timed(inputs, inputs.data, trainings[0])
            self._seconds_per_token[identity.control] = stats.seconds / stats.tokens
        return total + self._seconds_per_token[identity.control] * sum(
            tokens(inputs, training) for training in trainings
        )

    def _bytes(self, experiment: Experiment, inputs: Inputs, dense: Path) -> int:
        """Bytes that a run leaves, those that others share once; not the checkpoints of a fine-tuning, which go."""
        shared = [need for need in inputs.disk_needs if need.folder.is_relative_to(experiment.cache_dir)]
        own = sum(need.bytes for need in inputs.disk_needs if need not in shared)
        if dense in self._counted:
            return own
        have = {inputs.dense_folder} if files.is_intact(dense) else set()
        return own + sum(n.bytes for n in shared if n.folder not in have and n.folder.suffix != ".work")


def show(jobs: list[Job]) -> None:
    """Print the table and what it adds up to.

    Raises:
        UserError: some jobs would be refused.
    """
    preview = Preview(jobs)
    preview.look()
    rows = list(preview.rows.values())
    if rows:
        print(*aligned([_HEADER, *(row.cells for row in rows)]), sep="\n")
        print(f"\n{total(rows, Path(jobs[0].experiment.output_dir))}", flush=True)
    for error in preview.errors:
        log.error("%s", error)
    if preview.errors:
        raise UserError(
            f"{len(preview.errors)} of these would be refused, whatever the seed; correct or leave them out"
        )
    log.info("nothing was trained (dry_run=true)")


def total(rows: list[Row], output_dir: Path) -> str:
    """What the rows add up to, in a line."""
    runs, finished = sum(len(row.seeds) for row in rows), sum(row.finished for row in rows)
    place = next(folder for folder in (output_dir.absolute(), *output_dir.absolute().parents) if folder.exists())
    took = duration(sum(row.seconds for row in rows))
    most, free = sum(row.bytes for row in rows), shutil.disk_usage(place).free
    return (
        f"{runs} runs, {finished} finished. The others take about {took} one after another on this machine as busy as "
        "it is now,\nwithout scoring and teachers, and at most "
        f"{human_bytes(most)} of disk ({human_bytes(free)} free)."
    )
