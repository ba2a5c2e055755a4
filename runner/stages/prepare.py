"""Stage 3: resolve a request into everything that the run needs, before anything is trained."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pruning import Calibration, Pruner, TrainingLength
from runner import models, tracking
from runner.config.experiment import Experiment, Origin
from runner.config.training import Training
from runner.data.examples import Examples
from runner.data.features import Features, with_unlabelled
from runner.models.tokenizer import check_texts, with_inputs
from runner.models.vocabulary import check_reading
from runner.records.identity import Identity
from runner.records.result import Result, stored
from runner.stages.checks import aimed, check, plan_of, projection_parameters
from runner.stages.inputs import Sources, find_sources, identity_of, match_heads
from runner.stages.teacher import caches_logits
from runner.system import disk, files
from runner.system.disk import DiskNeed
from runner.system.errors import UserError
from runner.system.fingerprint import hash_text
from runner.system.process import LOG, ONCE
from runner.training.cost import Cost

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from runner.training.training_data import TrainingData

log = logging.getLogger(__name__)

_LONGEST_NAME = 200
"""Bytes of a run's name: file systems take 255, with the identity and the ending of a temporary file."""


class AlreadyFinished(Exception):
    """This very run finished before; it carries the stored result."""

    def __init__(self, result: Result) -> None:
        super().__init__("already finished")
        self.result = result


@dataclass
class Inputs:
    """Everything that a run starts from, found, loaded and checked."""

    experiment: Experiment
    """The experiment with precision chosen."""
    origin: Origin
    sources: Sources
    net: PreTrainedModel
    """The student's network, without memory for its weights."""
    examples: Examples
    identity: Identity
    tokenizer: PreTrainedTokenizerBase
    cost: Cost
    data: TrainingData | None = None
    """What the student learns from; None if nothing is trained."""
    dense_data: TrainingData | None = None
    """What the dense model is fine-tuned on: those with labels."""
    updates: dict[int, float] = field(default_factory=dict)
    """Sparsity by the optimizer step of each mask update."""
    disk_needs: list[DiskNeed] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name, without its identity."""
        return run_name(self.origin.labels, self.experiment.seed)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return folder_of(self.experiment, self.name, self.identity)

    @property
    def dense_folder(self) -> Path:
        """The dense model in the cache, if this run fine-tunes it."""
        return Path(self.experiment.cache_dir) / "dense" / self.identity.dense

    @property
    def dense_parameters(self) -> int:
        """Number of parameters of the dense model, which has more layers than the student if `sources.chosen`."""
        if self.sources.chosen is None:
            return self.net.num_parameters()
        return models.skeleton(self.experiment.dataset.architecture, self.sources.base.config).num_parameters()

    @property
    def digest(self) -> str:
        """Hash of examples and features."""
        made_of = [self.examples.train_fingerprint, self.examples.evaluation_fingerprint]
        made_of += [self.experiment.dataset.digest(self.data.features)] if self.data is not None else []
        return hash_text("".join(made_of))


def resolve(experiment: Experiment, origin: Origin, reuse: bool = True) -> Inputs:
    """Find, check, read and tokenise everything that a run starts from.

    Args:
        reuse: a stored result of this very run ends the search; else it is resolved again.

    Raises:
        AlreadyFinished: with the stored result.
        UserError, PruningError: what the run cannot do.
    """
    cost, name = Cost(), run_name(origin.labels, experiment.seed)
    for key in ("output_dir", "cache_dir"):
        disk.check_writable(key, getattr(experiment, key))
    _check_holds_runs(Path(experiment.output_dir))
    begun = any(Path(experiment.output_dir).glob(f"{glob.escape(name)}-*"))
    tracking.check(experiment.tracking, waits=begun or tracking.PARENT_VARIABLE in os.environ)
    with cost.stage("prepare"), tracking.failures(experiment.tracking, name, Path(experiment.output_dir)):
        experiment = experiment.resolved()
        sources = find_sources(experiment)
        candidates = stored(Path(experiment.output_dir), name) if reuse and not experiment.force else []
        checked = None if candidates else check(experiment, sources)
        examples = experiment.dataset.read(train=experiment.trains)
        match_heads(experiment, sources, examples)
        identity = identity_of(experiment, sources, examples)
        result = finished(candidates, identity, experiment.tracking)
        if result is None:
            checked = checked or check(experiment, sources)
            for line in checked.zeros:
                log.info("%s", line, extra=ONCE)
            net = checked.net
            experiment = aimed(experiment, net)
            tokenizer = models.load_tokenizer(sources.base)
            inputs = Inputs(experiment, origin, sources, net, examples, identity, tokenizer, cost)
            _prepare_evaluation(inputs)
            if experiment.trains:
                _prepare_training(inputs)
            return inputs
    raise AlreadyFinished(result)


def _check_holds_runs(output_dir: Path) -> None:
    """Raise UserError if the folder for runs is the folder of one."""
    if all((output_dir / name).is_file() for name in (LOG, "config.yaml")):
        raise UserError(
            f"output_dir={output_dir} is the folder of a run; a run makes its own folder in output_dir, so give "
            f"output_dir={output_dir.resolve().parent}: the command of that run resumes it there"
        )


def finished(candidates: list[Path], identity: Identity, where: tracking.Tracking) -> Result | None:
    """The stored result of the run of this identity, if its file is among these and its model and MLflow run exist."""
    for file in candidates:
        result = Result.load(file)
        if result is None or result.identity != identity.run or not files.is_intact(file.parent / "model"):
            continue
        if tracking.uploaded(where, file.parent) or tracking.is_finished(where, result.mlflow_run):
            log.info("already finished: its stored result is shown (force=true runs it again)")
            return replace(result, folder=str(file.parent))  # which may have moved
    return None


def _prepare_evaluation(inputs: Inputs) -> None:
    """Tokenise what is scored after the training, so that its errors come before it."""
    task, examples, cache = inputs.experiment.dataset, inputs.examples.evaluation, Path(inputs.experiment.cache_dir)
    check_reading(inputs.sources.base, task, examples, "evaluation")
    features = task.features(examples, inputs.tokenizer, cache / "features", labels=False)
    task.report(examples, features, inputs.tokenizer)
    if (validation := inputs.examples.validation) is not None:
        check_reading(inputs.sources.base, task, validation, "validation")
        task.features(validation, inputs.tokenizer, cache / "features", labels=False)


def _prepare_training(inputs: Inputs) -> None:
    """Tokenise, and count optimizer steps, mask updates and disk space."""
    from runner.training.training_data import TrainingData

    experiment, sources, task = inputs.experiment, inputs.sources, inputs.experiment.dataset
    train, unlabelled = inputs.examples.train, inputs.examples.unlabelled
    assert train is not None
    for part, examples in (("training", train), ("unlabelled", unlabelled)):
        if examples is not None:
            check_reading(sources.base, task, examples, part)
            for other in sources.others:
                check_texts(sources.base, other, task, examples)
    others = tuple(tuple(models.load_tokenizer(teacher).model_input_names) for teacher in sources.teachers)
    names = dict.fromkeys((*inputs.tokenizer.model_input_names, *chain.from_iterable(others)))
    cache = Path(experiment.cache_dir) / "features"
    reader = with_inputs(inputs.tokenizer, names)
    features = task.features(train, reader, cache, labels=True)
    task.report(train, features, inputs.tokenizer)
    inputs.dense_data = TrainingData(task, features, inputs.tokenizer, others, inputs.examples.validation, cache)
    inputs.data = inputs.dense_data
    if unlabelled is not None:
        how = Features(task, reader, labels=False, part="unlabelled")
        more = how.of(unlabelled, inputs.examples.unlabelled_fingerprint, cache)
        inputs.data = replace(inputs.dense_data, features=with_unlabelled(features, more))
    units = 0
    if experiment.prune:
        pruner = new_pruner(experiment, inputs.net, inputs.data.length(experiment.train))
        inputs.updates = pruner.timetable.planned(experiment.pattern.target)
        units = sum(sum(group.units.values()) for group in pruner.plan.groups)
    needs = disk_needs(inputs, units)
    disk.check(needs)
    inputs.disk_needs = needs


def disk_needs(inputs: Inputs, units: int) -> list[DiskNeed]:
    """The disk space that a training run takes.

    Args:
        units: number of the pattern's units in all layers; each has at most two scores of four bytes and a mask of two.
    """
    experiment, dense, data = inputs.experiment, inputs.dense_folder, inputs.data
    assert data is not None
    whole, parameters = inputs.dense_parameters, inputs.net.num_parameters()
    parameters += projection_parameters(experiment, inputs.sources, inputs.net)
    needs = [DiskNeed(inputs.folder / "model", "the model", disk.model_bytes(parameters))]
    store = experiment.tracking.artifacts
    if store is not None and experiment.tracking.log_model is tracking.Logging.copy:
        place = store / inputs.folder.name  # stands for the place that MLflow will choose
        needs.append(DiskNeed(place, "the model's copy in MLflow", disk.model_bytes(parameters)))
    if experiment.model.finetuned is None:
        needs.append(DiskNeed(dense, "the dense model", disk.model_bytes(whole)))
        if not dense.is_dir():
            work = dense.with_name(f"{dense.name}.work")
            finetune = experiment.finetune
            size = disk.training_bytes(whole, finetune.save_total_limit, average_bytes(finetune, whole),
                                       moments=finetune.optimizer.state_bytes)  # fmt: skip
            needs.append(DiskNeed(work, "checkpoints of the fine-tuning", size))
    if experiment.prune:
        frozen = inputs.net.num_parameters() - models.trained_parameters(inputs.net)
        train = experiment.train
        state = 10 * units + average_bytes(train, parameters - frozen)
        size = disk.training_bytes(parameters, train.save_total_limit, state, frozen, train.optimizer.state_bytes)
        needs.append(DiskNeed(inputs.folder / "checkpoints", "checkpoints", size))
        if caches_logits(experiment, data):
            from runner.training.teacher_logits import max_bytes

            number = len(inputs.sources.teachers) or 1
            what = "the teacher's logits" if number == 1 else f"the logits of {number} teachers"
            size = number * max_bytes(experiment.dataset, data.features, inputs.sources.base)
            needs.append(DiskNeed(Path(experiment.cache_dir) / "teacher", what, size))
    return needs


def average_bytes(training: Training, parameters: int) -> int:
    """Bytes of the weights' average, or of the best weights, in a checkpoint, float32."""
    return 4 * parameters if training.best_checkpoint or training.average_weights is not None else 0


def new_pruner(
    experiment: Experiment, net: PreTrainedModel, length: TrainingLength, calibration: Calibration | None = None
) -> Pruner:
    """The experiment's pruner for a model and a training; `calibration` is for the updates of a criterion that reads
    such data."""
    plan = plan_of(experiment, net)
    return Pruner(plan, experiment.schedule, length, experiment.criterion, experiment.regularizer, calibration)


def run_name(labels: Mapping[str, str], seed: int) -> str:
    """`<model>-<dataset>-<pattern>-s<seed>`, safe as a file name: N:M becomes NofM, and long labels are cut, with ~."""
    parts = [re.sub(r"[^\w.@]+", "_", text.replace(":", "of")) for text in labels.values()]
    parts = [labels["model"].replace("/", "_"), *parts[1:], f"s{seed}"]
    if len("-".join(parts).encode()) > _LONGEST_NAME:
        each = _LONGEST_NAME // len(parts) - 2
        parts = [p if len(p.encode()) <= each else p.encode()[:each].decode(errors="ignore") + "~" for p in parts]
    return "-".join(parts)


def folder_of(experiment: Experiment, name: str, identity: Identity) -> Path:
    """The folder of a run."""
    return Path(experiment.output_dir) / f"{name}-{identity.run[:8]}"
