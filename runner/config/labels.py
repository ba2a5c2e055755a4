"""The labels of a run: model, dataset and pattern, as the table, MLflow and folders name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from results.safe_text import without_secrets
from runner.config.experiment import Experiment
from runner.data.task import Dataset
from runner.models import Model


def labels(
    experiment: Experiment, choices: Mapping[str, str], changed: Mapping[str, str], overrides: Iterable[str]
) -> dict[str, str]:
    """Label -> text.

    Args:
        choices: group -> the option chosen.
        changed: dotted keys whose values differ from those of the options, with these values.
        overrides: as given on the command line.
    """
    asked = any(override.lstrip("+").startswith(("model=", "experiment=")) for override in overrides)
    return {
        "model": _model(choices["model"], experiment.model, changed, asked),
        "dataset": _label(choices["dataset"], ("path",), Dataset.defining, experiment.dataset, changed),
        "pattern": str(experiment.pattern) if experiment.prune else "dense",
    }


def _model(choice: str, model: Model, changed: Mapping[str, str], asked: bool) -> str:
    """An option that was asked for keeps its name with `model.finetuned`, which is a param of the run. The name of the
    default would be false, as the checkpoint may be of any model."""
    if asked:
        defining = tuple(key for key in Model.defining if not key.startswith("finetuned"))
        return _label(choice, ("path",), defining, model, changed)
    return _label(choice, ("finetuned", "path"), Model.defining, model, changed)


def _label(
    choice: str, shown: tuple[str, ...], defining: tuple[str, ...], group: Model | Dataset, changed: Mapping[str, str]
) -> str:
    """The option's name, only while nothing that defines the group is overridden; else the value."""
    name = "model" if isinstance(group, Model) else "dataset"
    overridden = [key for key in (*shown, *defining) if f"{name}.{key}" in changed]
    if not overridden:
        return choice
    value = str(getattr(group, overridden[0]))
    if overridden[0] not in shown:
        return f"{choice}@{without_secrets(value)}"
    return without_secrets(Path(value).name if Path(value).exists() else value)
