"""One run: dense model, prune while distilling, check the file, score both, log. `run` is the page to read first."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from pruning import Dense, LayerReport, MaskUpdate, Plan, Pruner, TrainingLength
from results import columns
from runner import evaluate, models, tracking
from runner.config.experiment import Experiment, Origin
from runner.data.classes import check_same
from runner.data.task import Examples, Scores
from runner.models.footprint import Footprint, footprint
from runner.models.tokenizer import check_texts, check_vocabulary, with_inputs
from runner.models.verify import Verification, verify
from runner.records import card, runs
from runner.records.identity import Identity, identify
from runner.stages import finetune
from runner.sweeps import jobs
from runner.system import disk, files, ranks
from runner.system.device import Precision, bf16_speedup, device, keep_bf16_speedup, keep_freed_memory
from runner.system.disk import DiskNeed
from runner.system.errors import UserError, writing, writing_database
from runner.system.interrupts import raise_on_signals
from runner.training import projections
from runner.training.cost import Cost

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from runner.training.loop import Log, Supervision, TrainingData, TrainingStats

log = logging.getLogger(__name__)


@dataclass
class Result:
    """What a run ends with; `result.json` in its folder."""

    model: str
    dataset: str
    pattern: str
    seed: int
    metric: str
    dense: dict[str, float]
    """Scores of the dense model: fractions, or correlations."""
    sparse: dict[str, float] | None
    """The same of the pruned model's last weights; None with prune=false."""
    relative_drop: float | None
    """(sparse - dense) / dense, of the main metric; None with prune=false, and unless the dense score is above 0."""
    verification: Verification | None
    """What was counted on the saved file."""
    identity: str
    group: str
    folder: str
    mlflow_run: str | None
    """None until it is uploaded, if the MLflow server was away."""
    cost: dict[str, Any]
    """Seconds by stage, tokens, memory: see `runner.training.cost.Cost`."""
    footprint: Footprint | None = None
    """What the pruned model weighs; None with prune=false."""
    stages: dict[str, str] = field(default_factory=dict)
    """A hash of what each stage made, in the order of the stages: where a repetition first differs."""
    made_by: dict[str, Any] = field(default_factory=dict)
    """What a repetition needs: see `runner.records.runs.MadeBy`."""


@dataclass
class Sources:
    """The checkpoints that a run starts from."""

    base: models.Checkpoint
    """Where training starts: the fine-tuned dense model if given, else the pretrained one."""
    teacher: models.Checkpoint | None
    """A teacher other than the dense model."""
    sparse: models.Checkpoint | None
    """A sparse checkpoint that the student starts from; None: from the dense model."""


@dataclass
class Inputs:
    """All that a run starts from, loaded and checked before anything is trained."""

    examples: Examples
    base: models.Checkpoint
    """Where training starts: the fine-tuned dense model if given, else the pretrained one."""
    tokenizer: PreTrainedTokenizerBase
    teacher: models.Checkpoint | None
    """A teacher other than the dense model."""
    sparse: models.Checkpoint | None
    """A sparse checkpoint that the student starts from; None: from the dense model."""
    lesson: TrainingData | None
    """None if nothing is trained."""
    updates: dict[int, float]
    """Optimizer steps -> sparsity."""
    identity: Identity
    digest: str
    """Hash of examples and features."""


@dataclass
class Pruned:
    """What the pruning says of itself. The model is in the run's folder."""

    layers: list[LayerReport]
    updates: list[MaskUpdate]
    made: dict[str, str]
    """Hashes of what its stages made."""


def run(experiment: Experiment, origin: Origin) -> Result:
    """Run one experiment. Raises UserError or PruningError, before training wherever it can be known before.

    Under a launcher only rank 0 is here: the others join in what it does `ranks.together`, which are the trainings.
    """
    ranks.on_all_ranks(set_up_process)
    experiment = resolved(experiment)
    cost = Cost()
    name = run_name(origin.labels, experiment.seed)
    outputs = Path(experiment.output_dir)
    with cost.stage("prepare"), tracking.failures(experiment.tracking, name, outputs):
        sources = find(experiment)
        candidates = earlier(experiment, name)
        net = None if candidates else check(experiment, sources)
        examples = experiment.dataset.read(train=experiment.trains)
        fit(experiment, sources, examples)
        identity = identity_of(experiment, sources, examples)
        folder = outputs / f"{name}-{identity.run[:8]}"
        if done := finished(candidates, identity, experiment.tracking):
            return done
        inputs = prepare(experiment, sources, net or check(experiment, sources), examples, identity, folder)
    with saving(folder), alone(folder) as waited:
        if waited and (done := finished(earlier(experiment, name), identity, experiment.tracking)):
            return done
        if experiment.force:  # else it would go on from its last step
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return perform(experiment, origin, inputs, folder, name, cost)


def perform(experiment: Experiment, origin: Origin, inputs: Inputs, folder: Path, name: str, cost: Cost) -> Result:
    """Train, score and log what is prepared."""
    keep_bf16_speedup(Path(experiment.cache_dir))
    tags = {
        **kind(experiment, origin),
        columns.IDENTITY: inputs.identity.run,
        columns.FOLDER: str(folder.resolve()),
        columns.GROUP: inputs.identity.group,
        columns.DENSE_MODEL: inputs.identity.dense,
        columns.CONTROL: inputs.identity.control,
        columns.BUDGET: inputs.identity.budget,
        columns.METRIC: experiment.dataset.metric,
        "ranks": str(ranks.world_size()),
        "dataset.source": inputs.examples.source,
        "recipe": experiment.recipe.name,
        **counts(experiment, origin, inputs.examples),
    }
    shown = name if origin.repeats is None else f"{name} (reproduction)"
    with (
        writing_database(experiment.tracking.uri),
        tracking.start(experiment.tracking, shown, tags, resumes=True) as tracker,
        logged_to(folder / "run.log"),
    ):
        (folder / "config.yaml").write_text(origin.yaml, encoding="utf-8")
        announce(experiment, origin, inputs, folder)
        tracker.params(params(experiment, origin, inputs.base))
        tracker.text(origin.yaml, columns.CONFIG)
        tracker.text("\n".join(origin.overrides) + "\n", columns.OVERRIDES)
        log_inputs(tracker, experiment, origin, inputs.examples)

        with cost.stage("finetune"):
            dense = dense_model(experiment, inputs, tracker)
        with cost.stage("evaluate_dense"):
            dense_scores = score_dense(experiment, inputs, dense)
        made = {"prepare": inputs.digest, "finetune": dense.weights, "evaluate_dense": digest(dense_scores)}
        write_json(folder / columns.DENSE_PREDICTIONS, dense_scores.predictions)
        if experiment.prune:
            pruned = prune(experiment, inputs, dense, folder, tracker, cost)
            with cost.stage("save"):
                verification = verify(folder / "model", experiment.dataset.architecture, pruned.layers)
            with cost.stage("evaluate"):
                sparse_scores = score_saved(experiment, inputs, folder / "model")
            made |= {**pruned.made, "evaluate": digest(sparse_scores)}
            write_json(folder / columns.PREDICTIONS, sparse_scores.predictions)
            write_json(folder / columns.SCORES, paired(dense_scores, sparse_scores))
            describe_pruning(
                folder / "model", experiment, inputs, pruned.layers, dense_scores, sparse_scores, verification
            )
        else:
            pruned, verification, sparse_scores = None, None, None
            model = models.load(experiment.dataset.architecture, dense)
            finetune.save(model, inputs.tokenizer, folder / "model")
        result = conclude(
            experiment, origin, inputs, dense_scores, sparse_scores, verification, folder, tracker, cost, made
        )
        tracker.text(card.write(folder / "model", experiment, origin, inputs.examples, result), columns.CARD)
        record(tracker, experiment, result, pruned, dense_scores, sparse_scores)
        files.write_json(folder / "result.json", asdict(result))
    log.info("%s", summary(result))
    return result


# --- before anything is trained -----------------------------------------------------------------------------


def resolved(experiment: Experiment) -> Experiment:
    """The experiment with what is left to the machine chosen. Raises UserError for what the machine does not have."""
    kept = Path(experiment.cache_dir)
    train = experiment.train.resolved(kept) if experiment.prune else experiment.train
    trains_dense = experiment.model.finetuned is None
    return replace(
        experiment, train=train, finetune=experiment.finetune.resolved(kept) if trains_dense else experiment.finetune
    )


def find(experiment: Experiment) -> Sources:
    """Find the checkpoints that a run starts from; of each no more than its config.json is read."""
    model = experiment.model
    if model.finetuned:
        base = models.find(model.finetuned, "model.finetuned", model, model.finetuned_revision)
    else:
        base = models.find(model.path, models.PRETRAINED, model, model.revision)
    teacher, key = None, "distill.teacher"
    if experiment.prune and experiment.distill.teacher:
        path = runs.dense_model(experiment.distill.teacher, key, experiment.tracking)
        teacher = models.find(
            path, key, replace(model, hidden_dropout=None, attention_dropout=None)
        )  # it is not trained
    return Sources(base, teacher, models.find(model.sparse, "model.sparse", model) if model.sparse else None)


def fit(experiment: Experiment, sources: Sources, examples: Examples) -> None:
    """Tell the checkpoints what there is to answer. Raises UserError if a trained head does not fit."""
    heads = {}
    for checkpoint in (sources.base, sources.teacher, sources.sparse):
        if checkpoint is not None:
            trained = None if checkpoint.key == models.PRETRAINED else f"{checkpoint.key}={checkpoint.path}"
            experiment.dataset.configure(checkpoint.config, examples.evaluation, trained)
            if trained is not None:
                heads[trained] = checkpoint.config
    check_same(heads)


def check(experiment: Experiment, sources: Sources) -> PreTrainedModel:
    """Refuse what cannot be trained, pruned or compared, before data are read. The network, without weights."""
    model, architecture = experiment.model, experiment.dataset.architecture
    net = models.skeleton(architecture, sources.base.config)
    check_gradient(experiment, net)
    models.check_positions(net, sources.base, experiment.dataset.max_seq_length)
    if sources.teacher is not None:
        taught_by = models.skeleton(architecture, sources.teacher.config)
        models.check_positions(taught_by, sources.teacher, experiment.dataset.max_seq_length)
    locked: list[str] = []
    if experiment.prune:
        plan = Plan(models.prunable_parameters(net, model), experiment.pattern, experiment.allocation)
        plan.check(experiment.schedule, experiment.regularizer)
        locked = [name for group in plan.groups if group.pattern.locks for name in group.shapes]
    check_sparse(model, sources.sparse, net, architecture, locked)
    for other in (sources.teacher, sources.sparse):
        if other is not None:
            check_vocabulary(sources.base, other)
    beside(experiment, sources, net)
    if locked:
        check_zeros(sources.sparse or sources.base, architecture, locked)
    return net


def beside(experiment: Experiment, sources: Sources, net: PreTrainedModel) -> int:
    """How many parameters are trained beside the student. Raises UserError or PruningError if it cannot be compared
    with its teacher."""
    how = experiment.distill
    if not (experiment.prune and how.needs_teacher and how.weight):
        return 0
    teacher = models.skeleton(experiment.dataset.architecture, sources.teacher.config) if sources.teacher else net
    return projections.check(how, net, teacher)


def prepare(
    experiment: Experiment,
    sources: Sources,
    net: PreTrainedModel,
    examples: Examples,
    identity: Identity,
    folder: Path,
) -> Inputs:
    """Tokenise, and count steps and bytes: nothing is to be found wrong after hours of training."""
    from runner.training.loop import TrainingData

    task, tokenizer = experiment.dataset, models.load_tokenizer(sources.base)
    lesson, updates, units = None, {}, 0
    if experiment.trains:
        assert examples.train is not None
        for other in (sources.teacher, sources.sparse):
            if other is not None:
                check_texts(sources.base, other, task, examples.train)
        others = tuple(models.load_tokenizer(sources.teacher).model_input_names) if sources.teacher else None
        made_by = with_inputs(tokenizer, dict.fromkeys((*tokenizer.model_input_names, *(others or ()))))
        cache = Path(experiment.cache_dir) / "features"
        lesson = TrainingData(task, task.features(examples.train, made_by, cache, labels=True), tokenizer, others)
        if experiment.prune:
            length = lesson.length(experiment.train)
            pruner = new_pruner(experiment, net, length)
            updates = {s: experiment.schedule.sparsity(p, experiment.pattern.target) for s, p in pruner.updates.items()}
            units = sum(sum(group.units.values()) for group in pruner.plan.groups)
        parameters = net.num_parameters() + beside(experiment, sources, net)
        disk.check(needs(experiment, lesson, sources.base, parameters, units, identity, folder))
    made_of = [examples.train_fingerprint, examples.evaluation_fingerprint]
    made_of += [task.digest(lesson.features)] if lesson is not None else []
    digest = hashlib.sha256("".join(made_of).encode()).hexdigest()
    return Inputs(examples, sources.base, tokenizer, sources.teacher, sources.sparse, lesson, updates, identity, digest)


def needs(
    experiment: Experiment,
    lesson: TrainingData,
    base: models.Checkpoint,
    parameters: int,
    units: int,
    identity: Identity,
    folder: Path,
) -> list[DiskNeed]:
    """The disk space that a training run takes.

    Args:
        parameters: of the model, and what is trained beside it.
        units: of the pattern, in all layers; each has at most two scores of four bytes and a mask of two.
    """
    from runner.training import teacher_logits

    cache = Path(experiment.cache_dir)
    found = [DiskNeed(folder / "model", "the model", disk.model_bytes(parameters))]
    if experiment.model.finetuned is None:
        dense, kept = cache / "dense" / identity.dense, experiment.finetune.save_total_limit
        found.append(DiskNeed(dense, "the dense model", disk.model_bytes(parameters)))
        if not dense.is_dir():
            work = dense.with_name(f"{dense.name}.work")
            found.append(DiskNeed(work, "checkpoints of the fine-tuning", disk.training_bytes(parameters, kept)))
    if experiment.prune:
        kept = experiment.train.save_total_limit
        found.append(DiskNeed(folder / "checkpoints", "checkpoints", disk.training_bytes(parameters, kept, 10 * units)))
        if experiment.distill.needs_teacher and experiment.distill.weight and keeps_logits(experiment, lesson):
            most = teacher_logits.max_bytes(experiment.dataset, lesson.features, base)
            found.append(DiskNeed(cache / "teacher", "the teacher's logits", most))
    log.info("disk space, at most: %s", disk.summary(found))
    return found


def identity_of(experiment: Experiment, sources: Sources, examples: Examples) -> Identity:
    """Hashes of all that determines the result."""
    data = examples.train_fingerprint + examples.evaluation_fingerprint
    others = [other.fingerprint if other is not None else None for other in (sources.teacher, sources.sparse)]
    return identify(experiment, sources.base.fingerprint, data, *others)


def earlier(experiment: Experiment, name: str) -> list[Path]:
    """Results of runs under this name, whatever made them."""
    return [] if experiment.force else sorted(Path(experiment.output_dir).glob(f"{glob.escape(name)}-*/result.json"))


def finished(results: list[Path], identity: Identity, where: tracking.Tracking) -> Result | None:
    """The result of this very run, if it was finished before and is still there: folder, model and MLflow run."""
    for file in results:
        values = files.read_json(file)
        if values is None:  # damaged: done again
            continue
        try:
            counted, weighed = values["verification"], values.get("footprint")
            values["verification"] = Verification(**counted) if counted else None
            done = Result(**{**values, "footprint": Footprint(**weighed) if weighed else None})
        except (KeyError, TypeError):  # of another version
            continue
        if done.identity != identity.run or not files.is_intact(file.parent / "model"):
            continue
        if tracking.uploaded(where, file.parent) or tracking.is_finished(where, done.mlflow_run):
            log.info("finished before; force=true would do it again\n%s", summary(done))
            return done
    return None


def new_pruner(experiment: Experiment, net: PreTrainedModel, length: TrainingLength) -> Pruner:
    """The pruner of this experiment for a model and a training."""
    return Pruner(
        models.prunable_parameters(net, experiment.model),
        experiment.pattern,
        experiment.schedule,
        length,
        experiment.criterion,
        experiment.allocation,
        experiment.regularizer,
    )


def check_sparse(
    model: models.Model,
    sparse: models.Checkpoint | None,
    net: PreTrainedModel,
    architecture: str,
    locked: list[str],
) -> None:
    """Refuse a sparse checkpoint that does not serve; `locked` are the weights whose zeros are to stay."""
    if model.sparse and not locked:
        raise UserError(
            f"model.sparse={model.sparse} is for pattern=locked, which keeps its zeros; any other pattern prunes the "
            "dense model (model.finetuned)"
        )
    if locked and not (model.sparse or model.finetuned):
        raise UserError("pattern=locked keeps the zeros of a checkpoint: name one with model.sparse")
    if sparse is None:
        return
    theirs, ours = (
        {name: tuple(p.shape) for name, p in of.base_model.named_parameters()}  # the head's shape is the task's
        for of in (models.skeleton(architecture, sparse.config), net)
    )
    differs = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if differs:
        raise UserError(
            f"model.sparse={model.sparse}: it is another network than the dense model: {differs[0]} is "
            f"{theirs.get(differs[0], 'not there')}, not {ours.get(differs[0], 'there')}"
        )


def check_zeros(start: models.Checkpoint, architecture: str, locked: list[str]) -> None:
    """Refuse to lock the zeros of a checkpoint that has none."""
    weights = models.load(architecture, start).state_dict()
    if all(bool(weights[name].all()) for name in locked):
        raise UserError(
            f"{start.key}={start.path}: none of its {len(locked)} prunable weights has a zero, so pattern=locked has "
            "nothing to keep; name a sparse checkpoint with model.sparse"
        )


def check_gradient(experiment: Experiment, net: PreTrainedModel) -> None:
    """Refuse a student that starts as its own teacher with nothing to tell them apart: its gradient is exactly zero."""
    alike = experiment.distill.needs_teacher and not experiment.distill.teacher and not experiment.distill.label_weight
    alike = alike and not experiment.model.sparse
    if not (experiment.prune and alike) or models.dropout(net) > 0:
        return
    what = None
    if not experiment.pattern.prunes:
        what = f"pattern={experiment.pattern} has nothing to learn"
    elif experiment.criterion.needs_gradient or experiment.criterion.needs_second_moment:
        what = f"{type(experiment.criterion).__name__} has nothing to rank weights by before the first are pruned"
    if what:
        raise UserError(
            f"{what}: the student starts as a copy of its teacher, and without label loss and dropout its gradient is "
            "zero; set distill.label_weight, model.hidden_dropout or another distill.teacher"
        )


# --- the stages ---------------------------------------------------------------------------------------------


def dense_model(experiment: Experiment, inputs: Inputs, tracker: tracking.Tracker) -> models.Checkpoint:
    """The dense model, fine-tuned now if it is neither given nor in the cache."""
    if experiment.model.finetuned:
        return inputs.base
    assert inputs.lesson is not None
    return finetune.fine_tuned(
        experiment, inputs.base, inputs.identity.dense, inputs.lesson, logger(tracker, "finetune"), tracker.flush
    )


def prune(
    experiment: Experiment,
    inputs: Inputs,
    dense: models.Checkpoint,
    folder: Path,
    tracker: tracking.Tracker,
    cost: Cost,
) -> Pruned:
    """Prune a copy of the dense model while distilling, and save it as `folder/model`."""
    assert inputs.lesson is not None
    teacher, start = inputs.teacher or dense, inputs.sparse or dense
    with cost.stage("teacher"):
        teaching = teaching_of(experiment, inputs.lesson, teacher)
    track, checkpoints = logger(tracker, "train"), folder / "checkpoints"
    student, pruner, work = ranks.on_all_ranks(
        trained, experiment, inputs.lesson, teacher, start, checkpoints,
        teaching=teaching, track=track, flush_log=tracker.flush,
    )  # fmt: skip
    cost.trained(work)
    with cost.stage("save"):
        finetune.save(student, inputs.tokenizer, folder / "model")
    made = {"teacher": teaching.logits.checksum()} if teaching.logits is not None else {}
    made["prune"] = models.find(str(folder / "model"), "the saved model", experiment.model).weights
    return Pruned(pruner.report(), pruner.history, made)


def trained(
    experiment: Experiment,
    lesson: TrainingData,
    teacher: models.Checkpoint,
    start: models.Checkpoint,
    checkpoints: Path,
    teaching: Supervision | None = None,
    track: Log | None = None,
    flush_log: Callable[[], None] | None = None,
) -> tuple[PreTrainedModel, Pruner, TrainingStats]:
    """The student, pruned while it is taught, and its pruner; on all ranks.

    Args:
        teaching: if not given: as `teaching_of` the teacher, whose logits rank 0 has kept before.
    """
    from transformers import set_seed

    from runner.training.loop import nothing, silent, train

    teaching = teaching or teaching_of(experiment, lesson, teacher)
    set_seed(experiment.seed)
    student = student_from(experiment, start)
    pruner = new_pruner(experiment, student, lesson.length(experiment.train))
    title = "Training the control" if isinstance(experiment.pattern, Dense) else f"Pruning to {experiment.pattern}"
    work = train(
        student,
        lesson,
        experiment.train,
        teaching,
        pruner,
        experiment.seed,
        checkpoints,
        title,
        track or silent,
        flush_log or nothing,
    )
    return student, pruner, work


def student_from(experiment: Experiment, start: models.Checkpoint) -> PreTrainedModel:
    """The model that is to be pruned."""
    how = experiment.distill
    return models.load(experiment.dataset.architecture, start, how.needs_attention and bool(how.weight))


def teaching_of(experiment: Experiment, lesson: TrainingData, checkpoint: models.Checkpoint) -> Supervision:
    """How the student is taught: from kept logits, by a live teacher, or by the labels alone."""
    from runner.training import teacher_logits
    from runner.training.loop import Supervision

    how, task = experiment.distill, experiment.dataset
    if not (how.needs_teacher and how.weight):
        return Supervision(how)
    if not keeps_logits(experiment, lesson):
        return Supervision(how, models.load(task.architecture, checkpoint, how.needs_attention))
    assert experiment.train.precision is not None
    cache = Path(experiment.cache_dir) / "teacher"
    reader = with_inputs(lesson.tokenizer, lesson.teacher_inputs)
    logits = teacher_logits.teacher_logits(checkpoint, reader, task, lesson.features, experiment.train.precision, cache)
    return Supervision(how, logits=logits)


def keeps_logits(experiment: Experiment, lesson: TrainingData) -> bool:
    """Whether the teacher runs once over all features. Not for less than an epoch, which sees only some of them."""
    how, training = experiment.distill, experiment.train
    whole_epoch = lesson.length(training).steps >= lesson.batches(training, experiment.seed).steps
    return how.cache and not (how.needs_hidden or how.needs_attention) and whole_epoch


def score_dense(experiment: Experiment, inputs: Inputs, dense: models.Checkpoint) -> Scores:
    """Scores of the dense model, which the runs of a sweep share."""
    data, task, cache = inputs.examples, experiment.dataset, Path(experiment.cache_dir)
    return evaluate.score_once(
        dense, inputs.tokenizer, task, data.evaluation, data.evaluation_fingerprint, cache, "Scoring dense"
    )


def score_saved(experiment: Experiment, inputs: Inputs, folder: Path) -> Scores:
    """Scores of a model read back from disk."""
    task = experiment.dataset
    checkpoint = models.find(str(folder), "the saved model", experiment.model)
    model = models.load(task.architecture, checkpoint)
    cache = Path(experiment.cache_dir) / "features"
    return evaluate.score(model, inputs.tokenizer, task, inputs.examples.evaluation, cache, "Scoring sparse")


def conclude(
    experiment: Experiment,
    origin: Origin,
    inputs: Inputs,
    dense: Scores,
    sparse: Scores | None,
    verification: Verification | None,
    folder: Path,
    tracker: tracking.Tracker,
    cost: Cost,
    made: dict[str, str],
) -> Result:
    """Put the result together."""
    weighed = None
    if sparse is not None:
        with cost.stage("save"):
            weighed = footprint(folder / "model", experiment.dataset.architecture, experiment.dataset.max_seq_length)
    metric = experiment.dataset.metric
    drop = columns.relative_drop(dense.metrics[metric], sparse.metrics[metric]) if sparse is not None else None
    return Result(
        **origin.labels,
        seed=experiment.seed,
        metric=metric,
        dense=dense.metrics,
        sparse=sparse.metrics if sparse is not None else None,
        relative_drop=drop,
        verification=verification,
        identity=inputs.identity.run,
        group=inputs.identity.group,
        folder=str(folder),
        mlflow_run=tracker.run_id,
        cost=cost.plain(),
        footprint=weighed,
        stages=made,
        made_by=asdict(runs.made_by(experiment, origin, (inputs.base, inputs.teacher, inputs.sparse), inputs.examples)),
    )


# --- records ------------------------------------------------------------------------------------------------


def kind(experiment: Experiment, origin: Origin) -> dict[str, str]:
    """Tags that say what the run is to the table: a reproduction is no further seed."""
    if origin.repeats is not None:
        return {columns.KIND: columns.REPRODUCTION, columns.REPRODUCES: origin.repeats}
    return {columns.KIND: columns.PRUNED if experiment.prune else columns.DENSE_ONLY}


def counts(experiment: Experiment, origin: Origin, examples: Examples) -> dict[str, str]:
    """Tags that say how many examples the run uses, and how many the official splits have."""
    found = {columns.TRAIN_EXAMPLES: len(examples.train) if examples.train is not None else None,
             columns.EVALUATION_EXAMPLES: len(examples.evaluation)}  # fmt: skip
    if origin.labels["dataset"] == origin.choices["dataset"]:  # else it is other data than the option's
        task = experiment.dataset
        found |= {columns.OFFICIAL_TRAIN: task.official_train, columns.OFFICIAL_EVALUATION: task.official_evaluation}
    return {key: str(count) for key, count in found.items() if count is not None}


def log_inputs(tracker: tracking.Tracker, experiment: Experiment, origin: Origin, examples: Examples) -> None:
    """The datasets, as MLflow's inputs of the run."""
    if examples.train is not None:
        tracker.input(origin.labels["dataset"], examples.train_fingerprint, examples.source, "training",
                      len(examples.train))  # fmt: skip
    split = "choosing" if experiment.dataset.holdout else "evaluation"
    tracker.input(origin.labels["dataset"], examples.evaluation_fingerprint, examples.source, split,
                  len(examples.evaluation))  # fmt: skip


def params(experiment: Experiment, origin: Origin, base: models.Checkpoint) -> dict[str, Any]:
    """The few dozen params that people compare by, and whatever differs from recipe or default."""
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
    out["model.hidden_dropout"] = models.hidden_dropout(base.config)
    out["model.attention_dropout"] = models.attention_dropout(base.config)
    for key in ("max_train_samples", "max_eval_samples", "holdout"):
        out[f"dataset.{key}"] = getattr(experiment.dataset, key)
    return out | {k: v for k, v in origin.changed.items() if k not in out}


def record(
    tracker: tracking.Tracker,
    experiment: Experiment,
    result: Result,
    pruned: Pruned | None,
    dense: Scores,
    sparse: Scores | None,
) -> None:
    """Metrics, tags and artifacts of a finished run."""
    values = {columns.dense(name): value for name, value in dense.metrics.items()}
    tracker.text(json.dumps(dense.predictions, indent=0), columns.DENSE_PREDICTIONS)
    if sparse is not None and pruned is not None and result.verification is not None:
        values |= {columns.sparse(name): value for name, value in sparse.metrics.items()}
        values[columns.RATIO] = result.verification.linear_ratio
        values[columns.OVERALL_RATIO] = result.verification.overall_ratio
        values[columns.TARGET] = experiment.pattern.target
        values[columns.VIOLATIONS] = result.verification.violations
        if result.relative_drop is not None:
            values[columns.RELATIVE_DROP] = result.relative_drop
        if result.footprint is not None:
            weighed = result.footprint
            values |= {columns.BYTES: weighed.bytes, columns.COMPRESSED: weighed.compressed_bytes}
            values |= {columns.MACS_DENSE: weighed.macs_dense, columns.MACS_SPARSE: weighed.macs_sparse}
        tracker.text(json.dumps([layer_row(layer) for layer in pruned.layers], indent=1), columns.LAYERS)
        tracker.text(json.dumps([asdict(update) for update in pruned.updates], indent=1), columns.UPDATES)
        tracker.text(json.dumps(sparse.predictions, indent=0), columns.PREDICTIONS)
        if dense.by_example or dense.statistics:
            tracker.text(json.dumps(paired(dense, sparse)), columns.SCORES)
        tracker.tags({columns.VERIFIED: "true"})
    tracker.tags({columns.stage(stage): made for stage, made in result.stages.items()})
    values |= costs(result.cost)
    tracker.metrics(values)
    tracker.tags({"mlflow.note.content": f"```\n{summary(result)}\n```"})


def paired(dense: Scores, sparse: Scores) -> dict[str, Any]:
    """What the two models made of each example, beside each other: see `columns.SCORES`."""
    found: dict[str, Any] = {"id": list(dense.statistics or dense.by_example)}
    for name, scores in (("dense", dense), ("sparse", sparse)):
        found[name] = [scores.by_example[id] for id in found["id"]] if scores.by_example else []
    if dense.statistics:
        both = {"dense": dense, "sparse": sparse}
        numbers = {name: [scores.statistics[id] for id in found["id"]] for name, scores in both.items()}
        found["statistics"] = {"name": dense.statistic, **numbers}
    return found


def costs(cost: Mapping[str, Any]) -> dict[str, float]:
    """A run's cost as metrics."""
    named = {columns.seconds(stage): seconds for stage, seconds in cost["seconds"].items()}
    others = {columns.PADDING: "padding", columns.THROUGHPUT: "tokens_per_second", columns.MEMORY: "peak_memory_bytes"}
    return named | {name: cost[key] for name, key in others.items() if cost[key] is not None}


def layer_row(layer: LayerReport) -> dict[str, Any]:
    """A layer's report as plain values."""
    return {**asdict(layer), "sparsity": layer.sparsity}


def describe_pruning(
    folder: Path,
    experiment: Experiment,
    inputs: Inputs,
    layers: list[LayerReport],
    dense: Scores,
    sparse: Scores,
    verification: Verification,
) -> None:
    """Write `pruning.json` beside the weights: what was done to them."""
    write_json(
        folder / "pruning.json",
        {
            "pattern": {"name": str(experiment.pattern), **asdict(experiment.pattern)},
            "criterion": {"name": type(experiment.criterion).__name__, **asdict(experiment.criterion)},
            "allocation": {"name": type(experiment.allocation).__name__, **asdict(experiment.allocation)},
            "schedule": {"name": type(experiment.schedule).__name__, **asdict(experiment.schedule)},
            "regularizer": {"name": type(experiment.regularizer).__name__, **asdict(experiment.regularizer)},
            "updates": {str(step): sparsity for step, sparsity in inputs.updates.items()},
            "linear_ratio": verification.linear_ratio,
            "overall_ratio": verification.overall_ratio,
            "sparsity": verification.sparsity,
            "violations": verification.violations,
            "dense": dense.metrics,
            "sparse": sparse.metrics,
            "layers": [layer_row(layer) for layer in layers],
        },
    )


def announce(experiment: Experiment, origin: Origin, inputs: Inputs, folder: Path) -> None:
    """Say what is about to happen."""
    labels = origin.labels
    log.info("%s on %s, pattern %s, seed %d -> %s", labels["model"], labels["dataset"], labels["pattern"],
             experiment.seed, folder)  # fmt: skip
    if origin.choices.get("recipe") == "default" and inputs.lesson is not None:
        log.info(
            "no published recipe for this pair of dataset and model: the defaults of runner/config/recipe.py are used"
        )
    train, evaluation = inputs.examples.train, inputs.examples.evaluation
    log.info("%s training and %s evaluation examples (%s)", len(train) if train is not None else "no",
             len(evaluation), inputs.examples.source)  # fmt: skip
    if inputs.lesson is not None and experiment.prune:
        length = inputs.lesson.length(experiment.train)
        updates = (
            f", {len(inputs.updates)} mask updates, the last at step {max(inputs.updates)}" if inputs.updates else ""
        )
        log.info("%d features, %d optimizer steps%s", len(inputs.lesson.features), length.steps, updates)
    if inputs.lesson is not None:
        announce_machine(experiment, inputs.lesson, inputs.base)


def announce_machine(experiment: Experiment, lesson: TrainingData, base: models.Checkpoint) -> None:
    """Say what is computed how, and what would be quicker."""
    training = experiment.train if experiment.prune else experiment.finetune
    assert training.precision is not None
    precision = {Precision.bf16: "bf16 autocast", Precision.fp16: "fp16 autocast"}.get(
        training.precision, training.precision.value
    )
    if device().type == "cpu" and (speedup := bf16_speedup(Path(experiment.cache_dir))):
        precision += f" (bf16 matrix products run at {speedup:.1f}x the rate of float32 here)"
    compiled = ", compiled" if training.torch_compile else ""
    shared = f", batches shared by {ranks.world_size()} ranks" if ranks.world_size() > 1 else ""
    padding = 100 * lesson.batches(training, experiment.seed).padding()
    log.info("%s, fused AdamW%s%s; %.1f %% of the computed tokens are padding", precision, compiled, shared, padding)
    if device().type == "cpu" and models.attention_dropout(base.config) > 0:
        log.info("dropout of attention weights is slow on CPUs: model.attention_dropout=0 leaves it out (in all rows "
                 "that are compared)")  # fmt: skip


def summary(result: Result) -> str:
    """The result in a few aligned lines."""
    name = columns.written(result.metric)
    told = {f"dense {name}": f"{result.dense[result.metric]:.4f}"}
    if result.sparse is not None and result.verification is not None:
        told |= {
            f"sparse {name}": f"{result.sparse[result.metric]:.4f}",
            "relative drop": "-" if result.relative_drop is None else f"{result.relative_drop:+.2%}",
            "zeros": f"{result.verification.linear_ratio:.4f} of all Linear and Conv weights, "
            f"{result.verification.violations} violations of the pattern (counted on the file)",
        }
    told |= {"model": f"{result.folder}/model", "MLflow run": result.mlflow_run or "not uploaded yet"}
    width = max(16, *map(len, told))
    lines = [f"{result.model} on {result.dataset}, {result.pattern}, seed {result.seed}"]
    return "\n".join([*lines, *(f"  {what:<{width}}  {value}" for what, value in told.items())])


def run_name(labels: Mapping[str, str], seed: int) -> str:
    """`<model>-<dataset>-<pattern>-s<seed>`, safe as a file name: N:M becomes NofM."""
    parts = [re.sub(r"[^\w.@]+", "_", text.replace(":", "of")) for text in labels.values()]
    return "-".join([labels["model"].replace("/", "_"), *parts[1:], f"s{seed}"])


# --- the process --------------------------------------------------------------------------------------------


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Refuse to write into the folder of a run that another process runs at this moment. A job of a sweep waits: what
    the other one does, an earlier sweep's job perhaps, need not be done again.

    Yields:
        Whether it waited.
    """
    lock, waits = FileLock(folder / ".lock"), False
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        if jobs.FOLDER_VARIABLE not in os.environ:
            raise UserError(
                f"{folder}: another process runs this very run at this moment; wait for it, or give another output_dir"
            ) from error
        log.info("waiting for another process that runs this very run (%s)", folder)
        waits = True
        lock.acquire()
    try:
        yield waits
    finally:
        lock.release()


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Around writes below a folder, which is made: a full or read-only disk becomes a UserError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield


class logged_to:
    """Copy the log into a file while a run lasts."""

    def __init__(self, file: Path) -> None:
        self.handler = logging.FileHandler(file, encoding="utf-8")
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        # What the disk does not take is on stderr all the same; a traceback for each line would bury what is said.
        self.handler.handleError = lambda record: None

    def __enter__(self) -> None:
        logging.getLogger().addHandler(self.handler)

    def __exit__(self, *exception: object) -> None:
        logging.getLogger().removeHandler(self.handler)
        self.handler.close()


def digest(scores: Scores) -> str:
    """Hash of what a model answered, and of its scores."""
    return hashlib.sha256(json.dumps(asdict(scores), sort_keys=True).encode()).hexdigest()


def write_json(file: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    partial = file.with_suffix(".tmp")
    partial.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    partial.replace(file)


def logger(tracker: tracking.Tracker, prefix: str) -> Callable[[int, Mapping[str, float]], None]:
    """A function that logs the metrics of a step under a prefix."""
    return lambda step, values: tracker.step(prefix, step, values)


def set_up_process() -> None:
    """Our own lines on stderr, and the libraries' chatter off."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warn when a process forks after use
    keep_freed_memory()
    if ranks.rank() == 0:  # the others end when it does
        raise_on_signals()
    root = logging.getLogger()
    if not any(getattr(handler, "ours", False) for handler in root.handlers):
        handler = logging.StreamHandler()
        handler.ours = True  # type: ignore[attr-defined]
        handler.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for ours in ("runner", "pruning"):
        logging.getLogger(ours).setLevel(logging.INFO)
    for library in ("huggingface_hub", "datasets"):
        logging.getLogger(library).propagate = False  # they have handlers of their own: not everything twice
    warnings.filterwarnings("ignore", category=FutureWarning)
