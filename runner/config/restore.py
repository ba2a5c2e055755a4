"""The way back: the experiment of a recorded configuration, exactly, without reading today's YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pruning import PruningError
from runner import data
from runner.config.experiment import GROUPS, Experiment, with_subclasses
from runner.system.errors import UserError


@dataclass
class Restored:
    """A recorded configuration, as objects again."""

    experiment: Experiment
    yaml: str
    """The configuration with its changes."""
    added: list[str]
    """Keys that the record lacks because they are newer: they have the defaults of today's dataclasses."""


def classes(experiment: Experiment) -> dict[str, str]:
    """The class of each group, which the resolved YAML does not name."""
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


def _class(group: str, name: str) -> type:
    for cls in with_subclasses(GROUPS[group]):
        if cls.__name__ == name:
            return cls
    raise UserError(f"this version has no {group} of the class {name}; take the version that made the run")


def _added(before: Any, after: Any, prefix: str = "") -> Iterator[str]:
    for key, value in after.items():
        if key not in before:
            yield f"{prefix}{key}"
        elif isinstance(value, dict) and isinstance(before[key], dict):
            yield from _added(before[key], value, f"{prefix}{key}.")
