"""A finished run, by its folder or its id in MLflow: the input of `runner.share`, `runner.examples`,
`runner.reproduce`, `runner.benchmark` and `runner.export`. And the record of how a run was made."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from results import columns
from runner import models, tracking
from runner.config import plugins
from runner.config.experiment import PLACES, Experiment, Origin
from runner.config.restore import Restored, classes, new_place, read, restore
from runner.data.examples import Examples
from runner.system import files, provenance, ranks
from runner.system.device import hardware, instructions
from runner.system.errors import UserError
from runner.system.spelling import did_you_mean
from runner.system.versions import VERSIONS
from runner.tracking import Tracking


@dataclass
class Run:
    """A finished run."""

    folder: Path
    """The run's folder, with `model/`, `config.yaml` and the rest."""
    run_id: str | None
    """The run's id in MLflow; None if it is not uploaded yet."""
    yaml: str
    """The configuration, as it was recorded."""
    result: dict[str, Any]
    """Contents of result.json: see `runner.records.result.Result`."""


def is_id(given: str) -> bool:
    """True if the text has the form of a run's id in MLflow."""
    return re.fullmatch("[0-9a-f]{32}", given) is not None


def find(given: str, where: Tracking) -> Run:
    """Find a finished run.

    Args:
        given: the run's folder, or its id in MLflow.
        where: the MLflow store, used for ids only.

    Raises:
        UserError: there is no such run, it is not finished, or its folder is not on this machine.
    """
    folder = Path(given).expanduser()
    if not folder.is_dir():
        if not is_id(given):
            what = "neither a run's folder nor the id of a run in MLflow (32 hexadecimal digits)"
            raise UserError(f"{given}: {what}{did_you_mean(folder)}")
        folder = _folder_of(given, where)
    result = files.read_json(folder / "result.json")
    if result is None:
        raise UserError(
            f"{folder}: there is no result.json, or a damaged one: give the folder of a finished run, such as "
            "outputs/<model>-<dataset>-<pattern>-s<seed>-<hash>"
        )
    file = folder / columns.CONFIG
    if not file.is_file():
        raise UserError(f"{file} is missing: the run cannot be repeated or described without it")
    return Run(folder, result["mlflow_run"], file.read_text(encoding="utf-8"), result)


def find_model(given: str, where: Tracking) -> tuple[Path, Path]:
    """Find a saved model, by its own folder or by its run.

    Args:
        given: the folder of the model or of a run, or a run's id in MLflow.
        where: the MLflow store, used for ids only.

    Returns:
        The folder that was given, or that of the run, and the folder of the model.

    Raises:
        UserError: there is no such model, or the run is not finished.
    """
    folder = Path(given).expanduser()
    if not folder.is_dir() and is_id(given):
        folder = find(given, where).folder
    model = models.saved_in(folder)
    if not (model / "config.json").is_file():
        raise UserError(
            f"{given}: there is no config.json in this folder, nor in its folder model{did_you_mean(folder)}"
        )
    return folder, model


def dense_model(given: str, key: str, where: Tracking) -> str:
    """Resolve the configured path of a dense model: the folder or id of a run gives its model's folder, any other path
    stays as it is.

    Args:
        key: the configuration key, for messages.
        where: the MLflow store, used for ids only.

    Raises:
        UserError: the run does not exist, or pruned its model.
    """
    run = _run_of(given, key, where)
    if run is None:
        return given
    if run.result["sparse"] is not None:
        raise UserError(
            f"{key}={given}: this run pruned its model ({run.result['pattern']}); name a run with prune=false, or "
            f"{run.folder / 'model'} for the pruned model itself"
        )
    return str(run.folder / "model")


def pruned_model(given: str, key: str, where: Tracking) -> str:
    """Resolve the configured path of a sparse model, as `dense_model` does for a dense one.

    Raises:
        UserError: the run does not exist, or pruned nothing.
    """
    run = _run_of(given, key, where)
    if run is None:
        return given
    if run.result["sparse"] is None:
        raise UserError(f"{key}={given}: this run has prune=false, so its model is dense; name it with model.finetuned")
    return str(run.folder / "model")


def _run_of(given: str, key: str, where: Tracking) -> Run | None:
    """The run that a configured path names by its folder or id; None for any other path."""
    folder = Path(given).expanduser()
    if not ((folder / "result.json").is_file() if folder.is_dir() else is_id(given)):
        return None
    try:
        return find(given, where)
    except UserError as error:
        raise UserError(f"{key}={given}: {error}") from error


@dataclass
class MadeBy:
    """How a run was made: what a repetition needs besides the configuration, and what it is compared with."""

    classes: dict[str, str]
    """Class by configuration group, which the YAML does not name."""
    choices: dict[str, str]
    """Chosen option by group: see `runner.config.experiment.Origin`."""
    changed: dict[str, str]
    """Changed keys: see `runner.config.experiment.Origin`."""
    overrides: list[str]
    """The command line: see `runner.config.experiment.Origin`."""
    precision: dict[str, str | None]
    """Precision by training, as chosen on that machine."""
    data: str
    """Fingerprint of the examples."""
    evaluation: str
    """Fingerprint of the scored examples."""
    checkpoints: dict[str, str]
    """Fingerprint of each initial checkpoint, by the key that names it."""
    stages: dict[str, int]
    """Version of each stage's algorithm."""
    packages: dict[str, str]
    code: str
    """The commit, if known."""
    hardware: str
    instructions: str
    threads: int
    """Threads of torch in each rank."""
    ranks: int
    folder: str
    """The working folder: paths are relative to it."""
    plugins: dict[str, str] = field(default_factory=dict)
    """Modules of the user's own, each with a hash of its source."""
    others: list[str] = field(default_factory=list)
    """Parts of the run that were made under other circumstances than these: before an interruption, or by the process
    that filled the cache."""


def made_by(
    experiment: Experiment, origin: Origin, checkpoints: Sequence[models.Checkpoint | None], examples: Examples
) -> MadeBy:
    """Record how a run is made in this process.

    Args:
        experiment: the experiment, with the precision chosen.
        checkpoints: all initial checkpoints.
    """
    trainings = {"train": experiment.train, "finetune": experiment.finetune}
    return MadeBy(
        classes=classes(experiment),
        choices=origin.choices,
        changed=origin.changed,
        overrides=origin.overrides,
        precision={name: t.precision.value if t.precision is not None else None for name, t in trainings.items()},
        data=examples.train_fingerprint + examples.evaluation_fingerprint + examples.unlabelled_fingerprint,
        evaluation=examples.evaluation_fingerprint,
        checkpoints=_fingerprints([start for start in checkpoints if start is not None]),
        stages=VERSIONS,
        packages=provenance.versions(),
        code=provenance.code(),
        hardware=hardware(),
        instructions=instructions(),
        threads=torch.get_num_threads(),
        ranks=ranks.world_size(),
        folder=os.getcwd(),
        plugins=plugins.sources(experiment),
    )


def _fingerprints(checkpoints: Sequence[models.Checkpoint]) -> dict[str, str]:
    """Fingerprints by key; several teachers have one key."""
    by_key: dict[str, list[str]] = {}
    for checkpoint in checkpoints:
        by_key.setdefault(checkpoint.key, []).append(checkpoint.fingerprint)
    return {key: " ".join(each) for key, each in by_key.items()}


def add_arguments(parser: argparse.ArgumentParser, places: bool = True) -> None:
    """Add the arguments of a command that starts from a finished run: RUN and --tracking-uri.

    Args:
        places: also KEY=PLACE, for files that have moved.
    """
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run, or its id in MLflow")
    if places:
        parser.add_argument("places", nargs="*", metavar="KEY=PLACE", help="what has moved: dataset.path=FOLDER")
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="the MLflow store (MLFLOW_TRACKING_URI, or mlflow.db here)"
    )


def places(given: Sequence[str]) -> dict[str, Any]:
    """Parse `KEY=PLACE` of the command line into places by key; several teachers are a list, `[A,B]`.

    Raises:
        UserError: the key is no place; changing it would make another run.
    """
    by_key: dict[str, Any] = {}
    for text in given:
        key, _, value = text.partition("=")
        by_key[key] = value
        if key == "distill.teacher" and value.startswith("[") and value.endswith("]"):
            by_key[key] = [name.strip(" '\"") for name in value[1:-1].split(",")]
        if key not in (*PLACES, plugins.KEY) or not value:
            raise UserError(
                f"{text}: only what has moved since can be named here, with its new place: {', '.join(PLACES)}"
            )
    return by_key


def restored(run: Run, changes: Mapping[str, Any]) -> Restored:
    """Restore the experiment of a run exactly, except for `changes`.

    Raises:
        UserError: another version of the runner made the run.
    """
    return restore(run.yaml, made_by_of(run).classes, changes)


def made_by_of(run: Run) -> MadeBy:
    """Read the record of how a run was made.

    Raises:
        UserError: another version of the runner made the run.
    """
    try:
        return MadeBy(**run.result["made_by"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.folder} was made by another version of the runner: use that one ({error})") from error


def moved(run: Run, error: UserError) -> UserError:
    """The error about a missing file of a run, with the remedy if the file has moved."""
    key = str(error).partition("=")[0]
    if key not in PLACES:
        return error
    folder = made_by_of(run).folder
    relative = f" (the run was made in {folder})" if folder != os.getcwd() else ""
    return UserError(f"{error}; if it has moved, add {new_place(read(run.yaml), key)} to this command{relative}")


def _folder_of(run_id: str, where: Tracking) -> Path:
    tags, run = tracking.tags_of(where, run_id), f"MLflow run {run_id}"
    if columns.FOLDER not in tags:
        raise UserError(f"{run} in {where.shown} was not made by this runner: it has no tag of its folder")
    folder = Path(tags[columns.FOLDER])
    if not folder.is_dir():
        raise UserError(f"{run}: its folder {folder} is not on this machine: give the folder instead of the id")
    return folder
