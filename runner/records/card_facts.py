"""The facts that the model card reports about a run, as plain values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import demo, models
from runner.config.experiment import Experiment, Origin
from runner.data.examples import Examples
from runner.data.task import Dataset
from runner.models import heads
from runner.records import runs
from runner.system.errors import UserError
from runner.system.hub import explain
from runner.system.provenance import provenance

if TYPE_CHECKING:
    from runner.records.result import Result

NAME = "README.md"
"""File name of the card, where the hub looks for it."""
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")  # a name such as apache-2.0


@dataclass
class Source:
    """A model or a dataset that the saved model was made from."""

    name: str
    """The public name, not a path."""
    hub_id: str | None
    revision: str | None
    licence: str | None
    """Licence by the hub's name for it; None: not known."""


@dataclass
class Counted:
    """Numbers of examples used and available."""

    used: int
    official: int | None
    """Size of the whole official split; None: not known."""
    limit: int | None
    """Size of the requested subset; None: all."""
    holdout: float = 0.0
    """Fraction of train set aside and scored instead of the evaluation split."""
    has_split: bool = True
    """False if the hold-out stands for an evaluation split that the data do not have."""


@dataclass
class Facts:
    """Everything that the card reports, as plain values."""

    result: Result
    architecture: str
    pipeline_tag: str
    dense: Source
    """The dense model, or what it was fine-tuned from."""
    fine_tunes: bool
    """True if the run fine-tuned the dense model itself."""
    sparse: Source | None
    """The sparse checkpoint that the student starts from."""
    teachers: list[str]
    """Teachers other than the dense model."""
    data: Source
    evaluated: Counted
    trained: Counted | None
    pruning: Mapping[str, Any] | None
    """pruning.json; None with prune=false."""
    pattern_meaning: str
    """Meaning of the pattern, in words."""
    distill: Mapping[str, Any]
    """Class of the distillation as `name`, and its settings."""
    train: Mapping[str, Any]
    """Settings of the pruning, or of the fine-tuning with prune=false; empty if nothing is trained."""
    made_by: Mapping[str, str]
    """Tags of `runner.system.provenance`."""
    overrides: list[str]
    """The command line."""
    head_of: Source | None = None
    """The teacher whose head the model has, if that is not the dense model."""
    unlabelled: int = 0
    """Training examples without labels."""
    has_projector: bool = False
    """True if a projector stands before the head, which no class of transformers supports."""

    @property
    def sources(self) -> list[Source]:
        """The models that the weights come from."""
        return [model for model in (self.sparse, self.dense, self.head_of) if model is not None]


def collect(folder: Path, experiment: Experiment, origin: Origin, examples: Examples, result: Result) -> Facts:
    """Collect the facts of a run.

    Args:
        folder: the saved model's, with config.json and pruning.json.
    """
    task, model, prune = experiment.dataset, experiment.model, experiment.prune
    official = (task.official_train, task.official_evaluation) if is_official(origin) else (None, None)
    train = examples.train
    dense = (model.finetuned, model.finetuned_revision) if model.finetuned else (model.path, model.revision)
    training = experiment.train if prune else experiment.finetune
    return Facts(
        result=result,
        architecture=task.architecture,
        pipeline_tag=task.pipeline_tag,
        dense=source(*dense),
        fine_tunes=not model.finetuned,
        sparse=of_run(model.sparse) if model.sparse else None,
        teachers=[shown(teacher) for teacher in experiment.distill.teachers] if prune else [],
        data=data_of(task, origin),
        evaluated=Counted(
            len(examples.evaluation), official[1], task.max_eval_samples, examples.held_out, examples.has_split
        ),
        trained=Counted(len(train), official[0], task.max_train_samples) if train is not None else None,
        unlabelled=result.unlabelled_examples,
        pruning=json.loads((folder / "pruning.json").read_text(encoding="utf-8")) if prune else None,
        pattern_meaning=" ".join((getdoc(type(experiment.pattern)) or "").partition("\n\n")[0].split()),
        distill={"name": type(experiment.distill).__name__, **asdict(experiment.distill)},
        train=training.plain() if experiment.trains else {},
        made_by=provenance(),
        head_of=head_of(experiment),
        has_projector=heads.KEY in json.loads((folder / "config.json").read_text(encoding="utf-8")),
        overrides=origin.overrides,
    )


def data_of(task: Dataset, origin: Origin) -> Source:
    """The data. The licence in a dataset's YAML does not apply to other data, unless it was configured with them."""
    configured = "dataset.licence" in origin.changed or any("dataset.licence=" in key for key in origin.overrides)
    known = task.licence if configured or is_official(origin) else None
    return Source(origin.labels["dataset"], task.hub_id, task.revision, known)


def is_official(origin: Origin) -> bool:
    """True if the data are those that the chosen option of the group dataset names."""
    return origin.labels["dataset"] == origin.choices["dataset"]


def head_of(experiment: Experiment) -> Source | None:
    """The teacher whose head the model has, if that is not the dense model."""
    distill = experiment.distill
    if not (experiment.prune and distill.shares_head and distill.weight and distill.teachers):
        return None
    return of_run(distill.teachers[0])


def of_run(path: str) -> Source:
    """The model that is configured by a path, a hub id, or the id of a run."""
    return Source(f"of MLflow run {path}", None, None, None) if runs.is_id(path) else source(path, None)


def source(path: str, revision: str | None) -> Source:
    """The model that is configured by a path or a hub id."""
    local = path.startswith(models.EMBEDDED) or Path(path).expanduser().exists()
    return Source(shown(path), None if local else path, None if local else revision, licence(path, revision))


def shown(path: str) -> str:
    """A configured model, for readers elsewhere: a folder by its name only."""
    return Path(path).name if Path(path).expanduser().exists() else path


def licence(path: str, revision: str | None) -> str | None:
    """The licence that a model's own card names, by the hub's name for it; None if unknown."""
    import yaml
    from huggingface_hub import hf_hub_download, metadata_load

    if path.startswith(models.EMBEDDED):
        path = str(Path(demo.__file__).parent / path.removeprefix(models.EMBEDDED))
    folder = Path(path).expanduser()
    try:
        if folder.is_dir():
            card = folder / NAME
        else:
            with explain("model", "model.path", path):
                card = Path(hf_hub_download(path, NAME, revision=revision))
        name = (metadata_load(card) or {}).get("license")
    except (UserError, OSError, ValueError, yaml.YAMLError):  # no card, no hub, or no metadata
        return None
    return name if isinstance(name, str) and _LICENCE.fullmatch(name) else None
