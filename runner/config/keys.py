"""All configuration keys: refuses one that no dataclass has, and names the nearest that exists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, TypeGuard, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf

from runner.config.experiment import GROUPS, Experiment, with_subclasses
from runner.system import spelling
from runner.system.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CHOICES = (*GROUPS, "experiment", "hparams_search", "debug")
"""Names to which the command line gives one of several options."""


@cache
def all_keys() -> dict[str, list[type]]:
    """Every key, dotted, with the classes that have it."""
    owners: dict[str, list[type]] = {}
    for name, kind in get_type_hints(Experiment).items():
        classes = [*with_subclasses(GROUPS[name])] if name in GROUPS else [kind]
        for cls in classes if _is_class(kind) else ():
            for key in _leaves(cls, f"{name}."):
                owners.setdefault(key, []).append(cls)
        if not _is_class(kind):
            owners[name] = [Experiment]
    return owners


def _is_class(kind: Any) -> TypeGuard[type[DataclassInstance]]:
    return isinstance(kind, type) and is_dataclass(kind)


def _leaves(cls: type[DataclassInstance], prefix: str) -> Iterator[str]:
    hints = get_type_hints(cls)
    for field in fields(cls):
        kind = hints[field.name]
        if _is_class(kind):
            yield from _leaves(kind, f"{prefix}{field.name}.")
            continue
        yield f"{prefix}{field.name}"
        for values in filter(_is_class, get_args(kind)):  # of a dict, by names that people choose
            yield from _leaves(values, f"{prefix}{field.name}.*.")


def values_of(key: str) -> list[str]:
    """The names that a key takes; none if it takes other values."""
    group, _, name = key.rpartition(".")
    for cls in all_keys().get(key, ()):
        hint = get_type_hints(cls).get(name if group else key)
        kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and issubclass(kind, Enum)]
        if kinds:
            return [member.name for member in kinds[0]]
    return []


def check_keys(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a key that no dataclass has, and the deletion of one that a run needs.

    Args:
        overrides: the command line, to quote what added or deleted the key.
    """
    for key, kind, exists in _misfits(config, ""):
        given = next((o for o in overrides if _concerns(o, key)), key)
        if exists:
            typed = _typed(given)
            raise unknown_key(typed if typed.startswith(f"{key}.") else key, given, kind.__name__)
        raise UserError(f"{given}: a run needs the key {key}, which has a default; give it another value instead")


def check_key(override: str) -> None:
    """Refuse the key of an override that is not composed itself, such as a search space."""
    key = _typed(override)
    known = (key, key.rpartition(".")[0])  # allocation.layers.NAME is a key of a dict
    if not (key in CHOICES or key.startswith("hydra.") or any(k in all_keys() for k in known)):
        raise unknown_key(key, override)


def _misfits(node: DictConfig, prefix: str) -> Iterator[tuple[str, type, bool]]:
    """Keys that are not in the class of their node, and fields that were deleted: key, class, whether it exists."""
    kind: Any = OmegaConf.get_type(node)
    known = [field.name for field in fields(kind)] if _is_class(kind) else list(node.keys())
    for key in dict.fromkeys([*node.keys(), *known]):
        if (key in known) != (key in node.keys()):  # noqa: SIM118 - `in node` is false for a key without a value
            yield f"{prefix}{key}", kind, key in node.keys()  # noqa: SIM118
    for key in known:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing() or child._is_interpolation()):
            yield from _misfits(child, f"{prefix}{key}.")


def _typed(override: str) -> str:
    """The key of an override."""
    return override.lstrip("+~").partition("=")[0]


def _concerns(override: str, key: str) -> bool:
    typed = _typed(override)
    return typed == key or typed.startswith(f"{key}.") or key.startswith(f"{typed}.")


def unknown_key(key: str, given: str, kind: str | None = None) -> UserError:
    """The error of a key that does not exist.

    Args:
        given: the override or the file that has it.
        kind: the name of the class in which it was looked for.
    """
    if key in spelling.MOVED_KEYS:
        return UserError(f"there is no {key}: it is now {spelling.MOVED_KEYS[key]}, set that instead")
    group, _, name = key.rpartition(".")
    owners = [owner.__name__ for owner in all_keys().get(key, ())]
    if owners and kind is not None:
        has = [k.rpartition(".")[2] for k, classes in all_keys().items() if kind in (c.__name__ for c in classes)]
        remedy = f"it has {', '.join(has)}" if len(has) < 10 else "python -m runner.reference prints all keys"
        if group in GROUPS and kind == GROUPS[group].__name__:
            remedy = f"begin the file with the list defaults, which names one, such as /schema/{group}/{owners[0]}"
        return UserError(f"{given}: {kind} has no key {name}, which is one of {' and '.join(owners)}; {remedy}")
    meant = nearest(key)
    remedy = f"did you mean {meant}?" if meant else "python -m runner.reference prints all keys"
    return UserError(f"{given}: there is no key {key}; {remedy}")


def nearest(key: str) -> str | None:
    """The key that was probably meant; None if no name is like it."""
    return spelling.nearest(key, [*all_keys(), *CHOICES, *get_type_hints(Experiment)])
