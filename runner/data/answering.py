"""Answers without labels: the part of a kind of task that a model in use needs, for `runner.serving`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import datasets
    import numpy as np


class Answering:
    """Base of `Dataset`. A task without `answer` is trained and scored all the same, but MLflow gets no model."""

    inputs: ClassVar[tuple[str, ...]] = ()
    """Columns that a model reads; the fields of these names have the names in the data."""
    answer: ClassVar[str] = ""
    """What an answer is, as the name of a column; for classes the task's column of labels."""

    def answer_type(self) -> str:
        """The type of an answer: text, number, class, or classes (one for each word of `tokens`)."""
        return "text"

    @abstractmethod
    def answered(self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]) -> list[Any]:
        """What a model answers to each example: a text, a number, the name of a class, or a list of them.

        Args:
            logits: see `Dataset.score`.
        """
        raise NotImplementedError

    def columns(self) -> dict[str, str]:
        """The columns that a model reads: the task's name -> the data's."""
        return {name: getattr(self, name) for name in self.inputs if getattr(self, name) is not None}

    def unlabelled_examples(self, columns: Mapping[str, list], names: Sequence[str]) -> datasets.Dataset:
        """Examples without labels, as `features` and `answered` take them: labels stand only for the classes' names.

        Args:
            columns: texts, or lists of words, by the task's names of `inputs`.
            names: the classes of the model, in their order.
        """
        import datasets

        count = len(next(iter(columns.values())))
        examples = datasets.Dataset.from_dict({**columns, "id": [str(i) for i in range(count)]})
        label: Any = datasets.ClassLabel(names=list(names))
        if self.answer_type() == "class":
            return examples.add_column(self.answer, [0] * count, feature=label)  # type: ignore[call-arg]
        if self.answer_type() == "classes":
            none = [[0] * len(words) for words in columns["tokens"]]
            return examples.add_column(self.answer, none, feature=datasets.List(label))  # type: ignore[call-arg]
        return examples
