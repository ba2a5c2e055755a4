"""A run's model as a LoggedModel of MLflow, for `mlflow.pyfunc.load_model`: no pickle, and no code from the store.

MLflow's loader imports `runner.serving`, and gives it the folder with the description of the model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from results import columns
from runner.tracking.store import is_unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

log = logging.getLogger(__name__)

NAME = "model"
"""The model's name in MLflow, which makes its address runs:/RUN/model."""
LOADER = "runner.serving"
"""Module whose `_load_pyfunc` MLflow calls."""
DESCRIPTION = "served.json"
"""The file that the loader reads: the task, and where the weights are."""
WEIGHTS = "model"
"""The folder next to it, where the store has a copy of the model."""
_DATA = "data/data"  # where MLflow puts a folder named data
_PACKAGES = ("mlflow", "torch", "transformers")  # and prune-distill, of which no index has a release


def log_model(client: MlflowClient, run_id: str, values: Mapping[str, Any], folder: Path | None) -> None:
    """Log the model of a run whose metrics are logged, or complete what an interrupted process logged of it.

    Args:
        values: `description`, for the loader; `model_type`; `inputs` and `outputs`, the type of each column: string,
            strings (a list) or double; `example`, a list for each column of the inputs; `copy`: also the weights.
        folder: the run's own, which has the model.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
        model = _begun(client, run) or _create(client, run, values["model_type"])
        if model.status == LoggedModelStatus.READY:
            return
        _log_files(client, run_id, model.model_id, values, folder)
        _log_scores(client, run, model.model_id)
        outputs = run.outputs.model_outputs if run.outputs is not None else []
        if all(output.model_id != model.model_id for output in outputs):
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    except (MlflowException, OSError, PackageNotFoundError) as error:  # no reason to lose a complete run
        if is_unreachable(error):
            raise
        log.warning("MLflow does not get the model of this run: %s: %s", type(error).__name__, error)


def _begun(client: MlflowClient, run: Run) -> LoggedModel | None:
    """The model that was begun for this run."""
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return next(iter(models), None)


def _create(client: MlflowClient, run: Run, model_type: str) -> LoggedModel:
    labels = {key: run.data.params[key] for key in (*columns.LABELS, columns.SEED) if key in run.data.params}
    return client.create_logged_model(
        run.info.experiment_id, NAME, run.info.run_id, params=labels, model_type=model_type
    )


def _log_files(
    client: MlflowClient, run_id: str, model_id: str, values: Mapping[str, Any], folder: Path | None
) -> None:
    """Log MLflow's own files with the description, and the weights if they are asked for."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model, ModelSignature

    with TemporaryDirectory() as temporary:
        data, made = Path(temporary) / "data", Path(temporary) / "made"
        data.mkdir()
        (data / DESCRIPTION).write_text(json.dumps(values["description"], indent=1) + "\n", encoding="utf-8")
        mlflow.pyfunc.save_model(
            made,
            loader_module=LOADER,
            data_path=str(data),
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=ModelSignature(_schema(values["inputs"]), _schema(values["outputs"])),
            input_example=pd.DataFrame(values["example"]),
            # Named here, as MLflow would load the model in another process to see what it imports.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _PACKAGES],
        )
        client.log_model_artifacts(model_id, str(made))
    if values["copy"] and folder is not None:
        client.log_model_artifacts(model_id, str(folder / WEIGHTS), f"{_DATA}/{WEIGHTS}")


def _schema(types: Mapping[str, str]) -> Any:
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    known = {"string": DataType.string, "strings": Array(DataType.string), "double": DataType.double}
    return Schema([ColSpec(known[kind], name) for name, kind in types.items()])


def _log_scores(client: MlflowClient, run: Run, model_id: str) -> None:
    """The run's scores as the model's own, which MLflow's list of models shows."""
    from mlflow.entities import Metric

    keys = [key for key in run.data.metrics if key.startswith((*columns.SIDES, *columns.OUTCOMES))]
    last = [client.get_metric_history(run.info.run_id, key)[-1] for key in keys]
    client.log_batch(run.info.run_id, metrics=[Metric(m.key, m.value, m.timestamp, m.step, model_id) for m in last])
