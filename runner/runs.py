"""A finished run, by its folder or by its id in MLflow: what `runner.share`, `runner.examples` and `runner.reproduce`
start from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import columns
from runner import seals, tracking
from runner.errors import UserError
from runner.tracking import Tracking


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
    """result.json: see `runner.experiment.Result`."""


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
        if re.fullmatch("[0-9a-f]{32}", given) is None:
            raise UserError(f"{given}: neither a run's folder nor the id of a run in MLflow (32 hexadecimal digits)")
        folder = _folder_of(given, where)
    result = seals.read_json(folder / "result.json")
    if result is None:
        raise UserError(
            f"{folder}: there is no result.json, or a damaged one: give the folder of a finished run, such as "
            "outputs/<model>-<dataset>-<pattern>-s<seed>-<hash>"
        )
    file = folder / columns.CONFIG
    if not file.is_file():
        raise UserError(f"{file} is missing: the run cannot be repeated or described without it")
    return Run(folder, result["mlflow_run"], file.read_text(encoding="utf-8"), result)


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
