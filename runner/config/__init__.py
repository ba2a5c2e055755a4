"""The one door from YAML to Python: Hydra composes, dataclasses check, `Experiment` comes out.

The engine's own dataclasses are the schemas, stored as `schema/<group>/<class name>`; a YAML file of the group names
its schema in its defaults list and fills the fields. No list to edit: every subclass is found by itself.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pruning import (
    Allocation,
    Criterion,
    Distillation,
    NofM,
    Pattern,
    PruningError,
    Regularizer,
    Schedule,
)
from runner import data
from runner.config.recipe import Recipe
from runner.config.training import Training
from runner.data.task import Dataset
from runner.models import Model
from runner.system.errors import UserError
from runner.system.versions import VERSIONS
from runner.tracking import Tracking

GROUPS: dict[str, type] = {
    "model": Model,
    "dataset": Dataset,
    "pattern": Pattern,
    "criterion": Criterion,
    "allocation": Allocation,
    "schedule": Schedule,
    "regularizer": Regularizer,
    "distill": Distillation,
    "recipe": Recipe,
}
# Options of the group pattern whose names cannot be file names on Windows; any other by pattern=nm.
N_OF_M = ((1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (1, 2), (1, 8), (2, 16), (4, 16))


@dataclass
class Experiment:
    """One run. The groups first, then the two trainings, then the run's own keys."""

    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    pattern: Pattern = MISSING
    criterion: Criterion = MISSING
    allocation: Allocation = MISSING
    schedule: Schedule = MISSING
    regularizer: Regularizer = field(default_factory=Regularizer)
    distill: Distillation = MISSING
    recipe: Recipe = field(default_factory=Recipe)
    train: Training = field(default_factory=Training)
    """Pruning while distilling."""
    finetune: Training = field(default_factory=Training)
    """Fine-tuning of the dense model, where `model.finetuned` does not give one."""
    tracking: Tracking = field(default_factory=Tracking)
    prune: bool = True
    """false: only make, score, save and log the dense model."""
    force: bool = False
    """Run again although the same run was finished before."""
    dry_run: bool = False
    """Say what the run would do (layers, units, target, steps, mask updates, memory, time), and train nothing."""
    seed: int = 0
    """Seed of the head's weights, the data order and dropout."""
    output_dir: str = "outputs"
    """Each run makes a folder of its own in here."""
    cache_dir: str = "cache"
    """Dense models, tokenised features, teachers' logits and dense scores, found again by their content."""

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return self.prune or not self.model.finetuned


@dataclass
class Origin:
    """Where an experiment came from: what people typed, for labels and records."""

    labels: dict[str, str]
    """model, dataset and pattern, as the table names them."""
    choices: dict[str, str]
    """The option chosen in each group."""
    changed: dict[str, str]
    """Every key whose value is not that of its group's option or recipe, with its value."""
    overrides: list[str]
    """The command line."""
    yaml: str
    """The whole configuration, resolved."""
    repeats: str | None = None
    """The run that this one reproduces; None: it is a run of its own."""


def register() -> None:
    """Store every dataclass as a schema. Called once, before Hydra composes."""
    data.import_all()
    store = ConfigStore.instance()
    # Hydra copies its repository with this store in it for each compose, and three times for every group that --help
    # lists, only to change the list of sources. What is loaded from the store is copied by the store itself.
    ConfigStore.__deepcopy__ = _shared  # type: ignore[attr-defined]
    store.store(group="schema", name="experiment", node=Experiment, package="_global_")
    for group, base in GROUPS.items():
        for cls in _with_subclasses(base):
            store.store(group=f"schema/{group}", name=cls.__name__, node=cls, package=group)
    for n, m in N_OF_M:
        node = {"defaults": [f"/schema/pattern/{NofM.__name__}", "_self_"], "n": n, "m": m}
        store.store(group="pattern", name=f"{n}:{m}", node=node)


def _shared(store: ConfigStore, memo: dict[int, Any]) -> ConfigStore:
    """The deep copy of a singleton: itself."""
    return store


def _with_subclasses(cls: type) -> Iterator[type]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _with_subclasses(sub)


def compose(overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    """Compose the configuration, in a Hydra job or outside of one."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return hydra.compose("config", list(overrides), return_hydra_config=with_hydra)
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return hydra.compose("config", list(overrides), return_hydra_config=with_hydra)


def compose_experiment(overrides: Sequence[str]) -> tuple[Experiment, Origin]:
    """Compose, check and convert. Raises UserError, PruningError or Hydra's own errors, before anything is loaded."""
    register()
    config = compose(overrides, with_hydra=True)
    choices = chosen_options(config.hydra.runtime.choices)
    with open_dict(config):  # a masked copy would forget that this is an Experiment
        del config["hydra"]
    return load(config, choices, list(overrides))


def chosen_options(choices: Mapping[Any, Any]) -> dict[str, str]:
    """Of all that Hydra calls choices, the options of our groups."""
    return {k: str(v) for k, v in choices.items() if k in (*GROUPS, "experiment") and v}


def load(config: DictConfig, choices: dict[str, str], overrides: list[str]) -> tuple[Experiment, Origin]:
    """A composed configuration as objects, with its origin.

    Raises:
        UserError: a key has no value.
        PruningError, UserError: a value is out of range.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        hint = " (model=hub needs model.path=ID_OR_FOLDER)" if "model.path" in missing else ""
        raise UserError(f"no value for {', '.join(missing)}: set it on the command line or in YAML{hint}")
    experiment = OmegaConf.to_object(config)
    assert isinstance(experiment, Experiment)
    if experiment.recipe.name == Recipe().name:
        choices = {**choices, "recipe": experiment.recipe.name}
    return experiment, _origin(experiment, config, choices, overrides)


def _origin(experiment: Experiment, config: DictConfig, choices: dict[str, str], overrides: list[str]) -> Origin:
    # An experiment file may override values as the command line does, so it is no part of the plain configuration;
    # nor is a recipe that belongs to dataset and model anyway.
    implied = f"{choices['dataset']}-{choices['model']}"
    asked = {
        k: v for k, v in choices.items() if k != "experiment" and not (k == "recipe" and v in (implied, Recipe().name))
    }
    plain = _flat(compose([f"{group}={option}" for group, option in asked.items()]))
    actual = _flat(config)
    changed = {key: value for key, value in actual.items() if value != plain.get(key)}
    labels = {
        "model": _label(choices["model"], "model", ("finetuned", "path"), Model.defining, changed),
        "dataset": _label(choices["dataset"], "dataset", ("path",), Dataset.defining, changed),
        "pattern": str(experiment.pattern) if experiment.prune else "dense",
    }
    return Origin(labels, choices, changed, overrides, OmegaConf.to_yaml(config, resolve=True))


def _label(choice: str, group: str, shown: tuple[str, ...], defining: tuple[str, ...], changed: dict[str, str]) -> str:
    """The option's name, only while nothing that defines the group is overridden; else the value."""
    overridden = [key for key in (*shown, *defining) if f"{group}.{key}" in changed]
    if not overridden:
        return choice
    value = changed[f"{group}.{overridden[0]}"]
    if overridden[0] not in shown:
        return f"{choice}@{value}"
    return Path(value).name if Path(value).exists() else value


def _flat(config: DictConfig) -> dict[str, str]:
    """Dotted keys of the resolved values, without those that say where, not what."""
    out: dict[str, str] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict) and all(str(name).isidentifier() for name in value):  # else people's own names
                walk(value, f"{prefix}{key}.")
            else:
                out[f"{prefix}{key}"] = str(value)

    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    for key in ("recipe", "tracking", "output_dir", "cache_dir", "force", "dry_run", "seed"):
        values.pop(key, None)
    walk(values, "")
    return out


# --- the way back -------------------------------------------------------------------------------------------


@dataclass
class Restored:
    """A configuration that was kept, as objects again."""

    experiment: Experiment
    yaml: str
    """As it is now, with what was changed."""
    added: list[str]
    """Keys that it did not have, for they are newer than it: these have the values of today's dataclasses."""


def classes(experiment: Experiment) -> dict[str, str]:
    """The class of each group: with them the resolved YAML, which does not say it, is exact."""
    return {group: type(getattr(experiment, group)).__name__ for group in GROUPS}


def restore(yaml: str, chosen: Mapping[str, str], changes: Mapping[str, str | None]) -> Restored:
    """The experiment of a resolved configuration: no YAML file is read, so nothing depends on what those say today.

    Args:
        yaml: `Origin.yaml`.
        chosen: `classes` of the experiment that it was made of.
        changes: dotted keys that get other values.

    Raises:
        UserError: this version does not know a class or a key, or refuses a value.
    """
    data.import_all()
    given = OmegaConf.create(yaml)
    config = OmegaConf.structured(Experiment)
    try:
        for group, name in chosen.items():
            config[group] = OmegaConf.structured(_class(group, name))
        config = OmegaConf.merge(config, given)
        for key, value in changes.items():
            OmegaConf.update(config, key, value)
        experiment = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        for cause in (error.__cause__, error):
            if isinstance(cause, (UserError, PruningError)):
                raise cause from error
        raise UserError(
            f"config.yaml is not one of this version: {str(error).splitlines()[0]}; take the version that made the run"
        ) from error
    assert isinstance(experiment, Experiment)
    added = list(_added(OmegaConf.to_container(given), OmegaConf.to_container(config)))
    return Restored(experiment, OmegaConf.to_yaml(config, resolve=True), added)


def candidates(yaml: str) -> Iterator[dict[str, str]]:
    """All that the classes of a resolved configuration can have been: those with just these fields."""
    data.import_all()
    given: Any = OmegaConf.create(yaml)
    fitting = []
    for group, base in GROUPS.items():
        having = [cls for cls in _with_subclasses(base) if {f.name for f in fields(cls)} == set(given[group])]
        fitting.append([cls.__name__ for cls in sorted(having, key=lambda cls: len(cls.__subclasses__()))])
    for names in itertools.product(*fitting):
        yield dict(zip(GROUPS, names, strict=True))


def _class(group: str, name: str) -> type:
    for cls in _with_subclasses(GROUPS[group]):
        if cls.__name__ == name:
            return cls
    raise UserError(f"this version has no {group} of the class {name}; take the version that made the run")


def _added(before: Any, after: Any, prefix: str = "") -> Iterator[str]:
    for key, value in after.items():
        if key not in before:
            yield f"{prefix}{key}"
        elif isinstance(value, dict) and isinstance(before[key], dict):
            yield from _added(before[key], value, f"{prefix}{key}.")


# --- identity -----------------------------------------------------------------------------------------------


@dataclass
class Identity:
    """Hashes of all that determines a result."""

    run: str
    """All of it."""
    group: str
    """All but the seed."""
    dense: str
    """What determines the dense model, seed included."""
    control: str
    """All but the seed and what is pruned, and how: equal in a run and its same-budget dense control."""
    budget: str
    """The same without the distillation."""


def identify(experiment: Experiment, model: str, data: str, teacher: str | None, sparse: str | None = None) -> Identity:
    """Hash what determines the result: paths and logging do not, contents do.

    Args:
        model: fingerprint of the checkpoint that the run starts from (fine-tuned or not).
        data: fingerprint of the examples.
        teacher: fingerprint of a teacher other than the dense model.
        sparse: fingerprint of the sparse checkpoint that the student starts from, where that is not the dense model.
    """
    dense: dict[str, Any] = {
        "model": model,
        "dropout": [experiment.model.hidden_dropout, experiment.model.attention_dropout],
        "data": [data, type(experiment.dataset).__name__, experiment.dataset.settings()],
        "versions": {stage: VERSIONS[stage] for stage in ("prepare", "finetune")},
    }
    if experiment.model.finetuned is None:
        dense["finetune"] = experiment.finetune.determinants()
    run = dict(dense, versions=VERSIONS, prune=experiment.prune, scores=experiment.dataset.score_settings())
    if experiment.prune:
        run |= {
            "pattern": _typed(experiment.pattern),
            "distill": {**_typed(experiment.distill), "teacher": teacher},
            "train": experiment.train.determinants(),
        }
        if sparse is not None:
            run["sparse"] = sparse
        if experiment.pattern.prunes or experiment.pattern.locks or experiment.allocation.layers:
            run |= {
                "layers": [experiment.model.prunable, experiment.model.excluded],
                "criterion": _typed(experiment.criterion),
                "allocation": _typed(experiment.allocation),
                "schedule": _typed(experiment.schedule),
                "regularizer": _typed(experiment.regularizer),
            }
    seed = experiment.seed
    control = {key: run[key] for key in (*dense, "scores", "distill", "train") if key in run}
    budget = {key: value for key, value in control.items() if key != "distill"}
    return Identity(
        run=_hash([run, seed]),
        group=_hash(run),
        dense=_hash([dense, seed if experiment.model.finetuned is None else None]),
        control=_hash(control),
        budget=_hash(budget),
    )


def _typed(value: Any) -> dict[str, Any]:
    return {"type": type(value).__name__, **asdict(value)}


def _hash(value: Any) -> str:
    # Keys are not sorted: they come in the order of the fields, and that of allocation.layers has a meaning.
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


__all__ = [
    "Experiment",
    "Identity",
    "Origin",
    "Restored",
    "candidates",
    "chosen_options",
    "classes",
    "compose_experiment",
    "identify",
    "load",
    "register",
    "restore",
]
