"""What is shown and logged before anything is trained."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import columns
from runner import models
from runner.config.compose import BEST, NAMED_BY_RECIPE
from runner.config.experiment import GROUPS, Experiment, Origin
from runner.config.plugins import source_of, sources
from runner.data import slips
from runner.data.examples import Examples
from runner.data.layout import shown
from runner.data.task import Dataset
from runner.records.folder import RunFolder
from runner.stages.prepare import Inputs
from runner.system import disk, ranks
from runner.system.device import Precision, bf16_speedup, device
from runner.system.process import ONCE
from runner.tracking import Tracker

if TYPE_CHECKING:
    from runner.training.training_data import TrainingData

log = logging.getLogger(__name__)


def tags(inputs: Inputs) -> dict[str, str]:
    """The tags of the run in MLflow."""
    experiment, identity = inputs.experiment, inputs.identity
    return {
        **_kind(experiment, inputs.origin),
        columns.IDENTITY: identity.run,
        columns.FOLDER: str(inputs.folder.resolve()),
        columns.GROUP: identity.group,
        columns.DENSE_MODEL: identity.dense,
        columns.CONTROL: identity.control,
        columns.BUDGET: identity.budget,
        columns.METRIC: experiment.dataset.metric,
        "ranks": str(ranks.world_size()),
        "dataset.source": inputs.examples.source,
        "recipe": experiment.recipe.name,
        **({columns.STUDENT_LAYERS: str(inputs.sources.chosen)} if inputs.sources.chosen is not None else {}),
        **_counts(inputs),
    }


def _kind(experiment: Experiment, origin: Origin) -> dict[str, str]:
    """The kind of run, for the table: a reproduction is no further seed."""
    if origin.repeats is not None:
        return {columns.KIND: columns.REPRODUCTION, columns.REPRODUCES: origin.repeats}
    return {columns.KIND: columns.PRUNED if experiment.prune else columns.DENSE_ONLY}


def _counts(inputs: Inputs) -> dict[str, str]:
    """Numbers of examples that the run uses, and that the official splits have."""
    examples, origin, task = inputs.examples, inputs.origin, inputs.experiment.dataset
    counts = {columns.TRAIN_EXAMPLES: len(examples.train) if examples.train is not None else None,
              columns.UNLABELLED_EXAMPLES: len(examples.unlabelled) if examples.unlabelled is not None else None,
              columns.EVALUATION_EXAMPLES: len(examples.evaluation)}  # fmt: skip
    if origin.labels["dataset"] == origin.choices["dataset"]:  # else it is other data than the option's
        counts |= {columns.OFFICIAL_TRAIN: task.official_train, columns.OFFICIAL_EVALUATION: task.official_evaluation}
    counts |= {columns.RARE_CLASSES: columns.rare_classes(task.scored_counts(examples.evaluation))}
    return {key: str(count) for key, count in counts.items() if count is not None}


def log_start(inputs: Inputs, folder: RunFolder) -> None:
    """Log configuration, params and datasets."""
    origin = inputs.origin
    folder.save(columns.CONFIG, origin.yaml)
    folder.tracker.params(params(inputs.experiment, origin, inputs.sources.base))
    folder.tracker.text("\n".join(origin.overrides) + "\n", columns.OVERRIDES)
    _log_datasets(folder.tracker, inputs)


def _log_datasets(tracker: Tracker, inputs: Inputs) -> None:
    """The datasets, as MLflow's inputs of the run."""
    examples, name = inputs.examples, inputs.origin.labels["dataset"]
    if examples.train is not None:
        tracker.input(name, examples.train_fingerprint, examples.source, "training", len(examples.train))
    if examples.unlabelled is not None:
        source = inputs.experiment.dataset.unlabelled or ""
        tracker.input(name, examples.unlabelled_fingerprint, source, "unlabelled", len(examples.unlabelled))
    split = "choosing" if inputs.experiment.dataset.holdout else "evaluation"
    tracker.input(name, examples.evaluation_fingerprint, examples.source, split, len(examples.evaluation))


def params(experiment: Experiment, origin: Origin, base: models.Checkpoint) -> dict[str, Any]:
    """Params of the run in MLflow: the few dozen that people compare by, and every key that is not at its default."""
    train = experiment.train if experiment.prune else experiment.finetune
    section = "train" if experiment.prune else "finetune"
    out: dict[str, Any] = {**origin.labels, columns.SEED: experiment.seed}
    groups = ("criterion", "allocation", "schedule", "regularizer", "distill", "recipe")
    out |= {group: origin.choices[group] for group in groups if group in origin.choices and experiment.prune}
    for key in ("learning_rate", "per_device_train_batch_size", "num_train_epochs", "weight_decay", "precision"):
        out[f"{section}.{key}"] = train.plain()[key]
    if experiment.prune:
        out["pattern.target_sparsity"] = experiment.pattern.target
        out |= {f"distill.{k}": v for k, v in asdict(experiment.distill).items()}
        out |= {f"schedule.{k}": v for k, v in asdict(experiment.schedule).items()}
    if any(source_of(experiment, getattr(experiment, group)) for group in GROUPS):  # for the column Differs
        out |= {f"plugins.{name}": source for name, source in sources(experiment).items()}
    out["model.hidden_dropout"] = models.hidden_dropout(base.config)
    out["model.attention_dropout"] = models.attention_dropout(base.config)
    for key in ("max_train_samples", "max_eval_samples", "holdout"):
        out[f"dataset.{key}"] = getattr(experiment.dataset, key)
    # How a model is timed is nothing to compare its score by.
    return out | {k: v for k, v in origin.changed.items() if k not in out and not k.startswith("benchmark.")}


def announce(inputs: Inputs) -> None:
    """Show what the run is about to do."""
    experiment, labels, data = inputs.experiment, inputs.origin.labels, inputs.data
    log.info("%s on %s, pattern %s, seed %d -> %s", labels["model"], labels["dataset"], labels["pattern"],
             experiment.seed, inputs.folder)  # fmt: skip
    choices = inputs.origin.choices
    if choices.get("recipe") == BEST and data is not None:
        recipe = experiment.recipe
        other = [f"{key}={choices[key]}" for key in NAMED_BY_RECIPE if choices.get(key) != getattr(recipe, key)]
        log.info("recipe=best (conf/recipe/best.yaml)%s", f", but {' '.join(other)}" if other else "", extra=ONCE)
    announce_data(experiment.dataset, inputs.examples)
    if experiment.prune and (left_out := models.describe_left_out(models.left_out(inputs.net))) is not None:
        log.warning("%s", left_out)
    if experiment.keeps_zeros:
        log.info("the student starts from model.sparse=%s: its zeros stay, and count", experiment.model.sparse)
    if (chosen := inputs.sources.chosen) is not None:
        log.info("the student has %s of the dense model", chosen)
    if (table := inputs.sources.latency) is not None and table.settings.length != experiment.dataset.max_seq_length:
        log.info("allocation.latency has times for texts of %d tokens, and dataset.max_seq_length=%d",
                 table.settings.length, experiment.dataset.max_seq_length)  # fmt: skip
    if data is None:
        return
    log.info("disk: %s", disk.in_one_line(inputs.disk_needs, Path(experiment.cache_dir)))
    if experiment.prune:
        steps, last = data.length(experiment.train).steps, max(inputs.updates, default=0)
        count = len(inputs.updates)
        several = f", {count} mask updates, the last at step {last}"
        updates = several if count > 1 else f", 1 mask update, at step {last}" if count else ""
        log.info("%d features, %d optimizer steps%s", len(data.features), steps, updates)
    _announce_machine(experiment, data, inputs.sources.base)


def announce_data(task: Dataset, examples: Examples) -> None:
    """Show where the examples come from, what is not used, and the classes with what looks like a slip."""
    train, evaluation = examples.train, examples.evaluation
    log.info("%s training and %s evaluation examples (%s)", len(train) if train is not None else "no",
             len(evaluation), examples.source, extra=ONCE)  # fmt: skip
    if examples.unlabelled is not None:
        log.info("%d further training examples without labels, for the distillation alone (dataset.unlabelled=%s)",
                 len(examples.unlabelled), task.unlabelled, extra=ONCE)  # fmt: skip
    log.info("%s", examples.origin, extra=ONCE)
    if examples.unused:
        # Without an evaluation split, what is not used may be it.
        log.log(logging.INFO if examples.has_split else logging.WARNING,
                "not used: %s (dataset.train_split and dataset.evaluation_splits choose)",
                shown(examples.unused), extra=ONCE)  # fmt: skip
    total: Counter[str] = Counter()
    for split, part in (("training", train), ("evaluation", evaluation)):
        counts = task.class_counts(part) if part is not None else {}
        if counts:
            log.info("classes in %s: %s", split, slips.listed(counts), extra=ONCE)
            total.update(counts)
    for slip in slips.slips(total):
        log.warning("%s: if that is a slip, correct it in the data", slip, extra=ONCE)


def _announce_machine(experiment: Experiment, data: TrainingData, base: models.Checkpoint) -> None:
    """Show precision, padding and what would be faster."""
    training = experiment.train if experiment.prune else experiment.finetune
    assert training.precision is not None
    precision = {Precision.bf16: "bf16 autocast", Precision.fp16: "fp16 autocast"}.get(
        training.precision, training.precision.value
    )
    if device().type == "cpu" and (speedup := bf16_speedup(Path(experiment.cache_dir))):
        precision += f" (bf16 matrix products run at {speedup:.1f}x the rate of float32 here)"
    compiled = ", compiled" if training.torch_compile else ""
    shared = f", batches shared by {ranks.world_size()} ranks" if ranks.world_size() > 1 else ""
    padding = 100 * data.batches(training, experiment.seed).padding()
    log.info("%s, %s%s%s; %.1f %% of the computed tokens are padding", precision, training.optimizer.value, compiled,
             shared, padding, extra=ONCE)  # fmt: skip
    if device().type == "cpu" and models.attention_dropout(base.config) > 0:
        log.info("dropout of attention weights is slow on CPUs: model.attention_dropout=0 leaves it out (in all rows "
                 "that are compared)", extra=ONCE)  # fmt: skip
