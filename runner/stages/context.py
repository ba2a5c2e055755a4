"""The run in progress: what it started from, its folder, its MLflow run, its cost, and what its stages made."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runner import tracking
from runner.config.experiment import Experiment, Origin
from runner.records.folder import RunFolder
from runner.records.result import stored
from runner.runs import FAILURE, note_failure
from runner.stages.announce import announce, log_start, tags
from runner.stages.prepare import AlreadyFinished, Inputs, finished
from runner.system.circumstances import Span, others
from runner.system.device import keep_bf16_speedup
from runner.system.errors import writing_database
from runner.system.locks import exclusive, saving
from runner.system.process import log_to_file
from runner.tracking import Tracker
from runner.training.cost import Cost

log = logging.getLogger(__name__)


@dataclass
class RunContext:
    """The run in progress; the stages take it and add to it."""

    inputs: Inputs
    folder: RunFolder
    tracker: Tracker
    stages: dict[str, str] = field(default_factory=dict)
    """A hash of each stage's output, in the order of the stages."""
    other_circumstances: list[str] = field(default_factory=list)
    """Parts that were made under other circumstances than those of this process: before an interruption, or by the
    process that filled the cache."""

    @property
    def experiment(self) -> Experiment:
        """What the run is asked to do."""
        return self.inputs.experiment

    @property
    def origin(self) -> Origin:
        """What people typed."""
        return self.inputs.origin

    @property
    def cost(self) -> Cost:
        """Seconds, tokens and memory so far."""
        return self.inputs.cost

    def note_circumstances(self, what: str, spans: Sequence[Span]) -> None:
        """Note, and show, which spans of a computation had other circumstances than those of this process."""
        for line in others(what, spans):
            log.warning("made under other circumstances: %s", line)
            self.other_circumstances.append(line)

    @classmethod
    @contextmanager
    def open(cls, inputs: Inputs) -> Iterator[RunContext]:
        """Lock the run's folder, open its MLflow run and log what is known before training.

        Raises:
            AlreadyFinished: another process finished this very run while this one waited for it.
            UserError: another process runs it at this moment, or folder or store cannot be written.
        """
        experiment, folder = inputs.experiment, inputs.folder
        with saving(folder), exclusive(folder) as waited:
            if waited:
                candidates = [] if experiment.force else stored(Path(experiment.output_dir), inputs.name)
                if result := finished(candidates, inputs.identity, experiment.tracking):
                    raise AlreadyFinished(result)
            if experiment.force:  # else the run would resume from its last checkpoint
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                (folder / tracking.STEPS).unlink(missing_ok=True)
            (folder / FAILURE).unlink(missing_ok=True)
            keep_bf16_speedup(Path(experiment.cache_dir))
            title = inputs.name if inputs.origin.repeats is None else f"{inputs.name} (reproduction)"
            with (
                writing_database(experiment.tracking.shown),
                tracking.start(experiment.tracking, title, tags(inputs), resumes=True) as tracker,
                log_to_file(folder),
            ):
                run = cls(inputs, RunFolder(folder, tracker), tracker, {"prepare": inputs.digest})
                announce(inputs)
                log_start(inputs, run.folder)
                try:
                    yield run
                except Exception as error:
                    note_failure(folder, error)
                    raise
