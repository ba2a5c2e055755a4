"""A user's own criteria, schedules, patterns, distillations and tasks: subclasses in the modules of `plugins=[...]`.

A module is imported because the command line names it: what a YAML file or the record of a run says is not obeyed.
"""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning import Coupled, Pattern, PruningError, parse
from runner.config.experiment import GROUPS, with_subclasses
from runner.config.keys import all_keys
from runner.system.errors import UserError
from runner.system.fingerprint import SHORT, hash_files

if TYPE_CHECKING:
    from runner.config.experiment import Experiment

KEY = "plugins"
_LIST = re.compile(r"\[\s*([^\W\d][\w.]*(?:\s*,\s*[^\W\d][\w.]*)*)?\s*\]")
_OURS = ("pruning", "runner")

_NEEDED_IF = {"observation": "needs_gradient", "accumulate": "needs_gradient", "answered": "answer"}
"""Methods that only some subclasses need: those with this attribute."""

_loaded: set[str] = set()
"""Top-level modules that were named and imported."""


def load_asked(overrides: Sequence[str]) -> list[str]:
    """Import the modules that the overrides name, before Hydra composes; returns their names.

    Raises:
        UserError: there is no such module, or it fails, or it has a class with the name of another.
    """
    values = [o.partition("=")[2] for o in overrides if o.lstrip("+").partition("=")[0] == KEY]
    names = [name for value in values for name in named(value)]
    load(names)
    return names


def named(value: str) -> list[str]:
    """The modules in the value of an override, such as [mine]."""
    listed = _LIST.fullmatch(value)
    if listed is None:
        raise UserError(f"{KEY}={value}: name modules, in a list: {KEY}=[my_module]")
    return [name.strip() for name in listed[1].split(",")] if listed[1] else []


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add --plugins to a command that reads a model or a run of somebody else, and obeys no names of modules in it."""
    what = "import your own modules with patterns or tasks that a run names, such as my_module or one,two"
    parser.add_argument("--plugins", metavar="MODULES", type=modules, default=None, help=what)


def modules(text: str) -> list[str]:
    """The modules in the value of --plugins: my_module, one,two or [one,two]."""
    return named(text if text.startswith("[") else f"[{text}]")


def check_patterns(file: Path, patterns: Iterable[str]) -> None:
    """Refuse patterns in a record that are neither ours nor of a module that was loaded. Raises UserError."""
    for name in sorted(set(patterns)):
        try:
            parse(name)
        except PruningError as error:
            raise UserError(
                f"{file}: the pattern {name} is not ours: its class is in a module of whoever pruned the model, which "
                "is not imported because a folder says so; read that module, then add --plugins MODULE"
            ) from error


def load(names: Sequence[str]) -> None:
    """Import modules, and refuse classes that share their names with others.

    Raises:
        UserError: see `load_asked`.
    """
    for name in names:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise _failed(name, error) from error
            remedy = f"start from the folder of {name.partition('.')[0]}.py, or add that folder to PYTHONPATH"
            raise UserError(f"{KEY}=[{name}]: there is no module {error.name} on Python's path; {remedy}") from error
        except Exception as error:
            raise _failed(name, error) from error
        _loaded.add(_top(name))
    if names:
        _check_names()
        all_keys.cache_clear()


def _failed(name: str, error: Exception) -> UserError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return UserError(
        f"{KEY}=[{name}]: its import fails: {type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
    )


def _check_names() -> None:
    """Class names stand in YAML and in the identities of runs."""
    for group, base in GROUPS.items():
        by_name: dict[str, type] = {}
        for cls in with_subclasses(base):
            other = by_name.setdefault(cls.__name__, cls)
            if other is not cls and {_top(cls.__module__), _top(other.__module__)} & _loaded:
                mine, theirs = (cls, other) if _top(cls.__module__) in _loaded else (other, cls)
                raise UserError(
                    f"{KEY}=[{mine.__module__}]: the class {mine.__name__} has the name of a {group} of "
                    f"{theirs.__module__}; give it another name"
                )


def options(group: str) -> Iterator[tuple[str, type]]:
    """An option for each class of a loaded module: its name in lower case, such as row_share for RowShare."""
    for cls in with_subclasses(GROUPS[group]):
        if _top(cls.__module__) in _loaded:
            yield re.sub(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower(), cls


def check(experiment: Experiment, names: Sequence[str]) -> None:
    """Refuse modules that YAML names, and classes of modules that nobody named.

    Args:
        names: the modules on the command line.

    Raises:
        UserError: see above.
    """
    if others := [name for name in experiment.plugins if name not in names]:
        raise UserError(
            f"{KEY}=[{','.join(others)}] in a YAML file is not obeyed, as it is code; name it on the command line"
        )
    for group in GROUPS:
        cls = type(getattr(experiment, group))
        if _top(cls.__module__) not in (*_OURS, *map(_top, names)):
            remedy = "put it into a module, and add " if cls.__module__ == "__main__" else "add "
            module = "my_module" if cls.__module__ == "__main__" else cls.__module__
            raise UserError(f"{group}: {cls.__module__}.{cls.__name__} is not ours; {remedy}{KEY}=[{module}]")
        if _top(cls.__module__) not in _OURS:
            _check_whole(group, getattr(experiment, group))


def _check_whole(group: str, value: Any) -> None:
    """Refuse an option of a loaded module that lacks what the run would ask for, perhaps hours later."""
    cls, base = type(value), GROUPS[group]
    named = f"{group}: {cls.__module__}.{cls.__name__}"
    methods = [name for name in dir(cls) if getattr(getattr(cls, name), "__isabstractmethod__", False)]
    lacking = [f"the method {name}" for name in methods if getattr(value, _NEEDED_IF.get(name, "__class__"))]
    attributes = {name for name in base.__dataclass_fields__ if name not in {field.name for field in fields(base)}}
    lacking += [f"the attribute {name}" for name in sorted(attributes) if not hasattr(cls, name)]
    if lacking:
        raise UserError(f"{named} lacks {', '.join(lacking)}; see {base.__name__} in {base.__module__}")
    # A saved model is verified by the names of its patterns; units of several matrices are blocks in each of them.
    if isinstance(value, Pattern) and not isinstance(value, Coupled):
        try:
            parse(str(value))
        except PruningError as error:
            raise UserError(
                f"{named}: parse gives no pattern for {str(value)!r}, the name by which a saved model is verified; "
                "define the class method parse(cls, text, target_sparsity): the pattern that str writes as `text`, or "
                "None"
            ) from error


def source_of(experiment: Experiment, value: Any) -> dict[str, str]:
    """What the identity of a run has of the code behind the option of a group: nothing if it is ours, else a hash of
    the modules that the run names."""
    if _top(type(value).__module__) in _OURS or not experiment.plugins:
        return {}
    return {"plugin": hash_files(file for name in experiment.plugins for file in _files(name))[:SHORT]}


def sources(experiment: Experiment) -> dict[str, str]:
    """Each module that the experiment names, with a hash of its source."""
    return {name: hash_files(_files(name))[:SHORT] for name in experiment.plugins}


def _files(name: str) -> Iterator[Path]:
    """The file of a module; of a package, all its Python files."""
    module = sys.modules[_top(name)]
    if module.__file__ is not None and not hasattr(module, "__path__"):
        yield Path(module.__file__)
    for folder in getattr(module, "__path__", ()):
        yield from Path(folder).rglob("*.py")


def _top(module: str) -> str:
    return module.partition(".")[0]
