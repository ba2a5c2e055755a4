"""What a training learns from: the task, its features, and how they become batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pruning import IGNORED, TrainingLength
from runner.config.training import Sampling, Training
from runner.data.task import Collate, Dataset
from runner.system import ranks
from runner.system.device import device
from runner.system.errors import UserError
from runner.training.batches import Batches
from runner.training.teacher_logits import LOGITS, pack

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

LABELLED = "labelled"
"""The key of a batch that says which examples have labels, where some have none."""
PAD_MULTIPLE = {"cpu": 1, "cuda": 8, "mps": 1}
"""Batches are padded to a multiple of this many tokens: tensor cores want 8."""


@dataclass
class TrainingData:
    """Features of a task, with the tokenizer that made them."""

    task: Dataset
    features: datasets.Dataset
    """Labels are null in those of examples without labels."""
    tokenizer: PreTrainedTokenizerBase
    """The student's tokenizer."""
    other_inputs: tuple[tuple[str, ...], ...] = ()
    """Inputs among the features that each teacher other than the dense model takes; empty: there is no such teacher."""

    validation: datasets.Dataset | None = None
    """Examples, not features, that a training scores its model on; None: it does not."""
    cache: Path | None = None
    """The folder for the features of these examples."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the student's inputs."""
        return tuple(self.tokenizer.model_input_names)

    @property
    def teacher_inputs(self) -> tuple[tuple[str, ...], ...]:
        """Names of each teacher's inputs."""
        return self.other_inputs or (self.inputs,)

    def batches(self, training: Training, seed: int) -> Batches:
        """The batches of this training.

        Raises:
            UserError: they are too small for the longest feature.
        """
        size = ranks.world_size()
        try:
            return Batches(
                np.asarray(self.features["length"]),
                training.per_device_train_batch_size // size,
                seed,
                training.train_sampling_strategy is Sampling.group_by_length,
                training.batch_tokens // size if training.batch_tokens else None,
                parts=size * training.gradient_accumulation_steps,
                multiple=PAD_MULTIPLE[device().type],
            )
        except ValueError as error:
            over = f" over {size} ranks" if size > 1 else ""
            raise UserError(f"batch_tokens={training.batch_tokens} in train or finetune{over}: {error}") from error

    def length(self, training: Training) -> TrainingLength:
        """How many optimizer steps this training takes, as Trainer counts them."""
        per_epoch = self.batches(training, seed=0).steps
        steps = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * per_epoch)
        whole = per_epoch
        if training.batch_tokens is None:  # the published recipes convert epochs to steps with whole batches only
            batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
            whole = max(1, len(self.features) // batch)
        return TrainingLength(steps, whole, training.num_train_epochs if training.max_steps <= 0 else steps / whole)


def collate(
    tokenizer: PreTrainedTokenizerBase, label_names: tuple[str, ...], multiple: int = 1, more: Iterable[str] = ()
) -> Collate:
    """A function that pads the inputs of a batch to its longest, with labels and teacher's logits where rows have them.

    Args:
        multiple: pad to a multiple of this many tokens.
        more: inputs besides those of the tokenizer's own model.
    """
    names = {*tokenizer.model_input_names, *more}

    def batch(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        inputs = [{name: value for name, value in row.items() if name in names} for row in rows]
        out = dict(tokenizer.pad(inputs, padding=True, pad_to_multiple_of=multiple, return_tensors="pt"))
        for name in (name for name in label_names if name in rows[0]):
            values = [row[name] for row in rows]
            out[name] = _labels(values, out["input_ids"])
            if None in values:
                out[LABELLED] = torch.tensor([value is not None for value in values])
        if LOGITS in rows[0]:
            out[LOGITS] = pack(rows)
        return out

    return batch


def _labels(values: list[Any], inputs: torch.Tensor) -> torch.Tensor:
    """Labels as [batch], 0 where there is none, or as [batch, tokens] with `IGNORED` at padding and where there is
    none."""
    if not any(isinstance(value, list) for value in values):
        return torch.tensor([0 if value is None else value for value in values])
    out = torch.full(inputs.shape, IGNORED)
    for row, labels in zip(out, values, strict=True):
        row[: len(labels or [])] = torch.tensor(labels or [])
    return out
