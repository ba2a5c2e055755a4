"""Score a model on a dataset, in torch or by the sparse runtime."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.runtime import FastModel, accelerate
from pruning.runtime.linears import candidates
from pruning.runtime.model import why_dense
from results.columns import SPARSE, SPARSE_LINEARS
from runner import models
from runner.config import runtime
from runner.config.compose import compose_experiment
from runner.config.refusals import quoted
from runner.models.vocabulary import check_embeddings, check_reading
from runner.stages.score import score_once
from runner.system.commands import command_parser
from runner.system.errors import UserError
from runner.system.process import command, set_up_process
from runner.training.inference import score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from runner.config.experiment import Experiment
    from runner.config.runtime import RuntimeSettings
    from runner.data.examples import Examples
    from runner.data.scores import Scores
    from runner.models import Checkpoint

log = logging.getLogger("runner.evaluate")  # __name__ is __main__ here


@dataclass
class _Inputs:
    """What the model is scored on."""

    experiment: Experiment
    examples: Examples
    tokenizer: PreTrainedTokenizerBase


def parse(arguments: list[str]) -> tuple[str, list[str]]:
    """The model and the overrides of the command line."""
    squad = "ID dataset=squad dataset.max_eval_samples=1000"
    more = "runtime=sparse also takes threads=2. model.* and dataset.* are as for a run."
    parser = command_parser("evaluate", squad, "FOLDER dataset=demo runtime=sparse precision=int8", more=more)
    parser.add_argument(
        "model", metavar="FOLDER_OR_ID", help="folder of a saved model or of a run, or a model of the hub"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for a run: dataset=demo")
    given = parser.parse_args(arguments)
    if "=" in given.model and not Path(given.model).exists():
        raise UserError(
            f"{given.model}: the model comes first: python -m runner.evaluate FOLDER_OR_ID {given.model} ..."
        )
    return given.model, given.overrides


def main(arguments: list[str]) -> dict[str, Any]:
    """Compose the configuration for this model, score it, print and return the metrics. Also printed is what a setting
    chosen on these examples, such as SQuAD v2.0's threshold, would give: use it on a hold-out of train only."""
    given, overrides = parse(arguments)
    saved = models.saved_in(Path(given))
    path = given if saved == Path(given) else str(saved)  # a Path would take ./ away
    settings, overrides = runtime.split(overrides)
    experiment, _ = compose_experiment(["model=hub", f"model.path={quoted(path)}", *overrides])
    settings.check()
    set_up_process()
    task = experiment.dataset
    checkpoint = models.find(experiment.model.path, "model", experiment.model, experiment.model.revision)
    if not any(override.lstrip("+").startswith(("dataset=", "dataset.path=", "experiment=")) for override in overrides):
        raise UserError(f"{given}: which data is it scored on? Name them as for a run, such as dataset=squad")
    net = models.skeleton(task.architecture, checkpoint.config)
    if settings.runtime == "sparse" and (reason := why_dense(net)) and not candidates(net):
        raise _dense_only(path, reason)
    models.check_positions(net, checkpoint, task.max_seq_length)
    models.check_weights(task.architecture, checkpoint)
    check_embeddings(checkpoint, net)
    examples = task.read(train=False)
    task.configure(checkpoint.config, examples.evaluation, f"model {checkpoint.path}")
    check_reading(checkpoint, task, examples.evaluation, "evaluation")
    inputs = _Inputs(experiment, examples, models.load_tokenizer(checkpoint))
    scores, about = score_sparse(inputs, checkpoint, settings) if settings.runtime == "sparse" else (None, {})
    scores = scores or _score(inputs, models.load(task.architecture, checkpoint), "Scoring")
    shown = {"model": path, "examples": len(examples.evaluation), **scores.metrics, **about}
    print(json.dumps(shown | ({"if_chosen_on_these_examples": scores.choosing} if scores.choosing else {}), indent=2))
    return scores.metrics


def _score(inputs: _Inputs, model: Any, title: str) -> Scores:
    task, cache = inputs.experiment.dataset, Path(inputs.experiment.cache_dir) / "features"
    return score(model, inputs.tokenizer, task, inputs.examples.evaluation, cache, title)


def score_sparse(inputs: _Inputs, checkpoint: Checkpoint, settings: RuntimeSettings) -> tuple[Scores, dict[str, Any]]:
    """Scores by the sparse runtime, and a comparison with those of torch in float32, which the cache may have.

    Raises:
        UserError: the model would run dense, and torch would be scored twice.
    """
    fast = accelerate(models.load(inputs.experiment.dataset.architecture, checkpoint), settings.precision,
                      settings.threads)  # fmt: skip
    if fast.report.runtime not in (SPARSE, SPARSE_LINEARS):
        raise _dense_only(checkpoint.path, fast.report.reason)
    log.info("runtime: %s", fast.report)
    sparse = _score(inputs, fast, "Scoring by the sparse runtime")
    dense = score_once(inputs, checkpoint)
    difference = {name: value - dense.metrics[name] for name, value in sparse.metrics.items()}
    return sparse, {
        "runtime": described(fast, settings),
        "torch": dense.metrics,
        "difference": difference,
        **changes(dense.predictions, sparse.predictions),
    }


def described(fast: FastModel, settings: RuntimeSettings) -> dict[str, Any]:
    """What computed the scores, for the record; `layers` has the precision of each kind of layer if they differ."""
    report = asdict(fast.report)
    if fast.report.runtime == SPARSE:
        for name in ("reason", "swapped", "dense"):  # of single layers
            del report[name]
    by_layer = {"layers": settings.precision} if isinstance(settings.precision, dict) else {}
    return {"name": report.pop("runtime"), **report, **by_layer, "threads": settings.threads}


def changes(dense: dict[str, Any], sparse: dict[str, Any]) -> dict[str, Any]:
    """How many answers differ: texts, classes, tags of words; of numbers, by how much they do on average."""
    pairs = [(dense[id], answer) for id, answer in sparse.items()]
    if pairs and isinstance(pairs[0][1], float):
        return {"mean_change": sum(abs(old - new) for old, new in pairs) / len(pairs)}
    words = [(old, new) if isinstance(new, list) else ([old], [new]) for old, new in pairs]
    return {
        "answers": sum(len(new) for _, new in words),
        "changed": sum(a != b for old, new in words for a, b in zip(old, new, strict=True)),
    }


def _dense_only(path: str, reason: str) -> UserError:
    return UserError(f"runtime=sparse: {path} would run dense in torch: {reason}; leave out runtime=sparse to score it")


if __name__ == "__main__":
    command(main)
