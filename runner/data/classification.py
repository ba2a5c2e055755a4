"""Text classification: one text or two, one of several classes, or a number (regression)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pruning import Prediction
from runner.data import arrow, classes
from runner.data.classification_scores import METRICS, OF_NUMBERS, STATISTICS
from runner.data.files import Reader
from runner.data.readable import length_range
from runner.data.scores import Scores
from runner.data.splits import SPLIT, Part, Splits
from runner.data.task import Dataset
from runner.data.text_files import read_lines
from runner.data.windows import check_max_length
from runner.system.errors import UserError

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass
class Classify(Dataset):
    """Texts, or pairs of texts, with one label each."""

    text: str = "text"
    """Column of the text."""
    text_pair: str | None = None
    """Column of a second text, for tasks about pairs."""
    label: str = "label"
    """Column of the label: a class by its name or its number, or a number."""
    id: str | None = None
    """Column of the id. Not given: the number of the row."""
    labels: list[str] = field(default_factory=list)
    """The classes in the model's order. If the data have numbers: the names of the numbers, from 0 (but "3" is the name
    of 3). Not given: those of the data, sorted if the data do not give an order."""
    regression: bool = False
    """The label is a number: the head has one output, and is trained by the squared error."""
    drop_unlabelled: bool = False
    """Leave out examples without a label (empty, or for classes also -1), instead of refusing the data."""
    positive: str | None = None
    """The class whose F1 is `f1`, against all others. Not given: the second of two."""
    metric: str = "accuracy"
    """The main metric, which names the columns of the table: accuracy, f1 (of the class `positive`), macro_f1,
    matthews_correlation; with `regression` pearson or spearmanr."""
    other_metrics: list[str] = field(default_factory=list)
    """Further metrics to report."""
    max_seq_length: int = 128

    architecture: ClassVar[str] = "AutoModelForSequenceClassification"
    pipeline_tag: ClassVar[str] = "text-classification"
    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    inputs: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    answer: ClassVar[str] = "label"
    metrics: ClassVar[tuple[str, ...]] = tuple(METRICS)
    scoring: ClassVar[tuple[str, ...]] = ("metric", "other_metrics", "positive")
    selecting: ClassVar[tuple[str, ...]] = (*Dataset.selecting, "text", "text_pair", "label", "id", "drop_unlabelled")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (self.metric, *self.other_metrics):
            if name not in METRICS:
                raise UserError(f"dataset.other_metrics={name} must be one of {', '.join(METRICS)}")
            if (name in OF_NUMBERS) != self.regression:
                fitting = [each for each in METRICS if (each in OF_NUMBERS) == self.regression]
                raise UserError(
                    f"dataset.metric={name} does not fit dataset.regression={str(self.regression).lower()}; metrics "
                    f"that fit are {', '.join(fitting)}"
                )
        if self.regression and self.labels:
            raise UserError(f"dataset.labels={self.labels} with dataset.regression=true: numbers have no classes")
        classes.check_names(self.labels)

    # --- reading --------------------------------------------------------------------------------------------

    def text_columns(self) -> Sequence[str]:
        return [name for name in (self.id, self.text, self.text_pair) if name]

    def readers(self, labels: bool = True) -> Mapping[str, Reader]:
        return {} if labels else {".txt": partial(read_lines, column=self.text)}

    def named(self, splits: Splits) -> Splits:
        splits = splits.mapped(self._named)
        if self.regression:
            return splits
        names = classes.names(self.labels, splits.parts, "label", self.label)
        if "f1" in self._all_metrics():
            self._number_of_positive(names)
        return splits.mapped(lambda part: classes.coded(part, "label", names, self.label))

    def _named(self, part: Part) -> Part:
        given = {"text": self.text, "text_pair": self.text_pair, "label": self.label, "id": self.id}
        part = part.renamed({ours: theirs for ours, theirs in given.items() if theirs is not None})
        classes.check_kind(part, "label", self.label, listed=False)
        others = part.examples.select_columns([name for name in given if name != "id" and given[name] is not None])
        return part.holding(others.add_column("id", part.ids(self.id)))  # type: ignore[call-arg]

    def groups(self, examples: datasets.Dataset) -> Sequence[str]:
        return [str(text) for text in arrow.table(examples, "text")["text"].to_pylist()]

    def strata(self, examples: datasets.Dataset) -> Sequence[Any]:
        return () if self.regression else arrow.table(examples, "label")["label"].to_pylist()

    def class_counts(self, examples: datasets.Dataset) -> dict[str, int]:
        return {} if self.regression else classes.counts(examples, "label")

    def checked(self, part: Part) -> Part:
        for name in ("text", *(["text_pair"] if self.text_pair else [])):
            part.check_text(name, getattr(self, name))
        values = arrow.table(part.examples, "label")["label"].to_pylist()
        if self.regression:
            part = self._numbers(part, values)
            missing = [i for i, value in enumerate(values) if _number(value) is None]
        else:
            missing = [i for i, value in enumerate(values) if value in (None, classes.NONE)]
        if not missing:
            return part
        if not self.drop_unlabelled:
            by_number = "" if self.regression else " (-1 counts as none, unless dataset.labels has it as a class)"
            raise UserError(
                f"{part.where_all(missing)}: column {self.label}: {len(missing)} of {len(values)} examples have "
                f"no label{by_number}; give them one, or leave them out with dataset.drop_unlabelled=true"
            )
        log.info("%s: %d examples without a label left out", part.name, len(missing))
        return part.without(missing)

    def _numbers(self, part: Part, values: list[Any]) -> Part:
        """Convert labels to float32; refuse what is not a number."""
        import datasets

        numbers = [_number(value) for value in values]
        bad = [i for i, number in enumerate(numbers) if number is not None and not math.isfinite(number)]
        if bad:
            raise UserError(
                f"{part.where_all(bad)}: column {self.label}: {values[bad[0]]!r} is not a number, which "
                "dataset.regression=true needs"
            )
        examples = part.examples.remove_columns("label")
        return part.holding(examples.add_column("label", numbers, feature=datasets.Value("float32")))  # type: ignore[call-arg]

    # --- features, outputs ----------------------------------------------------------------------------------

    def configure(self, config: PretrainedConfig, examples: datasets.Dataset, given: str | None) -> None:
        if self.regression:
            if given and config.num_labels != 1:
                raise UserError(
                    f"{given}: its head has {config.num_labels} outputs, but dataset.regression=true needs one"
                )
            config.num_labels = 1
            config.problem_type = "regression"
        else:
            classes.configure(config, examples.features["label"].names, given)
            config.problem_type = "single_label_classification"

    def tokenized(
        self, batch: dict[str, list], indices: list[int], tokenizer: PreTrainedTokenizerBase, labels: bool
    ) -> dict[str, list]:
        second = batch["text_pair"] if self.text_pair else None
        columns = dict(tokenizer(batch["text"], second, truncation=True, max_length=self.max_seq_length))
        return columns | {"example": indices} | ({"labels": batch["label"]} if labels else {})

    def check_lengths(self, examples: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
        pair = self.text_pair is not None
        check_max_length(self.max_seq_length, tokenizer.num_special_tokens_to_add(pair), int(pair))

    def report(
        self, examples: datasets.Dataset, features: datasets.Dataset, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        import numpy as np

        lengths = np.asarray(features["length"])
        part = "training" if "labels" in features.column_names else "evaluation"
        empty = np.flatnonzero(lengths <= tokenizer.num_special_tokens_to_add(self.text_pair is not None))
        if len(empty):
            log.warning("%d of %d %s examples have no token of text, such as blank ones (the first has the id %s)",
                        len(empty), len(lengths), part, examples[int(empty[0])]["id"])  # fmt: skip
        full = int((lengths >= self.max_seq_length).sum())
        if full:
            log.info("%d of %d %s examples have dataset.max_seq_length=%d tokens or more, and are cut there",
                     full, len(lengths), part, self.max_seq_length)  # fmt: skip

    def heads(self, outputs: Any, tokens: torch.Tensor) -> Prediction:
        return Prediction((outputs.logits,), None, tokens, numbers=self.regression)

    def logits_of(self, features: datasets.Dataset, classes: int) -> int:
        return len(features) * classes

    def score(self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]) -> Scores:
        import numpy as np

        ids, gold = list(map(str, examples["id"])), np.asarray(examples["label"])
        names: list[str] = [] if self.regression else examples.features["label"].names
        predicted = self._predicted(logits)
        answers = self.answered(examples, features, logits)
        right = {} if self.regression else dict(zip(ids, (predicted == gold).astype(float).tolist(), strict=True))
        splits = np.asarray(examples[SPLIT] if SPLIT in examples.column_names else [""] * len(ids))
        first = splits == splits[0]
        metrics = {}
        for split in dict.fromkeys(splits.tolist()):
            here, suffix = splits == split, "" if split == splits[0] else f"_{split}"
            for name in self._all_metrics():
                metrics[f"{name}{suffix}"] = METRICS[name](*self._compared(name, names, predicted[here], gold[here]))
        scores = Scores(metrics, dict(zip(ids, answers, strict=True)))
        counted = [id for id, is_first in zip(ids, first, strict=True) if is_first]
        scores.by_example = {id: right[id] for id in counted} if right else {}
        if self.metric != "accuracy":
            scores.statistic, numbers = STATISTICS[self.metric]
            compared = self._compared(self.metric, names, predicted[first], gold[first])
            scores.statistics = dict(zip(counted, numbers(*compared).tolist(), strict=True))
        return scores

    def answer_type(self) -> str:
        return "number" if self.regression else "class"

    def answered(self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]) -> list[Any]:
        predicted = self._predicted(logits).tolist()
        return predicted if self.regression else [examples.features["label"].names[i] for i in predicted]

    def _predicted(self, logits: list[np.ndarray]) -> np.ndarray:
        """The number of each example: the answer itself, as float64, or that of the class."""
        return logits[0][:, 0].astype("float64") if self.regression else logits[0].argmax(axis=1)

    def _number_of_positive(self, names: Sequence[str]) -> int:
        """The number of the class whose F1 is `f1`. Raises UserError if there is no such class."""
        if self.positive is None and len(names) == 2:
            return 1
        if self.positive not in names:
            raise UserError(
                f"dataset.positive={self.positive}: f1 is the F1 of one class against all others: name one of "
                f"{', '.join(names)}, or use dataset.metric=macro_f1"
            )
        return names.index(self.positive)

    def _compared(self, metric: str, names: Sequence[str], predicted: Any, gold: Any) -> tuple[Any, Any]:
        """Predictions and references as a metric takes them: for f1, 1 for the positive class and 0 for others."""
        if metric != "f1":
            return predicted, gold
        positive = self._number_of_positive(names)
        return (predicted == positive).astype(int), (gold == positive).astype(int)

    def _all_metrics(self) -> list[str]:
        return list(dict.fromkeys((self.metric, *self.other_metrics)))

    # --- for people -----------------------------------------------------------------------------------------

    def rows(self, examples: datasets.Dataset) -> list[dict[str, Any]]:
        label = examples.features["label"]
        rows = examples.to_list()
        return rows if self.regression else [{**row, "label": label.names[row["label"]]} for row in rows]

    def shown(self, example: Mapping[str, Any]) -> dict[str, str]:
        texts = {"Text": example["text"]} | ({"Second text": example["text_pair"]} if self.text_pair else {})
        return texts | {"Label": str(example["label"])}

    def kinds(self, example: Mapping[str, Any]) -> dict[str, str]:
        words = sum(len(example[name].split()) for name in ("text", "text_pair") if example.get(name))
        label = {} if self.regression else {"Label": str(example["label"])}
        return label | {"Length": length_range(words, (5, 10, 20, 40, 80))}


def _number(value: Any) -> float | None:
    """A label as a number: None if it is missing, NaN if it is something else."""
    if value is None or value == "" or value != value:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
