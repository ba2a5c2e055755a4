"""Stage 1: find the checkpoints that a run starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pruning import LatencyTable, PruningError
from runner import models
from runner.config.experiment import MEASURE, Experiment
from runner.data.classes import check_same
from runner.data.examples import Examples
from runner.records import runs
from runner.records.identity import Contents, Identity, identify
from runner.system.errors import UserError


@dataclass
class Sources:
    """The checkpoints that a run starts from."""

    base: models.Checkpoint
    """The checkpoint that training starts from: the fine-tuned dense model if given, else the pretrained one."""
    teachers: list[models.Checkpoint]
    """Teachers other than the dense model; empty: it is the teacher."""
    sparse: models.Checkpoint | None
    """A sparse checkpoint that the student starts from; None: from the dense model."""
    chosen: models.StudentLayers | None = None
    """Layers of the dense model that the student starts from; None: all."""
    latency: LatencyTable | None = None
    """Measured times that the budget is counted in; None: it is not counted in time."""

    @property
    def others(self) -> list[models.Checkpoint]:
        """All but the base."""
        return [*self.teachers, *([self.sparse] if self.sparse is not None else [])]


def find_sources(experiment: Experiment) -> Sources:
    """Find the checkpoints; no more than the config.json of each is read. Raises UserError if one is missing."""
    latency = find_table(experiment)
    model = experiment.model
    if model.finetuned:
        base = models.find(model.finetuned, "model.finetuned", model, model.finetuned_revision)
    else:
        base = models.find(model.path, models.PRETRAINED, model, model.revision)
    teachers, key = [], "distill.teacher"
    untrained = replace(model, hidden_dropout=None, attention_dropout=None)
    for name in experiment.distill.teachers if experiment.prune else []:
        teachers.append(models.find(runs.dense_model(name, key, experiment.tracking), key, untrained))
    sparse, key = None, "model.sparse"
    if model.sparse:
        sparse = models.find(runs.pruned_model(model.sparse, key, experiment.tracking), key, model)
    return Sources(base, teachers, sparse, models.student_layers(model, base), latency)


def find_table(experiment: Experiment) -> LatencyTable | None:
    """The table of times in `allocation.latency`. Raises UserError if the file has none."""
    if not experiment.prune or experiment.allocation.cost != "latency":
        return None
    try:
        return experiment.allocation.table()
    except PruningError as error:
        raise UserError(f"allocation.{error}: {MEASURE}") from error


def match_heads(experiment: Experiment, sources: Sources, examples: Examples) -> None:
    """Give each checkpoint's configuration the answers of the data. Raises UserError if a trained head does not fit."""
    heads = {}
    for checkpoint in (sources.base, *sources.others):
        trained = None if checkpoint.key == models.PRETRAINED else f"{checkpoint.key}={checkpoint.path}"
        experiment.dataset.configure(checkpoint.config, examples.evaluation, trained)
        if trained is not None:
            heads[trained] = checkpoint.config
    check_same(heads)


def identity_of(experiment: Experiment, sources: Sources, examples: Examples) -> Identity:
    """Hashes of everything that determines the result."""
    data = examples.train_fingerprint + examples.evaluation_fingerprint
    teachers = [teacher.fingerprint for teacher in sources.teachers]
    teacher = teachers if len(teachers) > 1 else next(iter(teachers), None)
    sparse = sources.sparse.fingerprint if sources.sparse is not None else None
    layers = sources.chosen.layers if sources.chosen is not None else None
    unlabelled = examples.unlabelled_fingerprint
    latency = sources.latency.fingerprint if sources.latency is not None else None
    contents = Contents(sources.base.fingerprint, data, teacher, sparse, unlabelled, layers, latency)
    return identify(experiment, contents)
