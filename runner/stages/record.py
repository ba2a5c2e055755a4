"""Stage 9: the result, written to the run's folder and to MLflow."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pruning import LayerReport
from results import columns
from runner import serving
from runner.data.scores import Scores
from runner.models.footprint import footprint
from runner.models.verify import Verification
from runner.records import card, runs
from runner.records.result import Result
from runner.stages.benchmark import SUMMARY, times
from runner.stages.prune import Pruned
from runner.system import files
from runner.tracking import Logging

if TYPE_CHECKING:
    from runner.speed.measure import Speed
    from runner.stages.context import RunContext

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What a run measured."""

    dense: Scores
    sparse: Scores | None = None
    """None with prune=false, as the fields below."""
    pruned: Pruned | None = None
    verification: Verification | None = None
    speed: Speed | None = None
    """None unless benchmark=cpu."""


def record(run: RunContext, outcome: Outcome) -> Result:
    """Put the result together; write result.json, pruning.json and the model card; log metrics and artifacts."""
    if outcome.pruned is not None:
        _describe_pruning(run, outcome)
    result = _result(run, outcome)
    folder = run.folder
    written = card.write(folder.model, run.experiment, run.origin, run.inputs.examples, result)
    run.tracker.text(written, columns.CARD)
    _log_artifacts(run, outcome)
    run.tracker.tags({columns.stage(stage): made for stage, made in result.stages.items()})
    if run.other_circumstances:
        run.tracker.tags({columns.OTHER_CIRCUMSTANCES: "\n".join(run.other_circumstances)})
    if result.speed is not None:
        run.tracker.tags({columns.CPU: result.speed.machine.cpu})
    run.tracker.metrics(_metrics(result, run.experiment.pattern.target) | _steps(run))
    run.tracker.tags({SUMMARY: f"```\n{result.summary}\n```"})
    _log_model(run)
    for note in result.notes:
        log.info("note: %s", note)
    result.save()
    return result


def _result(run: RunContext, outcome: Outcome) -> Result:
    experiment, dense, sparse, sources = run.experiment, outcome.dense, outcome.sparse, run.inputs.sources
    task, metric, weighed, drop = experiment.dataset, experiment.dataset.metric, None, None
    if sparse is not None:
        with run.cost.stage("save"):
            larger = sources.base.config if sources.chosen is not None else None
            weighed = footprint(run.folder.model, task.architecture, task.max_seq_length, larger)
        drop = columns.relative_drop(dense.metrics[metric], sparse.metrics[metric])
    made_by = runs.made_by(experiment, run.origin, (sources.base, *sources.others), run.inputs.examples)
    return Result(
        **run.origin.labels,
        seed=experiment.seed,
        metric=metric,
        dense=dense.metrics,
        sparse=sparse.metrics if sparse is not None else None,
        relative_drop=drop,
        verification=outcome.verification,
        identity=run.inputs.identity.run,
        group=run.inputs.identity.group,
        folder=str(run.folder.path),
        mlflow_run=run.tracker.run_id,
        cost=run.cost.plain(),
        footprint=weighed,
        stages=run.stages,
        notes=list(notes(run, outcome)),
        made_by=asdict(replace(made_by, others=run.other_circumstances)),
        speed=outcome.speed,
        unlabelled_examples=len(run.inputs.examples.unlabelled or ()),
        student_layers=sources.chosen,
        predicted=outcome.pruned.predicted if outcome.pruned is not None else None,
    )


def notes(run: RunContext, outcome: Outcome) -> Iterator[str]:
    """What so few evaluation examples cannot show."""
    dense, sparse, examples = outcome.dense, outcome.sparse, run.inputs.examples.evaluation
    count = len(dense.statistics or dense.by_example or examples)
    small = columns.few_examples(count)
    rare = columns.rare_classes(run.experiment.dataset.scored_counts(examples))
    yield from (note for note in (small, rare) if note is not None)
    same = sparse is not None and (dense.statistics, dense.by_example) == (sparse.statistics, sparse.by_example)
    if same and (dense.statistics or dense.by_example):
        yield columns.none_changes(count, None if dense.statistics else dense.metrics[run.experiment.dataset.metric])


def _metrics(result: Result, target: float) -> dict[str, float]:
    """The metrics of a whole run."""
    values = {columns.dense(name): value for name, value in result.dense.items()}
    verification, weighed = result.verification, result.footprint
    if result.sparse is not None and verification is not None and weighed is not None:
        values |= {columns.sparse(name): value for name, value in result.sparse.items()}
        values |= {
            columns.RATIO: verification.linear_ratio,
            columns.OVERALL_RATIO: verification.overall_ratio,
            columns.TARGET: target,
            columns.VIOLATIONS: verification.violations,
            columns.BYTES: weighed.bytes,
            columns.COMPRESSED: weighed.compressed_bytes,
            columns.PARAMETERS: weighed.parameters or 0,
            columns.PARAMETERS_DENSE: weighed.parameters_dense or 0,
            columns.MACS_DENSE: weighed.macs_dense,
            columns.MACS_SPARSE: weighed.macs_sparse,
        }
        once_cut = {columns.BYTES_CUT: weighed.bytes_cut, columns.PARAMETERS_CUT: weighed.parameters_cut,
                    columns.MACS_CUT: weighed.macs_cut}  # fmt: skip
        values |= {name: value for name, value in once_cut.items() if value is not None}
        if result.predicted is not None:
            values[columns.PREDICTED] = result.predicted.speedup
        if result.relative_drop is not None:
            values[columns.RELATIVE_DROP] = result.relative_drop
    return values | _costs(result.cost) | (times(result.speed) if result.speed is not None else {})


def _steps(run: RunContext) -> dict[str, float]:
    """The length of the training that prunes, as a metric."""
    data, experiment = run.inputs.data, run.experiment
    return {columns.STEPS: data.length(experiment.train).steps} if data is not None and experiment.prune else {}


def _costs(cost: Mapping[str, Any]) -> dict[str, float]:
    """A run's cost as metrics."""
    seconds = {columns.seconds(stage): value for stage, value in cost["seconds"].items()}
    others = {columns.PADDING: "padding", columns.THROUGHPUT: "tokens_per_second", columns.MEMORY: "peak_memory_bytes"}
    return seconds | {name: cost[key] for name, key in others.items() if cost[key] is not None}


def _log_artifacts(run: RunContext, outcome: Outcome) -> None:
    """Reports of layers and mask updates, scores by example, and the tag that lets the run into the table."""
    dense, sparse, pruned = outcome.dense, outcome.sparse, outcome.pruned
    if sparse is None or pruned is None:
        return
    run.tracker.text(json.dumps([_layer(layer) for layer in pruned.layers], indent=1), columns.LAYERS)
    run.tracker.text(json.dumps([asdict(update) for update in pruned.updates], indent=1), columns.UPDATES)
    if dense.by_example or dense.statistics:
        run.folder.save(columns.SCORES, paired(dense, sparse))
    run.tracker.tags({columns.VERIFIED: "true"})


def _log_model(run: RunContext) -> None:
    """The saved model in MLflow, unless tracking.log_model=none."""
    how = run.experiment.tracking.log_model
    if how is Logging.none:
        return
    values = serving.to_log(run.experiment.dataset, run.inputs.examples.evaluation, run.folder.model, how)
    if values is not None:
        run.tracker.model(values)


def paired(dense: Scores, sparse: Scores) -> dict[str, Any]:
    """Scores of both models by example: see `columns.SCORES`."""
    pairs: dict[str, Any] = {"id": list(dense.statistics or dense.by_example)}
    for name, scores in (("dense", dense), ("sparse", sparse)):
        pairs[name] = [scores.by_example[id] for id in pairs["id"]] if scores.by_example else []
    if dense.statistics:
        both = {"dense": dense, "sparse": sparse}
        numbers = {name: [scores.statistics[id] for id in pairs["id"]] for name, scores in both.items()}
        pairs["statistics"] = {"name": dense.statistic, **numbers}
    return pairs


def _layer(layer: LayerReport) -> dict[str, Any]:
    """A layer's report as plain values."""
    return {**asdict(layer), "sparsity": layer.sparsity}


def _describe_pruning(run: RunContext, outcome: Outcome) -> None:
    """Add `pruning.json` to the model's folder: what was done to the weights."""
    experiment, verification, pruned, sparse = run.experiment, outcome.verification, outcome.pruned, outcome.sparse
    assert verification is not None
    assert pruned is not None
    assert sparse is not None
    parts = {name: getattr(experiment, name) for name in ("criterion", "allocation", "schedule", "regularizer")}
    described = {
        "pattern": {"name": str(experiment.pattern), **asdict(experiment.pattern)},
        **{name: {"name": type(part).__name__, **asdict(part)} for name, part in parts.items()},
        "updates": {str(step): sparsity for step, sparsity in run.inputs.updates.items()},
        "linear_ratio": verification.linear_ratio,
        "overall_ratio": verification.overall_ratio,
        "left_out": verification.left_out,
        "sparsity": verification.sparsity,
        "violations": verification.violations,
        "dense": outcome.dense.metrics,
        "sparse": sparse.metrics,
        "layers": [_layer(layer) for layer in pruned.layers],
    }
    if (chosen := run.inputs.sources.chosen) is not None:
        described["student_layers"] = asdict(chosen)
    if pruned.predicted is not None:
        described["predicted"] = asdict(pruned.predicted)
    files.extend(run.folder.model, "pruning.json", json.dumps(described, indent=2, default=str) + "\n")
