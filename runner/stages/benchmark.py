"""Stage 8: time the saved model on this CPU, if `benchmark=cpu` asks for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from runner import models
from runner.config.experiment import Experiment
from runner.speed.settings import AUTO, CpuBenchmark
from runner.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from runner.speed.measure import Speed
    from runner.stages.context import RunContext

log = logging.getLogger(__name__)


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
    from runner.speed.measure import Grid, load, measure

    precisions = () if AUTO in asked.precisions else tuple(asked.precisions)
    longest = run.experiment.dataset.max_seq_length
    grid = Grid(asked.batch, asked.lengths(longest), asked.threads)
    log.info("timing the saved model on this CPU, about %.0f s", seconds(asked, longest))
    with run.cost.stage("benchmark"):
        try:
            model = load(run.folder.model, "the saved model")
            return measure(model, grid, precisions, asked.seconds)
        except Exception as error:  # hours of training do not depend on it
            log.warning("benchmark=cpu: the saved model could not be timed: %s: %s", type(error).__name__, error)
            return None


def seconds(asked: CpuBenchmark, longest: int) -> float:
    """Seconds that the timing takes at least, without the making of the runtimes."""
    return asked.seconds * asked.combinations(longest)
