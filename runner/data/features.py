"""Features of examples: tokenised once, cached by all that decides them; and those of examples without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.data import arrow
from runner.system.errors import UserError
from runner.system.fingerprint import SHORT, hash_json
from runner.system.versions import VERSIONS

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from runner.data.task import Dataset


@dataclass
class Features:
    """How examples of a task become features."""

    task: Dataset
    tokenizer: PreTrainedTokenizerBase
    labels: bool
    """With labels, for training; else with what scoring needs."""
    part: str
    """The name of the examples, for the progress."""

    def of(self, examples: datasets.Dataset, fingerprint: str, cache: Path | None) -> datasets.Dataset:
        """The features of some examples: see `Dataset.features`.

        Args:
            fingerprint: hash of the examples' contents.
            cache: the folder for the result; None: it is not cached.
        """
        from runner.models import tokenizer as tokenizers

        task = self.task
        kind = type(task).__name__.lower()
        key = [VERSIONS["prepare"], kind, fingerprint, tokenizers.fingerprint(self.tokenizer), self.labels]
        name = hash_json([*key, task.tokenising()], SHORT)
        place = None if cache is None else cache / f"{kind}-{name}"
        features = arrow.mapped_once(
            examples, self._tokenized, name, f"Tokenising {self.part}", place,
            lambda: task.check_lengths(examples, self.tokenizer),
        )  # fmt: skip
        if not len(features):
            raise UserError(f"dataset.path={task.path}: the tokenizer leaves nothing of all {len(examples)} examples")
        return features

    def _tokenized(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        columns = self.task.tokenized(batch, indices, self.tokenizer, self.labels)
        return columns | {"length": [len(tokens) for tokens in columns["input_ids"]]}


def with_unlabelled(labelled: datasets.Dataset, unlabelled: datasets.Dataset) -> datasets.Dataset:
    """The features of a training, those without labels at the end: their labels are null."""
    import datasets

    shared = [name for name in labelled.column_names if name in unlabelled.column_names]
    both = datasets.concatenate_datasets([labelled, unlabelled.select_columns(shared)])
    # The library's own fingerprint of the result may differ from process to process, and cached logits go by it.
    both._fingerprint = hash_json([labelled._fingerprint, unlabelled._fingerprint], SHORT)
    return both
