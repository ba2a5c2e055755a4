"""Stage 7: score the dense and the pruned model with the same evaluation."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from results import columns
from runner import models
from runner.data.task import Scores
from runner.system import files
from runner.system.circumstances import circumstances
from runner.system.fingerprint import SHORT, hash_json
from runner.system.versions import VERSIONS
from runner.training.inference import score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from runner.config.experiment import Experiment
    from runner.data.task import Examples
    from runner.stages.context import RunContext


class ToScore(Protocol):
    """What a model is scored on: `Inputs` of a run, or of `runner.evaluate`."""

    experiment: Experiment
    examples: Examples
    tokenizer: PreTrainedTokenizerBase


def score_dense(run: RunContext, dense: models.Checkpoint) -> Scores:
    """Scores of the dense model, shared by the runs of a sweep."""
    with run.cost.stage("evaluate_dense"):
        scores = score_once(run.inputs, dense)
    run.stages |= {"finetune": dense.weights, "evaluate_dense": digest(scores)}
    run.folder.save(columns.DENSE_PREDICTIONS, scores.predictions)
    return scores


def score_sparse(run: RunContext) -> Scores:
    """Scores of the pruned model, loaded again from its file."""
    inputs, task = run.inputs, run.experiment.dataset
    with run.cost.stage("evaluate"):
        checkpoint = models.find(str(run.folder.model), "the saved model", run.experiment.model)
        model = models.load(task.architecture, checkpoint)
        cache = Path(run.experiment.cache_dir) / "features"
        scores = score(model, inputs.tokenizer, task, inputs.examples.evaluation, cache, "Scoring sparse")
    run.stages["evaluate"] = digest(scores)
    run.folder.save(columns.PREDICTIONS, scores.predictions)
    return scores


def score_once(inputs: ToScore, checkpoint: models.Checkpoint) -> Scores:
    """Scores of a checkpoint, from the cache if it was scored on these examples before; of several processes that ask
    at once, one scores and the others wait."""
    task, examples, cache = inputs.experiment.dataset, inputs.examples, Path(inputs.experiment.cache_dir)
    made_of = [VERSIONS["prepare"], VERSIONS["evaluate"], checkpoint.fingerprint, examples.evaluation_fingerprint]
    made_of += [task.settings(), task.score_settings(), circumstances()]  # both models are scored under the same
    made_of += [field.name for field in fields(Scores)]
    key = hash_json(made_of, SHORT, sort_keys=True)

    def read(file: Path) -> Scores | None:
        values = files.read_json(file)
        return None if values is None else Scores(**values)

    def make(file: Path) -> Scores:
        model = models.load(task.architecture, checkpoint)
        scores = score(model, inputs.tokenizer, task, examples.evaluation, cache / "features", "Scoring dense")
        files.write_json(file, asdict(scores))
        return scores

    return files.make_once(cache / "scores" / f"{key}.json", read, make, "scores the same dense model")


def digest(scores: Scores) -> str:
    """Hash of a model's answers and scores."""
    return hash_json(asdict(scores), sort_keys=True)
