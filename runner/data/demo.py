"""The demo's dataset: generated reading comprehension in SQuAD's format, without network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from runner.data.question_answering import Span
from runner.data.splits import Part, Splits
from runner.system.errors import UserError


@dataclass
class Demo(Span):
    """Paragraphs of several facts with distractors, so that the question must be read. See `runner.demo.text`."""

    path: str = "generated"
    max_seq_length: int = 128
    doc_stride: int = 32
    licence: str | None = "apache-2.0"
    train_examples: int = 4000
    """Questions generated for training."""
    eval_examples: int = 1000
    """Questions generated for evaluation, from another seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("path", "name", "revision", "train_split", "evaluation_splits"):
            if (value := getattr(self, key)) != getattr(type(self), key, []):
                raise UserError(
                    f"dataset.{key}={value}: this dataset is generated, and nothing is read; for data of your own "
                    "choose dataset=span, classify or tag"
                )

    selecting: ClassVar[tuple[str, ...]] = (*Span.selecting, "train_examples", "eval_examples")

    @property
    def hub_id(self) -> str | None:
        return None

    def splits(self) -> Splits:
        return Splits(
            self._part(self.train_examples, 0), {"validation": self._part(self.eval_examples, 1)}, "generated"
        )

    def _part(self, count: int, seed: int) -> Part:
        import datasets

        from runner.demo.text import examples

        rows = [dict(example) for example in examples(count, seed=2 * self.data_seed + seed)]
        return Part(datasets.Dataset.from_list(rows), [("generated", count)])
