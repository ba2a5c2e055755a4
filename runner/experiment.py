"""One run, the page to read first: dense model, prune while distilling, verify the file, score both, time, record.

Each line of `run` is a stage; `runner/stages/` has one file for each, in this order.
"""

from __future__ import annotations

import logging

from runner.config.experiment import Experiment, Origin
from runner.records.result import Result
from runner.stages.benchmark import time_finished, time_saved
from runner.stages.context import RunContext
from runner.stages.finetune import finetune, keep_dense
from runner.stages.prepare import AlreadyFinished, resolve
from runner.stages.prune import prune, verify_saved
from runner.stages.record import Outcome, record
from runner.stages.score import score_dense, score_sparse
from runner.stages.teacher import teach
from runner.system import ranks
from runner.system.process import set_up_process

log = logging.getLogger(__name__)


def run(experiment: Experiment, origin: Origin) -> Result:
    """Run one experiment, or return its stored result if it finished before.

    Under a launcher only rank 0 is here: the other ranks join in the trainings (`ranks.on_all_ranks`).

    Raises:
        UserError, PruningError: what the run cannot do, before training wherever it can be known before.
    """
    ranks.on_all_ranks(set_up_process)
    try:
        with RunContext.open(resolve(experiment, origin)) as run:  # refuses; locks the folder; opens MLflow
            dense = finetune(run)
            outcome = Outcome(score_dense(run, dense))
            if experiment.prune:
                outcome.pruned = prune(run, dense, teach(run, dense))
                outcome.verification = verify_saved(run, outcome.pruned)
                outcome.sparse = score_sparse(run)
            else:
                keep_dense(run, dense)
            outcome.speed = time_saved(run)
            result = record(run, outcome)
    except AlreadyFinished as stored:
        return time_finished(experiment, stored.result)
    return result
