"""The way back: the experiment of a recorded configuration, exactly, without reading today's YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pruning import PruningError
from runner import data
from runner.config import plugins
from runner.config.experiment import GROUPS, PLACES, Experiment, with_subclasses
from runner.system.errors import UserError

TODAY = ("tracking", "output_dir", "cache_dir", "force", "dry_run")
"""Keys that are not restored: where this process works, and how."""
_INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")
"""`${`, unless an odd number of backslashes before it makes it text."""


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


def restore(yaml: str, chosen: Mapping[str, str], changes: Mapping[str, Any]) -> Restored:
    """The experiment of a recorded configuration: no YAML file is read, so nothing depends on what those say today. Its
    store and its folders are today's: those of the record belong to who made it.

    Args:
        yaml: `Origin.yaml`.
        chosen: `classes` of the experiment that it was made of.
        changes: dotted keys that get other values.

    Raises:
        UserError: this version does not know a class or a key, or refuses a value; or a value is an interpolation.
    """
    data.import_all()
    given, changes = read(yaml), dict(changes)
    given[plugins.KEY] = _plugins(given.get(plugins.KEY), changes.pop(plugins.KEY, None))
    _refuse_interpolations(given, changes)
    config = OmegaConf.structured(Experiment)
    try:
        for group, name in chosen.items():
            config[group] = OmegaConf.structured(_class(group, name))
        ours = OmegaConf.create({key: value for key, value in given.items() if key not in TODAY})
        config = OmegaConf.merge(config, ours)
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
    added = list(_added(given, OmegaConf.to_container(config)))
    return Restored(experiment, OmegaConf.to_yaml(config, resolve=True), added)


def _plugins(recorded: Any, asked: str | None) -> list[str]:
    """Import the modules that the command line names, never those that the record names.

    Raises:
        UserError: the record names modules, and the command line none.
    """
    if recorded and asked is None:
        listed = ",".join(map(str, recorded)) if isinstance(recorded, list) else recorded
        raise UserError(
            f"config.yaml names {plugins.KEY}=[{listed}], code that is not imported because a record says so; read the "
            f"modules of these names on your Python path, then add '{plugins.KEY}=[MODULE]' to this command "
            f"(--{plugins.KEY} MODULE to runner.export)"
        )
    names = plugins.named(asked) if asked is not None else []
    plugins.load(names)
    return names


def read(yaml: str) -> dict[str, Any]:
    """The values of a recorded configuration, with interpolations as text."""
    try:
        config = OmegaConf.create(yaml)
        values = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else None
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(
            f"config.yaml is damaged: {str(error).splitlines()[0]}; take a whole copy of the run"
        ) from error
    if not isinstance(values, dict):
        raise UserError("config.yaml is damaged: it is no mapping of keys to values; take a whole copy of the run")
    return {str(key): value for key, value in values.items()}


def _refuse_interpolations(given: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Refuse values that would be read from this process's environment, or computed: a record has plain values."""
    for key, value in _leaves(given, ""):
        if (
            key.partition(".")[0] in TODAY
            or key in changes
            or not (isinstance(value, str) and _INTERPOLATION.search(value))
        ):
            continue
        place = key in PLACES
        remedy = f"add {new_place(given, key)} to this command" if place else "write there the value that the run had"
        raise UserError(
            f"config.yaml: {key}={value} is an interpolation, which is not followed in the record of a run: it could "
            f"read a secret of whoever repeats the run; {remedy}"
        )


def new_place(values: Mapping[str, Any], key: str) -> str:
    """The argument that gives a recorded place anew, as it is typed: `distill.teacher=[PLACE,PLACE]` for a list."""
    group, _, name = key.partition(".")
    value = values.get(group, {}).get(name)
    return f"{key}=[{','.join(['PLACE'] * len(value))}]" if isinstance(value, list) else f"{key}=PLACE"


def _leaves(values: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The values of nested mappings and lists, by dotted keys; of a list under its own key."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for value in values:
            yield from _leaves(value, key)
    else:
        yield key, values


def _class(group: str, name: str) -> type:
    for cls in with_subclasses(GROUPS.get(group, NoneType)):
        if cls.__name__ == name:
            return cls
    raise UserError(f"this version has no {group} of the class {name}; take the version that made the run")


def _added(before: Any, after: Any, prefix: str = "") -> Iterator[str]:
    for key, value in after.items():
        if key not in before:
            yield f"{prefix}{key}"
        elif isinstance(value, dict) and isinstance(before[key], dict):
            yield from _added(before[key], value, f"{prefix}{key}.")
