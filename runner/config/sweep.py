"""The configurations of the jobs of a sweep. What jobs have in common is composed once: Hydra takes a fifth of a second
for each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict

from runner.config.compose import asked_groups, chosen_options, compose, load, override_parser, register
from runner.config.experiment import GROUPS, Experiment, Origin
from runner.config.refusals import explained

_ROOTS = {field.name for field in fields(Experiment)}


class Composer:
    """Composes, checks and converts one job after the other, with the results of `compose_experiment`."""

    def __init__(self) -> None:
        register()
        self._configs: dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]] = {}
        self._plain: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> tuple[Experiment, Origin]:
        """Raises UserError or PruningError."""
        with explained(overrides):
            parsed = override_parser().parse_overrides(list(overrides))
            values = [override for override in parsed if _is_value(override)]
            config, choices = self._composed(tuple(str(o.input_line) for o in parsed if not _is_value(o)))
            ConfigLoaderImpl._apply_overrides_to_config(values, config)  # as Hydra does after composing
        return load(config, choices, list(overrides), self._plain_config)

    def _composed(self, overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
        """A configuration that may be changed, and the options that it has."""
        if overrides not in self._configs:
            config = compose(overrides, with_hydra=True)
            choices = chosen_options(config.hydra.runtime.choices)
            with open_dict(config):
                del config["hydra"]
            self._configs[overrides] = config, choices
            if all(override.partition("=")[0] in GROUPS for override in overrides) and "experiment" not in choices:
                self._plain.setdefault(tuple(asked_groups(choices)), config)
        config, choices = self._configs[overrides]
        return copy.deepcopy(config), choices

    def _plain_config(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration with these groups alone."""
        key = tuple(overrides)
        if key not in self._plain:
            self._plain[key] = compose(overrides)
        return self._plain[key]


def _is_value(override: Override) -> bool:
    """Whether an override changes a value only, which it does after all groups are composed."""
    key = override.key_or_group
    plain = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
    return plain and "/" not in key and key not in GROUPS and key.partition(".")[0] in _ROOTS
