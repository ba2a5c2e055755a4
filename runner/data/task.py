"""Datasets: what all kinds of task share.

Modules here are imported to register their dataclasses, so they import `datasets` and `evaluate` only inside functions.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from pruning import Prediction
from runner.data.splits import Part, Splits, held_out
from runner.system.errors import UserError
from runner.system.versions import VERSIONS

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

UNSPLIT = 0.1
"""The part of train that becomes the evaluation split where the data have none."""
SPLIT = "split"
"""The column that tells several evaluation splits apart."""


@dataclass
class Examples:
    """The examples of a run, checked, cut to the sample limits, before tokenisation."""

    train: datasets.Dataset | None
    """None if the run trains nothing."""
    evaluation: datasets.Dataset
    """With a column `split` if there are several splits."""
    train_fingerprint: str
    evaluation_fingerprint: str
    """Hashes of the contents, whatever file they came from."""
    source: str
    """Where they came from, with the revision where known."""
    held_out: float = 0.0
    """The fraction of train that the evaluation examples are; 0: they are a split of their own."""


@dataclass
class Scores:
    """What a model reached on the evaluation examples."""

    metrics: dict[str, float]
    """By name: fractions in [0, 1], or correlations in [-1, 1]."""
    predictions: dict[str, Any] = field(default_factory=dict)
    """Example id -> what the model answered."""
    by_example: dict[str, float] = field(default_factory=dict)
    """Example id -> how well it was answered, in [0, 1]: the main metric where that is a mean over the examples, else
    whether the answer is right; empty where no answer is right or wrong. Of the first evaluation split only."""
    statistic: str = "mean"
    """How the main metric follows from means over the examples: a name in `results.bootstrap.FROM_MEANS`."""
    statistics: dict[str, list[float]] = field(default_factory=dict)
    """Example id -> its numbers for that; empty for the mean, whose are `by_example`."""
    choosing: dict[str, float] = field(default_factory=dict)
    """What a setting that is chosen on these very examples would give, and its value. No results: not logged, only told
    by `runner.evaluate`, for those who choose it on a hold-out."""


@dataclass
class Dataset:
    """Base of all datasets. Subclasses give the task: how examples become features, and logits scores."""

    path: str = MISSING
    """A hub id, a file or a folder: of CSV, TSV, JSON, JSON-lines or parquet files, or files in the task's own format,
    told apart by the words train, validation, valid, dev and test in their names."""
    name: str | None = None
    """The hub dataset's configuration, where it has several."""
    revision: str | None = None
    """Commit, tag or branch of the hub dataset."""
    train_split: str | None = None
    """Name of the training split, or part of the names of its files. Not given: train."""
    evaluation_splits: list[str] = field(default_factory=list)
    """The same of the evaluation splits: the first one counts, the others' scores stand beside it under their names.
    Not given: the first of validation, dev and test that there is; if none is, a tenth of train becomes it."""
    metric: str = MISSING
    """The main metric, which names the columns of the table."""
    max_seq_length: int = 384
    """Tokens in a feature, at most."""
    max_train_samples: int | None = None
    """A subset of train of this size, drawn with `data_seed`, the same for every `seed`."""
    max_eval_samples: int | None = None
    """A subset of the evaluation examples (of each split) of this size, drawn in the same way."""
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

    architecture: ClassVar[str]
    """The transformers auto class with the task's head."""
    pipeline_tag: ClassVar[str]
    """The hub's name of the task."""
    label_names: ClassVar[tuple[str, ...]]
    """The features' columns that are labels, one for each head."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """All that can be the main metric."""
    defining: ClassVar[tuple[str, ...]] = ("path", "name", "revision")
    """Fields that define what the dataset is: overriding one makes the group's choice a wrong label."""

    selecting: ClassVar[tuple[str, ...]] = (
        "path", "name", "revision", "train_split", "evaluation_splits", "max_train_samples", "max_eval_samples",
        "holdout", "data_seed", "official_train", "official_evaluation", "licence",
    )  # fmt: skip
    """Fields that only say which examples there are: a hash of their contents says it better."""
    scoring: ClassVar[tuple[str, ...]] = ("metric",)
    """Fields that matter to the scores alone: to change one trains no dense model again."""

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise UserError(f"dataset.holdout={self.holdout} is out of range: a fraction of train, from 0 to below 1")
        for key in ("max_train_samples", "max_eval_samples", "max_seq_length"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"dataset.{key}={value} is out of range: at least 1")
        if self.metric not in (MISSING, *self.metrics):
            raise UserError(f"dataset.metric={self.metric} is none of this kind of task: {', '.join(self.metrics)}")

    @property
    def hub_id(self) -> str | None:
        """The dataset's id on the hub; None for what lies on this machine."""
        return None if Path(self.path).expanduser().exists() else self.path

    def settings(self) -> dict[str, Any]:
        """The fields that say how examples become features."""
        return {key: value for key, value in asdict(self).items() if key not in (*self.selecting, *self.scoring)}

    def score_settings(self) -> dict[str, Any]:
        """The fields that say how they are scored."""
        return {key: getattr(self, key) for key in self.scoring}

    # --- reading: the same for all kinds of task ------------------------------------------------------------

    def read(self, train: bool = True) -> Examples:
        """Load, check and cut the examples. Raises UserError for data that cannot be used."""
        splits = self.splits()
        for part in (splits.train, *splits.evaluation.values()):
            if part is not None and not len(part.examples):
                raise UserError(f"{part.name}: there are no examples")
        training, evaluation = self.named(splits)
        fraction = 0.0
        if self.holdout or not evaluation:
            if training is None:
                needing = f"dataset.holdout={self.holdout}" if self.holdout else "an evaluation split made of train"
                raise UserError(f"{needing} needs a train split, and {splits.source} has none")
            fraction = self.holdout or UNSPLIT
            if not self.holdout:
                log.info("%s has no evaluation split: %g of train becomes it, drawn with dataset.data_seed=%d",
                         splits.source, fraction, self.data_seed)  # fmt: skip
            rest, held = held_out(self.groups(training.examples), fraction, self.data_seed)
            if not rest or not held:
                raise UserError(
                    f"{training.name}: it cannot be split, for what belongs together (the same text, say) is all of "
                    "it: give it an evaluation split"
                )
            training, evaluation = training.select(rest), {"holdout": training.select(held)}
        if train and training is None:
            raise UserError(f"{splits.source} has no train split: name a file train* in dataset.path")
        ready = self._ready(training, self.max_train_samples) if train and training is not None else None
        scored = self._joined({name: self._ready(part, self.max_eval_samples) for name, part in evaluation.items()})
        of_train = self.fingerprint(ready) if ready is not None else ""
        return Examples(ready, scored, of_train, self.fingerprint(scored), splits.source, fraction)

    def splits(self) -> Splits:
        """The splits of the source, as they are."""
        raise NotImplementedError

    def named(self, splits: Splits) -> tuple[Part | None, dict[str, Part]]:
        """Training and evaluation with the task's own columns, under its names.

        Raises:
            UserError: a column is missing, or is not of the kind that is needed.
        """
        raise NotImplementedError

    def groups(self, examples: datasets.Dataset) -> Sequence[str]:
        """For each example its group: no group is both in a hold-out and in what is left."""
        raise NotImplementedError

    def checked(self, part: Part) -> Part:
        """The examples that can be used. Raises UserError, with the rows, for those that cannot, unless the
        configuration says to leave them out."""
        raise NotImplementedError

    def _ready(self, part: Part, limit: int | None) -> datasets.Dataset:
        part = self.checked(part.subset(limit, self.data_seed))
        if not len(part.examples):
            raise UserError(f"{part.name}: there are no examples")
        return part.examples

    def _joined(self, evaluation: dict[str, datasets.Dataset]) -> datasets.Dataset:
        import datasets

        if len(evaluation) == 1:
            (only,) = evaluation.values()
            return self._distinct(only)
        named = []
        for name, examples in evaluation.items():
            ids = [f"{name}-{id}" for id in examples["id"]]
            told = examples.remove_columns("id").add_column("id", ids)  # type: ignore[call-arg]
            named.append(told.add_column(SPLIT, [name] * len(ids)))  # type: ignore[call-arg]
        return self._distinct(datasets.concatenate_datasets(named))

    def _distinct(self, examples: datasets.Dataset) -> datasets.Dataset:
        """Predictions are kept by id."""
        seen: set[str] = set()
        twice = [id for id in map(str, examples["id"]) if id in seen or seen.add(id)]
        if twice:
            raise UserError(
                f"dataset.path={self.path}: {len(twice)} ids of evaluation examples are there twice (such as "
                f"{twice[0]}): make them different"
            )
        return examples

    def fingerprint(self, examples: datasets.Dataset) -> str:
        """Hash of the contents, whatever file they came from."""
        return self.digest(examples)

    # --- features, outputs, scores --------------------------------------------------------------------------

    def configure(self, config: PretrainedConfig, examples: datasets.Dataset, given: str | None) -> None:
        """Tell a model's configuration what its head answers, by the names in the examples.

        Args:
            given: the configuration key that names a model with a trained head, which must fit; None: the head is new.

        Raises:
            UserError: the trained head does not fit.
        """

    def features(
        self, examples: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, cache: Path | None, labels: bool
    ) -> datasets.Dataset:
        """Tokenise. Columns: the model's inputs, `length`, and either the labels or what `score` needs; cached below
        `cache`. Raises UserError if there is nothing to learn from."""
        from runner.data import arrow

        kind = type(self).__name__.lower()
        key = [VERSIONS["prepare"], kind, self.fingerprint(examples), tokenizer_fingerprint(tokenizer), labels]
        name = hashlib.sha256(json.dumps([*key, self.tokenising()]).encode()).hexdigest()[:16]

        def tokenize(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
            columns = self.tokenized(batch, indices, tokenizer, labels)
            return columns | {"length": [len(tokens) for tokens in columns["input_ids"]]}

        title = "Tokenising " + ("train" if labels else "evaluation")
        place = None if cache is None else cache / f"{kind}-{name}"
        found = arrow.mapped_once(examples, tokenize, name, title, place)
        if not len(found):
            raise UserError(f"dataset.path={self.path}: the tokenizer leaves nothing of all {len(examples)} examples")
        return found

    def tokenising(self) -> list[Any]:
        """The settings that decide how examples become features."""
        return [self.max_seq_length]

    def tokenized(
        self, batch: dict[str, list], indices: list[int], tokenizer: PreTrainedTokenizerBase, labels: bool
    ) -> dict[str, list]:
        """The features of some examples, in columns: the model's inputs, and either the labels or what `score` needs.

        Args:
            indices: of the examples.
        """
        raise NotImplementedError

    def digest(self, features: datasets.Dataset) -> str:
        """Hash of the contents of all columns."""
        from runner.data import arrow

        return arrow.digest(features)

    def prediction(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> Prediction:
        """A model's outputs for a batch, in the form that distillation and scoring need."""
        found = self.heads(outputs, inputs["attention_mask"].bool())
        hidden, attentions = outputs.get("hidden_states"), outputs.get("attentions")
        return replace(found, hidden=tuple(hidden or ()), attentions=tuple(attentions or ()))

    def heads(self, outputs: Any, tokens: torch.Tensor) -> Prediction:
        """The outputs of the heads alone.

        Args:
            tokens: bool [batch, tokens], not padding.
        """
        raise NotImplementedError

    def logits_of(self, features: datasets.Dataset, classes: int) -> int:
        """How many logits a model gives for these features, of all heads.

        Args:
            classes: that the model's configuration tells apart.
        """
        raise NotImplementedError

    def score(self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]) -> Scores:
        """Score logits: [features, choices] or [features, tokens, choices] per head, in the order of `heads`, padded
        with the lowest float."""
        raise NotImplementedError

    # --- for people -----------------------------------------------------------------------------------------

    def rows(self, examples: datasets.Dataset) -> list[dict[str, Any]]:
        """Examples as plain values for a person to read."""
        return examples.to_list()

    def shown(self, example: Mapping[str, Any]) -> dict[str, str]:
        """An evaluation example for a person to read: titles of columns and texts, without the models' answers."""
        return {key.capitalize(): str(value) for key, value in example.items() if key != "id"}

    def kinds(self, example: Mapping[str, Any]) -> dict[str, str]:
        """Of which kind an example is, by what may explain that it is hard: titles and kinds, few of each."""
        return {}


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that a fast tokenizer does, but for what its last call left in it: how to cut and to pad."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    made = {**state, "truncation": None, "padding": None, "inputs": sorted(tokenizer.model_input_names)}
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()


def told_length(words: int, limits: Sequence[int]) -> str:
    """A number of words as one of the ranges that end at `limits`, rising, or are above the last."""
    low = 1
    for high in limits:
        if words <= high:
            return f"{low} to {high} words" if low < high else f"{high} word{'s' if high > 1 else ''}"
        low = high + 1
    return f"{low} words or more"


Collate = Callable[[list[Mapping[str, Any]]], dict[str, Any]]
