"""The loader of a run's model for `mlflow.pyfunc.load_model`: answers to a table of questions, texts or sentences.

It reads the run's configuration, safetensors and tokenizer; nothing is unpickled, and no code of the store is run.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import data, models
from runner.config.experiment import with_subclasses
from runner.data import classes
from runner.data.features import Features
from runner.data.task import Dataset
from runner.models import Model
from runner.system.errors import UserError
from runner.tracking import Logging
from runner.tracking.logged_model import DESCRIPTION, WEIGHTS
from runner.training.inference import logits

if TYPE_CHECKING:
    import datasets
    import pandas as pd

log = logging.getLogger(__name__)

_TYPES = {"text": "string", "class": "string", "number": "double", "classes": "strings"}
"""Type of an answer -> that of its column in `tracking.logged_model`."""


def to_log(task: Dataset, examples: datasets.Dataset, model: Path, how: Logging) -> dict[str, Any] | None:
    """What MLflow gets of a saved model, see `tracking.logged_model`; None for a task without answers of its own.

    Args:
        examples: those that it was scored on; the first is logged as an example of its input.
        model: the folder of the saved model, next to which the run's other files are.
    """
    if not task.answer:
        log.info("MLflow gets no model: %s has no `answered`", type(task).__name__)
        return None
    checkpoint = models.find(str(model), "the saved model", Model(path=str(model)))
    first = examples[:1]
    example = {theirs: first[ours] for ours, theirs in task.columns().items()}
    words = any(isinstance(values[0], list) for values in example.values())
    return {
        "description": {
            "task": type(task).__name__,
            "settings": _settings(task),
            "words": words,
            "weights": checkpoint.weights,
            "folder": str(model.resolve()),
            "host": socket.gethostname(),
        },
        "model_type": task.pipeline_tag,
        "inputs": dict.fromkeys(example, "strings" if words else "string"),
        "outputs": {task.answer: _TYPES[task.answer_type()]},
        "example": example,
        "copy": how is Logging.copy,
    }


def _settings(task: Dataset) -> dict[str, Any]:
    """The fields that decide how examples are read and answered, without those that select examples."""
    return {key: value for key, value in asdict(task).items() if key not in task.selecting or key in task.inputs}


class Answerer:
    """A loaded model. MLflow calls `predict`."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: has the description of the model, and the weights unless those are in the run's folder.

        Raises:
            UserError: there are no weights, they are not those that were logged, or this version lacks the task.
        """
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        self.task = _task(described["task"], described["settings"])
        self.words = described["words"]
        checkpoint = _checkpoint(folder, described)
        self.tokenizer = models.load_tokenizer(checkpoint)
        with models.quiet_loading():
            self.model = models.load(self.task.architecture, checkpoint)
        self.classes = classes.names_of(checkpoint.config)

    def predict(self, table: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The model's answer to each row, as the run gave it when it was scored.

        Args:
            table: has the columns that the run's data have for texts, such as question and context.
            params: not used.

        Raises:
            UserError: a column is missing, or a value is not text.
        """
        import pandas as pd

        return pd.DataFrame({self.task.answer: self._answers(table)}, index=table.index)

    def _answers(self, table: pd.DataFrame) -> Sequence[Any]:
        task = self.task
        missing = [name for name in task.columns().values() if name not in table.columns]
        if missing:
            raise UserError(f"there is no column {', '.join(missing)}; the table has {', '.join(map(str, table))}")
        if not len(table):
            return []
        given = {ours: self._column(table[theirs].items(), theirs) for ours, theirs in task.columns().items()}
        examples = task.unlabelled_examples(given, self.classes)
        features = Features(task, self.tokenizer, False, "the table").of(examples, task.digest(examples), None)
        return task.answered(examples, features, logits(self.model, self.tokenizer, task, features, "Answering"))

    def _column(self, values: Iterable[tuple[Any, Any]], name: str) -> list[Any]:
        """A column's texts, or lists of words.

        Args:
            values: with the names of the rows.

        Raises:
            UserError: with the row that has something else.
        """
        plain = []
        for row, value in values:
            text = value if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
            words = text if self.words and isinstance(text, list) else [] if self.words else [text]
            if not words or not all(isinstance(word, str) for word in words):
                kind = "a list of words" if self.words else "text"
                raise UserError(f"column {name}, row {row}: {value!r} is not {kind}")
            plain.append(text)
        return plain


def _task(name: str, settings: dict[str, Any]) -> Dataset:
    data.import_all()
    for cls in with_subclasses(Dataset):
        if cls.__name__ != name:
            continue
        try:
            return cls(**settings)
        except TypeError as error:
            raise UserError(f"{DESCRIPTION} is of another version: {error}; take the version that made it") from error
    raise UserError(f"{DESCRIPTION}: there is no task {name} here; import your module that has it before the model")


def _checkpoint(folder: Path, described: dict[str, Any]) -> models.Checkpoint:
    copied = (folder / WEIGHTS).is_dir()
    place = folder / WEIGHTS if copied else Path(described["folder"])
    if not place.is_dir():
        raise UserError(
            f"{place}: MLflow has only a link to this model, and there is no such folder here (the run was made on "
            f"{described['host']}); put the run's folder there, or run again with force=true tracking.log_model=copy"
        )
    checkpoint = models.find(str(place), "the logged model", Model(path=str(place)))
    if checkpoint.weights != described["weights"]:
        raise UserError(
            f"{place}: its weights are not those that were logged; take the model of the run that wrote them, or run "
            "again with force=true"
        )
    return checkpoint


def _load_pyfunc(path: str) -> Answerer:
    """Called by MLflow.

    Args:
        path: the folder that was logged as data.
    """
    return Answerer(Path(path))
