"""Datasets by kind of task. One module per kind; a dataset of a known kind is one YAML.

Modules here are imported to register their dataclasses, so they import `datasets` and `evaluate` only inside functions.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from pruning import Prediction

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass
class Examples:
    """The examples of a run, checked, cut to the sample limits, before tokenisation."""

    train: datasets.Dataset | None
    """None if the run trains nothing."""
    evaluation: datasets.Dataset
    train_fingerprint: str
    evaluation_fingerprint: str
    """Hashes of the contents, whatever file they came from."""
    source: str
    """Where they came from, with the revision where known."""


@dataclass
class Scores:
    """What a model reached on the evaluation examples."""

    metrics: dict[str, float]
    """Fractions in [0, 1] by metric name."""
    predictions: dict[str, Any] = field(default_factory=dict)
    """Example id -> what the model answered."""
    by_example: dict[str, float] = field(default_factory=dict)
    """Example id -> the main metric, whose mean over the examples is the score; empty for metrics that are no mean."""


@dataclass
class Dataset:
    """Base of all datasets. Subclasses give the task: how examples become features, and logits scores."""

    path: str = MISSING
    """A hub id, a file or a folder."""
    name: str | None = None
    """The hub dataset's configuration, where it has several."""
    revision: str | None = None
    """Commit, tag or branch of the hub dataset."""
    max_seq_length: int = 384
    """Tokens in a feature, at most."""
    max_train_samples: int | None = None
    """A subset of train of this size, drawn with `data_seed`, the same for every `seed`."""
    max_eval_samples: int | None = None
    """A subset of the evaluation examples of this size, drawn in the same way."""
    holdout: float = 0.0
    """Fraction of train to choose on: scores are then taken on it, and the evaluation split is left alone."""
    data_seed: int = 0
    """Seed of the subsets and of the hold-out."""
    official_train: int | None = None
    """Examples of the whole official training split, where there is one: the table tells who used fewer."""
    official_evaluation: int | None = None
    """Examples of the whole official evaluation split."""
    licence: str | None = None
    """Of the data, by the hub's name for it, such as cc-by-sa-4.0: told in the model card. None: not known."""

    metric: ClassVar[str]
    """The main metric, which names the columns of the table."""
    architecture: ClassVar[str]
    """The transformers auto class with the task's head."""
    pipeline_tag: ClassVar[str]
    """The hub's name of the task."""
    label_names: ClassVar[tuple[str, ...]]
    """The features' columns that are labels, one for each head of `prediction`."""
    defining: ClassVar[tuple[str, ...]] = ("path", "name", "revision")
    """Fields that define what the dataset is: overriding one makes the group's choice a wrong label."""

    selecting: ClassVar[tuple[str, ...]] = (
        "path", "name", "revision", "max_train_samples", "max_eval_samples", "holdout", "data_seed",
        "official_train", "official_evaluation", "licence",
    )  # fmt: skip
    """Fields that only say which examples there are: a hash of their contents says it better."""

    @property
    def hub_id(self) -> str | None:
        """The dataset's id on the hub; None for what lies on this machine."""
        return None if Path(self.path).expanduser().exists() else self.path

    def settings(self) -> dict[str, Any]:
        """The fields that say what is done with the examples."""
        return {key: value for key, value in asdict(self).items() if key not in self.selecting}

    def read(self, train: bool = True) -> Examples:
        """Load, check and cut the examples. Raises UserError for data that cannot be used."""
        raise NotImplementedError

    def features(
        self, examples: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, cache: Path | None, labels: bool
    ) -> datasets.Dataset:
        """Tokenise. Columns: the model's inputs, and either the labels or what `score` needs; cached below `cache`."""
        raise NotImplementedError

    def digest(self, features: datasets.Dataset) -> str:
        """Hash of the features' contents."""
        from runner.tasks import arrow

        return arrow.digest(features)

    def prediction(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> Prediction:
        """A model's outputs for a batch, in the form that distillation and scoring need."""
        raise NotImplementedError

    def score(self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]) -> Scores:
        """Score logits: [features, choices] per head, in the order of `prediction`, padded with the lowest float."""
        raise NotImplementedError

    def shown(self, example: Mapping[str, Any]) -> dict[str, str]:
        """An evaluation example for a person to read: titles of columns and texts, without the models' answers."""
        return {key.capitalize(): str(value) for key, value in example.items() if key != "id"}

    def kinds(self, example: Mapping[str, Any]) -> dict[str, str]:
        """Of which kind an example is, by what may explain that it is hard: titles and kinds, few of each."""
        return {}


Collate = Callable[[list[Mapping[str, Any]]], dict[str, Any]]


def import_all() -> None:
    """Import the modules of this package, so that all kinds of dataset exist as subclasses.

    Not the metrics (`*_metric`): they import `evaluate`, which takes seconds, and are needed only to score.
    """
    for module in pkgutil.iter_modules(__path__):
        if not module.name.endswith("_metric"):
            importlib.import_module(f"{__name__}.{module.name}")
