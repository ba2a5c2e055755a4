"""The embedded dataset of the demo: generated reading comprehension in SQuAD's format, without network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from runner.tasks.span import Span

if TYPE_CHECKING:
    import datasets


@dataclass
class Demo(Span):
    """Paragraphs of several facts with distractors; the question must be read. See `runner.tasks.demo_text`."""

    path: str = "generated"
    max_seq_length: int = 128
    doc_stride: int = 32
    licence: str | None = "apache-2.0"
    train_examples: int = 4000
    """Questions generated for training."""
    eval_examples: int = 1000
    """Questions generated for evaluation, from another seed."""

    selecting: ClassVar[tuple[str, ...]] = (*Span.selecting, "train_examples", "eval_examples")

    @property
    def hub_id(self) -> str | None:
        return None

    def splits(self) -> tuple[datasets.Dataset | None, datasets.Dataset | None, str]:
        import datasets

        from runner.tasks.demo_text import examples

        train = datasets.Dataset.from_list([dict(e) for e in examples(self.train_examples, seed=2 * self.data_seed)])
        evaluation = datasets.Dataset.from_list(
            [dict(e) for e in examples(self.eval_examples, seed=2 * self.data_seed + 1)]
        )
        return train, evaluation, "generated"
