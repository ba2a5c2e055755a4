"""A finished run, by its folder or by its id in MLflow: what `runner.share`, `runner.examples` and `runner.reproduce`
start from. And what a run keeps of how it was made."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from results import columns
from runner import models, tracking
from runner.config.experiment import Experiment, Origin
from runner.config.restore import Restored, classes, restore
from runner.data.task import Examples
from runner.system import files, provenance, ranks
from runner.system.device import hardware, instructions
from runner.system.errors import UserError
from runner.system.versions import VERSIONS
from runner.tracking import Tracking

PLACES = ("model.path", "model.finetuned", "model.sparse", "distill.teacher", "dataset.path")
"""The keys that say where something lies, and not what it is: they may change when it is moved."""


@dataclass
class Run:
    """What a finished run left."""

    folder: Path
    """Its folder, with `model/`, `config.yaml` and the rest."""
    run_id: str | None
    """Its id in MLflow; None if it was not uploaded yet."""
    yaml: str
    """The whole configuration, resolved."""
    result: dict[str, Any]
    """result.json: see `runner.records.result.Result`."""


def is_id(given: str) -> bool:
    """Whether this has the form of a run's id in MLflow."""
    return re.fullmatch("[0-9a-f]{32}", given) is not None


def find(given: str, where: Tracking) -> Run:
    """Find a run that is finished.

    Args:
        given: its folder, or its id in MLflow.
        where: the MLflow store, which is only asked for ids.

    Raises:
        UserError: there is no such run, it is not finished, or its folder is not on this machine.
    """
    folder = Path(given).expanduser()
    if not folder.is_dir():
        if not is_id(given):
            raise UserError(f"{given}: neither a run's folder nor the id of a run in MLflow (32 hexadecimal digits)")
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


def dense_model(given: str, key: str, where: Tracking) -> str:
    """What a configured path of a dense model stands for: the model's folder of a finished run, if it is a run's folder
    or id, else what is given.

    Args:
        key: the configuration key that gives it, for messages.
        where: the MLflow store, which is only asked for ids.

    Raises:
        UserError: the run is not found, or pruned its model.
    """
    folder = Path(given).expanduser()
    if not ((folder / "result.json").is_file() if folder.is_dir() else is_id(given)):
        return given
    try:
        run = find(given, where)
    except UserError as error:
        raise UserError(f"{key}={given}: {error}") from error
    if run.result.get("sparse") is not None:
        raise UserError(
            f"{key}={given}: this run pruned its model ({run.result['pattern']}); name a run with prune=false, or its "
            f"model itself, {run.folder / 'model'}, if the pruned one is meant"
        )
    return str(run.folder / "model")


@dataclass
class MadeBy:
    """What a repetition of a run needs beside its configuration, and what it is compared with."""

    classes: dict[str, str]
    """By group: YAML does not say them."""
    choices: dict[str, str]
    changed: dict[str, str]
    overrides: list[str]
    """As in `runner.config.experiment.Origin`."""
    precision: dict[str, str | None]
    """By training, as it was chosen on that machine."""
    data: str
    """Fingerprint of the examples."""
    evaluation: str
    """Fingerprint of those that are scored."""
    checkpoints: dict[str, str]
    """Fingerprints of those that the run starts from, by the key that names them."""
    stages: dict[str, int]
    """The version of each stage's algorithm."""
    packages: dict[str, str]
    code: str
    """The commit, where it is known."""
    hardware: str
    instructions: str
    threads: int
    """Of torch, in each rank."""
    ranks: int
    folder: str
    """The working folder, to which paths are relative."""


def made_by(
    experiment: Experiment, origin: Origin, checkpoints: Sequence[models.Checkpoint | None], examples: Examples
) -> MadeBy:
    """What a run is made by, in this process.

    Args:
        experiment: with the precision chosen.
        checkpoints: all that it starts from.
    """
    trainings = {"train": experiment.train, "finetune": experiment.finetune}
    return MadeBy(
        classes=classes(experiment),
        choices=origin.choices,
        changed=origin.changed,
        overrides=origin.overrides,
        precision={name: t.precision.value if t.precision is not None else None for name, t in trainings.items()},
        data=examples.train_fingerprint + examples.evaluation_fingerprint,
        evaluation=examples.evaluation_fingerprint,
        checkpoints={found.key: found.fingerprint for found in checkpoints if found is not None},
        stages=VERSIONS,
        packages=provenance.versions(),
        code=provenance.code(),
        hardware=hardware(),
        instructions=instructions(),
        threads=torch.get_num_threads(),
        ranks=ranks.world_size(),
        folder=os.getcwd(),
    )


def places(given: Sequence[str]) -> dict[str, str]:
    """`KEY=PLACE` of the command line, by key. Raises UserError for other keys, which would make it another run."""
    found: dict[str, str] = {}
    for text in given:
        key, _, value = text.partition("=")
        found[key] = value
        if key not in PLACES or not value:
            raise UserError(
                f"{text}: only what has moved since can be named here, with its new place: {', '.join(PLACES)}"
            )
    return found


def restored(run: Run, changes: Mapping[str, str | None]) -> Restored:
    """The experiment of a run, exactly as it was, but for `changes`.

    Raises:
        UserError: the run does not say enough, or another version of the runner made it.
    """
    found = kept(run)
    if found is None:
        raise UserError(
            f"{run.folder}: the version of the runner that made it did not keep what this needs; run it again with "
            "force=true"
        )
    return restore(run.yaml, found.classes, changes)


def kept(run: Run) -> MadeBy | None:
    """What a run was made by; None for one that was made before this was kept. Raises UserError for one of a later
    version."""
    values = run.result.get("made_by")
    try:
        return MadeBy(**values) if values else None
    except TypeError as error:
        raise UserError(f"{run.folder} was made by another version of the runner: use that one ({error})") from error


def moved(run: Run, error: UserError) -> UserError:
    """What is said where something that a run needs is not found: with how to say where it is now."""
    key = str(error).partition("=")[0]
    if key not in PLACES:
        return error
    folder = run.result.get("made_by", {}).get("folder")
    relative = f" (the run was made in {folder})" if folder not in (None, os.getcwd()) else ""
    return UserError(f"{error}; if it has moved, add {key}=PLACE to this command{relative}")


def _folder_of(run_id: str, where: Tracking) -> Path:
    tags = tracking.tags_of(where, run_id)
    if columns.FOLDER not in tags:
        raise UserError(
            f"MLflow run {run_id} in {where.shown} was not made by this runner: it has no tag of its folder"
        )
    folder = Path(tags[columns.FOLDER])
    if not folder.is_dir():
        raise UserError(f"MLflow run {run_id} lies in {folder}, which is not on this machine: give its folder instead")
    return folder
