"""Dataset, the base class of all kinds of task: the whole interface of a kind of task, in one place to read.

The modules of this package are imported at every start to register their dataclasses, so they import `datasets` only
inside functions.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from pruning import Prediction
from runner.data import files, sources
from runner.data.answering import Answering
from runner.data.examples import Examples, read
from runner.data.features import Features
from runner.data.scores import Scores
from runner.data.splits import SPLIT, Part, Splits, main_split
from runner.system.errors import UserError

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Collate = Callable[[list[Mapping[str, Any]]], dict[str, Any]]
"""Makes a batch of features."""


@dataclass
class Dataset(Answering):
    """Base of all datasets. Subclasses define the task: how examples become features, and logits become scores."""

    path: str = MISSING
    """A hub id, a file or a folder of CSV, TSV, JSON, JSON-lines or parquet files, or files in the task's own format.
    The words train, validation, dev, eval and test in their names, or forms of them, say which split they are."""
    name: str | None = None
    """The hub dataset's configuration, if it has several."""
    revision: str | None = None
    """Commit, tag or branch of the hub dataset."""
    train_split: str | None = None
    """Name of the training split, or part of the names of its files. Not given: train."""
    evaluation_splits: list[str] = field(default_factory=list)
    """Names of the evaluation splits, or parts of the names of their files. The first one is the main one; the
    others' scores are reported under their names. Not given: the first of validation (or dev), eval and test that
    exists, else a tenth of train, in which each class has its share."""
    metric: str = MISSING
    """The main metric, which names the columns of the table."""
    max_seq_length: int = 384
    """Most tokens in a feature."""
    max_train_samples: int | None = None
    """Size of a subset of train, drawn with `data_seed`, the same for every `seed`."""
    max_eval_samples: int | None = None
    """Size of a subset of each evaluation split, also drawn with `data_seed`."""
    unlabelled: str | None = None
    """Further training examples, for the distillation alone: their labels are not read. A file or a folder in the same
    columns, or the name of a split of this dataset; `train` are those of the training split that are not used with
    their labels. Those that share a text with what is scored are left out."""
    max_unlabelled_samples: int | None = None
    """Size of a subset of `unlabelled`, also drawn with `data_seed`."""
    holdout: float = 0.0
    """Fraction of train to score on instead of the evaluation split, for choosing settings."""
    validation: float = 0.0
    """Fraction of train that no training sees: `train.evaluate` scores on it while the student trains. At most
    max_eval_samples of it are scored."""
    data_seed: int = 0
    """Seed of the subsets, of the hold-out and of the validation examples."""
    official_train: int | None = None
    """Examples in the whole official training split, if there is one: the table notes who used fewer."""
    official_evaluation: int | None = None
    """Examples in the whole official evaluation split."""
    licence: str | None = None
    """The hub's name of the data's licence, such as cc-by-sa-4.0, for the model card. None: not known."""

    architecture: ClassVar[str]
    """The transformers auto class that has the task's head."""
    pipeline_tag: ClassVar[str]
    """The hub's name of the task."""
    label_names: ClassVar[tuple[str, ...]]
    """Columns of the features that are labels, one for each head."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """The permitted values of `metric`."""
    defining: ClassVar[tuple[str, ...]] = ("path", "name", "revision")
    """Fields that define which dataset it is: if one is overridden, the name of the group's choice is wrong."""

    selecting: ClassVar[tuple[str, ...]] = (
        "path", "name", "revision", "train_split", "evaluation_splits", "max_train_samples", "max_eval_samples",
        "holdout", "validation", "unlabelled", "max_unlabelled_samples", "data_seed", "official_train",
        "official_evaluation", "licence",
    )  # fmt: skip
    """Fields that only select examples: identities use a hash of the examples' contents instead."""
    scoring: ClassVar[tuple[str, ...]] = ("metric",)
    """Fields that affect only the scores: changing one does not train the dense model again."""

    def __post_init__(self) -> None:
        for key in ("holdout", "validation"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"dataset.{key}={getattr(self, key)} must be a fraction of train, from 0 to below 1")
        for key in ("max_train_samples", "max_eval_samples", "max_unlabelled_samples", "max_seq_length"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"dataset.{key}={value} must be at least 1")
        if self.max_unlabelled_samples is not None and not self.unlabelled:
            raise UserError(
                f"dataset.max_unlabelled_samples={self.max_unlabelled_samples} needs dataset.unlabelled=FILE_OR_SPLIT"
            )
        if self.metric not in (MISSING, *self.metrics):
            raise UserError(f"dataset.metric={self.metric} must be one of {', '.join(self.metrics)}")

    @property
    def hub_id(self) -> str | None:
        """The dataset's id on the hub; None for local files."""
        return None if os.path.exists(os.path.expanduser(self.path)) else self.path

    def settings(self) -> dict[str, Any]:
        """The fields that decide how examples become features."""
        return {key: value for key, value in asdict(self).items() if key not in (*self.selecting, *self.scoring)}

    def score_settings(self) -> dict[str, Any]:
        """The fields that affect only the scores."""
        return {key: getattr(self, key) for key in self.scoring}

    # --- reading --------------------------------------------------------------------------------------------

    def read(self, train: bool = True) -> Examples:
        """Load, check and cut the examples. Raises UserError for data that cannot be used."""
        return read(self, train)

    def splits(self) -> Splits:
        """The splits of the source, with the data's columns."""
        return sources.load(self)

    def text_columns(self) -> Sequence[str]:
        """Columns of CSV and TSV files that are text, whatever they look like."""
        return ()

    def readers(self, labels: bool = True) -> Mapping[str, files.Reader]:
        """Suffix -> reader of the task's own file format, if it has one; `labels`: the files must have them."""
        return {}

    @abstractmethod
    def named(self, splits: Splits) -> Splits:
        """Splits with the columns of the task, under its names.

        Raises:
            UserError: a column is missing, or has the wrong type.
        """
        raise NotImplementedError

    @abstractmethod
    def groups(self, examples: datasets.Dataset) -> Sequence[str]:
        """The group of each example. A group is never split between a hold-out and the rest."""
        raise NotImplementedError

    def strata(self, examples: datasets.Dataset) -> Sequence[Any]:
        """The class of each example, of which a hold-out gets the same fraction as of all; empty: there are none."""
        return ()

    def class_counts(self, examples: datasets.Dataset) -> dict[str, int]:
        """The number of examples, or of words, of each class; empty: there are no classes."""
        return {}

    @abstractmethod
    def checked(self, part: Part) -> Part:
        """The usable examples. Raises UserError, with the rows, for unusable ones, unless the configuration leaves them
        out."""
        raise NotImplementedError

    def fingerprint(self, examples: datasets.Dataset) -> str:
        """Hash of the contents, whatever file they came from."""
        return self.digest(examples)

    # --- features, outputs, scores --------------------------------------------------------------------------

    def configure(self, config: PretrainedConfig, examples: datasets.Dataset, given: str | None) -> None:
        """Write the size and the classes of the task's head into a model's configuration.

        Args:
            given: the configuration key that names a model with a trained head, which must fit; None: the head is new.

        Raises:
            UserError: the trained head does not fit.
        """

    def features(
        self, examples: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, cache: Path | None, labels: bool
    ) -> datasets.Dataset:
        """Tokenise. Columns: the model's inputs, `length`, `example` (the example's number), and either the labels or
        what `score` needs.

        Args:
            cache: the folder for the result; None: it is not cached.
            labels: for training, not for scoring.

        Raises:
            UserError: no features are left, or texts do not fit.
        """
        features = Features(self, tokenizer, labels, "train" if labels else "evaluation")
        return features.of(examples, self.fingerprint(examples), cache)

    def check_lengths(self, examples: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse examples that do not fit `max_seq_length`.

        Raises:
            UserError: with their number and the first ids.
        """

    def report(
        self, examples: datasets.Dataset, features: datasets.Dataset, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Log what of the examples is not in their features."""

    def texts(self, examples: datasets.Dataset) -> list[str]:
        """The texts that a model reads, for checks of its tokenizer."""
        columns = (examples[name] for name in examples.column_names if name not in ("id", SPLIT))
        return [text for column in columns for text in column if isinstance(text, str)]

    def tokenising(self) -> list[Any]:
        """The settings that decide how examples become features."""
        return [self.max_seq_length]

    @abstractmethod
    def tokenized(
        self, batch: dict[str, list], indices: list[int], tokenizer: PreTrainedTokenizerBase, labels: bool
    ) -> dict[str, list]:
        """Columns of features for some examples: the model's inputs, `example`, and either the labels or what `score`
        needs.

        Args:
            indices: the numbers of the examples.
        """
        raise NotImplementedError

    def digest(self, features: datasets.Dataset) -> str:
        """Hash of the contents of all columns."""
        from runner.data import arrow

        return arrow.digest(features)

    def prediction(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> Prediction:
        """A model's outputs for a batch, as distillation and scoring need them."""
        heads = self.heads(outputs, inputs["attention_mask"].bool())
        hidden, attentions = outputs.get("hidden_states"), outputs.get("attentions")
        return replace(heads, hidden=tuple(hidden or ()), attentions=tuple(attentions or ()))

    @abstractmethod
    def heads(self, outputs: Any, tokens: torch.Tensor) -> Prediction:
        """The heads' outputs, without hidden states and attentions.

        Args:
            tokens: bool [batch, tokens], true where there is no padding.
        """
        raise NotImplementedError

    @abstractmethod
    def logits_of(self, features: datasets.Dataset, classes: int) -> int:
        """Number of logits that all heads of a model give for these features.

        Args:
            classes: the number of classes in the model's configuration.
        """
        raise NotImplementedError

    @abstractmethod
    def score(self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]) -> Scores:
        """The scores of logits.

        Args:
            logits: [features, choices] or [features, tokens, choices] for each head, in the order of `heads`, padded
                with the lowest float.
        """
        raise NotImplementedError

    # --- for people -----------------------------------------------------------------------------------------

    def rows(self, examples: datasets.Dataset) -> list[dict[str, Any]]:
        """Examples as plain values for a person to read."""
        return examples.to_list()

    def shown(self, example: Mapping[str, Any]) -> dict[str, str]:
        """An evaluation example for a person to read: {title of a column: text}, without the models' answers."""
        return {key.capitalize(): str(value) for key, value in example.items() if key != "id"}

    def scored_counts(self, examples: datasets.Dataset) -> dict[str, int]:
        """The number of examples, words or entities of each class in the first evaluation split, which the main score
        is made of; empty: there are no classes."""
        return self.class_counts(main_split(examples))

    def kinds(self, example: Mapping[str, Any]) -> dict[str, str]:
        """Slices for error analysis, such as {"Length": "5 to 10 words"}. Keep them few."""
        return {}
