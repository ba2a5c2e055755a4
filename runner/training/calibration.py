"""Calibration data for criteria that read them: windows of the training split, and labels that the student draws."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pruning import Calibrated, Calibration, Criterion, Pruner, sampled_loss
from runner.system import ranks
from runner.system.device import Precision, computing, device
from runner.system.progress import Progress
from runner.training.cost import TrainingStats
from runner.training.inference import BATCH_TOKENS
from runner.training.training_data import TrainingData, collate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def calibration(
    criterion: Criterion, student: PreTrainedModel, data: TrainingData, precision: Precision | None
) -> Calibration | None:
    """The calibration of a student; None for a criterion that reads none."""
    if not isinstance(criterion, Calibrated):
        return None
    if criterion.samples > len(data.features):
        log.info("calibration uses all %d training windows, fewer than criterion.samples=%d",
                 len(data.features), criterion.samples)  # fmt: skip
    precision = precision or Precision.float32

    def loss(batch: dict[str, Any], chance: torch.Generator) -> torch.Tensor:
        with computing(precision):
            outputs = student(**batch)
        return sampled_loss(data.task.prediction(outputs, batch), chance)

    return Calibration(student, Windows(criterion, student, data), loss, lambda batch: batch["attention_mask"].bool())


@dataclass
class Windows:
    """Batches of training windows drawn by the criterion's seed, of similar lengths; alike in every iteration."""

    criterion: Calibrated
    student: PreTrainedModel
    data: TrainingData

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        features, where = self.data.features, self.student.device
        names = [name for name in self.data.inputs if name in features.column_names]
        pad = collate(self.data.tokenizer, ())
        batches = list(self.rows(BATCH_TOKENS[where.type] // 2))  # backward holds all layers
        progress = Progress("Calibrating", len(batches)) if ranks.rank() == 0 else None
        for rows in batches:
            columns = features.select_columns(names).__getitems__(rows)
            yield {name: tensor.to(where) for name, tensor in pad(columns).items()}
            if progress is not None:
                progress.update()
        if progress is not None:
            progress.close()

    def rows(self, tokens: int) -> Iterator[list[int]]:
        """Feature indices by batch, of at most so many tokens with padding, the longest first."""
        lengths = np.asarray(self.data.features["length"])
        drawn = np.random.default_rng(self.criterion.seed).permutation(len(lengths))[: self.criterion.samples]
        drawn = drawn[np.argsort(-lengths[drawn], kind="stable")]
        at = 0
        while at < len(drawn):
            size = max(1, tokens // int(lengths[drawn[at]]))
            yield drawn[at : at + size].tolist()
            at += size


def prune_only(student: PreTrainedModel, pruner: Pruner) -> TrainingStats:
    """Prune a model in place without an optimizer step. All ranks call it at once."""
    student.to(device())  # type: ignore[arg-type]  # transformers' decorator hides the signature
    pruner.update_now()
    pruner.check_reached()
    ranks.check_same(dict(student.named_parameters()))
    return TrainingStats(update_seconds=pruner.update_seconds)
