"""The runner from Python, in a script, a notebook or a thread: `from runner import run, compose, results`.

    result = run("model=tiny", "dataset=demo", "pattern=4x1")   # a Result, which result.json in its folder has too
    experiment = compose("model=bert-base", "pattern=2:4")      # the checked configuration, without running it
    rows = results(model="tiny")                                # of the table; pandas.DataFrame(rows) takes them

Overrides are those of the command line. What the command line reports in one line is raised as `UserError`. Nothing of
the process is changed for good: not its folder, logging, signals or Hydra. Runs of several threads wait for each other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from results.safe_text import printable
from runner.config.compose import compose_experiment, override_parser
from runner.config.refusals import explained
from runner.config.schemas import isolated
from runner.system import ranks, spelling
from runner.system.errors import UserError
from runner.system.process import message, set_up_for_a_while

if TYPE_CHECKING:
    from results.rows import Row
    from runner.config.experiment import Experiment, Origin
    from runner.records.result import Result

_one_at_a_time = threading.RLock()
"""Held while a configuration is composed or a run is in progress: Hydra, logging and random numbers are global."""

_EXAMPLES = {"model": "bert-*", "dataset": "squad", "pattern": "4x1,2:4", "sweep": "0123456789abcdef0123456789abcdef"}
"""What filters look like."""


def run(*overrides: str) -> Result:
    """Run one experiment, or return its stored result if it finished before.

    Args:
        overrides: as on the command line, such as "model=bert-base".

    Raises:
        UserError: what the command line refuses, or cannot do.
        KeyboardInterrupt: the process was interrupted; a checkpoint was saved, and the same call resumes from it.
    """
    from runner import experiment

    with _errors():
        asked, origin = _composed(overrides)
        if asked.dry_run:
            raise UserError("dry_run=true: run() returns a result; use compose(), or `python -m runner` for a dry run")
        if ranks.world_size() > 1:
            raise UserError("run() works in one process: start several ranks with `torchrun -m runner ...`")
        with _one_at_a_time, set_up_for_a_while():
            ranks.check_launcher()
            return experiment.run(asked, origin)


def compose(*overrides: str) -> Experiment:
    """The configuration of a run, checked, as the objects that it is made of. Nothing is loaded.

    Args:
        overrides: as on the command line.

    Raises:
        UserError: what the command line refuses before it loads anything.
    """
    with _errors():
        return _composed(overrides)[0]


def results(
    tracking_uri: str | os.PathLike[str] | None = None,
    experiment: str | None = None,
    intervals: bool = True,
    published: bool = False,
    **filters: Any,
) -> list[Row]:
    """The rows of the table, each of which pools runs that differ only in their seed.

    Args:
        tracking_uri: MLflow's store, or the path of its sqlite file; None: $MLFLOW_TRACKING_URI, or else mlflow.db in
            the working folder.
        experiment: the name of one experiment of MLflow; None: all active ones.
        intervals: compute 95 % intervals, which reads an artifact of every run.
        published: add the published figures.
        filters: fields of `results.filters.Filters`: model, dataset, pattern (shell patterns, as one text
            separated by commas or as a list), tags (a mapping), sweep.

    Raises:
        UserError: the store cannot be read, or the filters match no run.
    """
    from runner.tracking import Tracking  # isort: skip  # sets variables that MLflow reads when it is imported
    from results.filters import Filters
    from results.load import Unreadable, client_of, load, readable

    names = [field.name for field in fields(Filters)]
    with _errors():
        for name in filters.keys() - {*names}:
            raise UserError(f"results({name}=...): there is no such filter; there are {', '.join(names)}")
        wanted = Filters(**_read(filters))
        uri = Tracking(_store(tracking_uri)).store
        try:
            client = client_of(uri)
            with readable(uri):
                return load(client, experiment, wanted, intervals, published)[0]
        except Unreadable as error:
            raise UserError(str(error).replace("by --tracking-uri", "as tracking_uri")) from error


def _store(given: object) -> str | None:
    """The URI of a store that may be given as a path."""
    if isinstance(given, os.PathLike):
        return f"sqlite:///{os.fspath(given)}"
    if not isinstance(given, str | None):
        raise UserError(
            f"results(tracking_uri={given!r}): give a URI such as 'sqlite:///mlflow.db', or a path of such a file"
        )
    return given


def _read(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Filters as `Filters` has them: patterns in one text, tags as pairs."""
    read = dict(filters)
    for name, given in filters.items():
        if name == "tags":
            try:
                read[name] = [(str(key), str(value)) for key, value in dict(given or {}).items()]
            except (TypeError, ValueError) as error:
                message = f"results(tags={given!r}): give a mapping of MLflow's tags, such as {{'team': 'mine'}}"
                raise UserError(message) from error
        elif name != "sweep" and isinstance(given, list | tuple) and all(isinstance(each, str) for each in given):
            read[name] = ",".join(given) or None
        elif not isinstance(given, str | None):
            raise UserError(f"results({name}={given!r}): give a text, such as {_EXAMPLES[name]!r}")
    return read


def _composed(overrides: tuple[str, ...]) -> tuple[Experiment, Origin]:
    for override in overrides:
        if not isinstance(override, str):
            whole = "; a list of them is given as run(*overrides)" if isinstance(override, list | tuple) else ""
            raise UserError(f"{override!r}: an override is a text, such as 'model=bert-mini'{whole}")
    if misspelled := spelling.mistake(overrides):
        raise UserError(misspelled)
    with _one_at_a_time, isolated():
        with explained(overrides):
            for override in override_parser().parse_overrides(list(overrides)):
                if override.is_sweep_override():
                    raise UserError(f"{override.input_line}: these are several values; call run() for each of them")
        return compose_experiment(overrides)


@contextmanager
def _errors() -> Iterator[None]:
    """Raise what the user can fix as one UserError, without credentials and without the traceback of libraries."""
    try:
        yield
    except Exception as error:
        text = message(error)
        if text is None:
            raise
        raise UserError(printable(text)) from (error if os.environ.get("PRUNE_DISTILL_TRACEBACK") else None)
