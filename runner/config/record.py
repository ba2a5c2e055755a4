"""The configuration as it is recorded: resolved, but for texts from the environment, which stay as they were given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

_ENVIRONMENT = "oc.env"


def recorded(config: DictConfig) -> dict[str, Any]:
    """The values of a configuration, without what only the environment knows: a text that depends on a variable, such
    as `${oc.env:DATA}/squad`, names it. Numbers and flags have their values, as they are no secrets."""
    values: Any = OmegaConf.to_container(config, resolve=True)
    with _variables_named():
        _name_variables(config, values)
    return values


def as_yaml(values: dict[str, Any]) -> str:
    """Recorded values as YAML. `${` in a text that names no variable is escaped, so that it stays text."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(values)))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str) and not is_from_environment(value):
        return re.sub(r"(\\*)\$\{", lambda match: f"{match[1] * 2}\\${{", value)
    return value


def is_from_environment(value: Any) -> bool:
    """Whether a recorded value is a text that depends on a variable of the environment."""
    return isinstance(value, str) and f"${{{_ENVIRONMENT}:" in value


def _name_variables(config: Any, values: dict[Any, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, (str, dict, list)):
            try:
                named = config[key]
            except OmegaConfBaseException:  # a resolver that needs the variable's value
                named = OmegaConf.to_container(config, resolve=False)[key]  # type: ignore[index, call-overload]
            if isinstance(value, dict):
                _name_variables(named, value)
            elif isinstance(value, list):
                values[key] = [named[i] if isinstance(item, str) else item for i, item in enumerate(value)]
            else:
                values[key] = named if isinstance(named, str) else value


@contextmanager
def _variables_named() -> Iterator[None]:
    """Let `${oc.env:NAME}` resolve to this text itself."""
    OmegaConf.register_new_resolver(
        _ENVIRONMENT, lambda *names: f"${{{_ENVIRONMENT}:{','.join(map(str, names))}}}", replace=True
    )
    try:
        yield
    finally:
        OmegaConf.register_new_resolver(_ENVIRONMENT, oc.env, replace=True)
