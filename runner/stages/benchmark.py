"""Stage 8: time the saved model on this CPU, if `benchmark=cpu` asks for it; in a finished run, too."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from results import columns
from runner import models, tracking
from runner.config.experiment import Experiment
from runner.records import card
from runner.records.result import FILE, Result
from runner.speed.settings import AUTO, CpuBenchmark
from runner.system import files
from runner.system.errors import UserError
from runner.system.locks import exclusive, saving
from runner.system.process import log_to_file
from runner.tracking import Tracking
from runner.training.cost import Cost

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from runner.speed.measure import Speed
    from runner.stages.context import RunContext

log = logging.getLogger(__name__)

SUMMARY = "mlflow.note.content"
"""MLflow's tag of a run's description."""


def check_benchmark(experiment: Experiment, net: PreTrainedModel) -> None:
    """Refuse texts that are longer than the network has positions for; warn if the sparse runtime cannot run here.

    Raises:
        UserError: a length of `benchmark.length` is too long.
    """
    asked, most = experiment.benchmark, models.positions(net)
    if not isinstance(asked, CpuBenchmark):
        return
    from pruning.runtime import Unavailable, compiler

    longest = max(asked.lengths(experiment.dataset.max_seq_length))
    if most is not None and longest > most:
        raise UserError(
            f"benchmark.length={asked.length}: the model has positions for {most} tokens; give {most} or less"
        )
    try:
        has = compiler.precisions(compiler.library().instructions)
    except Unavailable as reason:
        log.warning("benchmark=cpu: the sparse runtime will not be timed: %s", reason)
        return
    lacking = [name for name in asked.precisions if name not in (AUTO, *has)]
    if lacking:
        log.warning("benchmark.precisions: the sparse runtime has no %s on this CPU", ", ".join(lacking))


def time_saved(run: RunContext) -> Speed | None:
    """Time the saved model; None with benchmark=none. No failure of a runtime ends the run."""
    asked = run.experiment.benchmark
    if not isinstance(asked, CpuBenchmark):
        return None
    with run.cost.stage("benchmark"):
        return _timed(run.folder.model, asked, run.experiment)


def time_finished(experiment: Experiment, result: Result) -> Result:
    """Time the model of a finished run that was not timed, and add the times to its MLflow run, its model card and
    result.json; nothing else of the run changes.

    Returns:
        The stored result, with the times if they were asked for.

    Raises:
        UserError: a length of `benchmark.length` is too long, MLflow does not answer, or another process has the run.
    """
    asked, folder = experiment.benchmark, Path(result.folder)
    if not isinstance(asked, CpuBenchmark):
        return result
    with exclusive(folder), saving(folder), log_to_file(folder):
        # Another process may have timed it, or uploaded it, since.
        result = replace(Result.load(folder / FILE) or result, folder=result.folder)
        if result.speed is not None:
            _note_other_settings(asked, result, experiment.dataset.max_seq_length)
            return result
        if result.mlflow_run is None:
            log.warning("benchmark=cpu: not timed, as the run is not uploaded to MLflow yet; repeat this once it is")
            return result
        config = models.read_config(str(folder / "model"), "the saved model")
        check_benchmark(experiment, models.skeleton(experiment.dataset.architecture, config))
        cost = Cost()
        with cost.stage("benchmark"):
            speed = _timed(folder / "model", asked, experiment)
        if speed is not None:
            result = replace(result, speed=speed)
            result.cost["seconds"] |= cost.seconds
            _add(speed, result, experiment.tracking)
    return result


def _add(speed: Speed, result: Result, where: Tracking) -> None:
    """Add times to what a finished run left; to result.json at last, so that after an error they are measured again."""
    file = Path(result.folder) / "model" / card.NAME
    texts = {columns.CARD: card.with_speed(file.read_text(encoding="utf-8"), speed)} if file.is_file() else {}
    tags = {columns.CPU: speed.machine.cpu, SUMMARY: f"```\n{result.summary}\n```"}
    seconds_spent = {columns.seconds("benchmark"): result.cost["seconds"]["benchmark"]}
    assert result.mlflow_run is not None
    tracking.add(where, result.mlflow_run, texts, tags, times(speed) | seconds_spent)
    for text in texts.values():
        files.atomic_write(file, text)
    result.save()


def times(speed: Speed) -> dict[str, float]:
    """Times of the saved model, and how many times faster than the best dense runtime each is, as metrics."""
    values = {}
    for timing in speed.timings:
        made_of = (timing.runtime, timing.precision, timing.batch, timing.length, timing.threads)
        values[columns.latency(*made_of)] = timing.ms
        values[columns.speedup(*made_of)] = timing.ratio_to_best_dense
    return values


def _note_other_settings(asked: CpuBenchmark, result: Result, longest: int) -> None:
    """Log that a finished run has times, but not those of all settings that are asked for."""
    assert result.speed is not None
    known = {(each.batch, each.length, each.threads) for each in result.speed.timings}
    if not known >= set(itertools.product(asked.batch, asked.lengths(longest), asked.threads)):
        log.warning("benchmark=cpu: this run was timed before, in other settings; python -m runner.benchmark %s times "
                    "it in any", result.folder)  # fmt: skip


def _timed(model: Path, asked: CpuBenchmark, experiment: Experiment) -> Speed | None:
    from runner.speed.measure import Grid, load, measure

    precisions = () if AUTO in asked.precisions else tuple(asked.precisions)
    longest = experiment.dataset.max_seq_length
    grid = Grid(asked.batch, asked.lengths(longest), asked.threads)
    log.info("timing the saved model on this CPU, about %.0f s", seconds(asked, longest))
    try:
        return measure(load(model, "the saved model"), grid, precisions, asked.seconds)
    except Exception as error:  # hours of training do not depend on it
        log.warning("benchmark=cpu: the saved model could not be timed: %s: %s", type(error).__name__, error)
        return None


def seconds(asked: CpuBenchmark, longest: int) -> float:
    """Seconds that the timing takes at least, without the making of the runtimes."""
    return asked.seconds * asked.combinations(longest)
