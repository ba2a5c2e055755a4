"""The teacher's logits over the training features, computed once and shared by every epoch, seed, pattern and process.

The cache holds logits without padding, feature after feature, in float16: 58 MB for SQuAD's 88,000 features and two
heads. The file is memory-mapped, so processes share its memory.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from runner import models
from runner.system import files
from runner.system.circumstances import Span, circumstances
from runner.system.device import Precision
from runner.system.disk import human_bytes
from runner.system.errors import UserError
from runner.system.fingerprint import SHORT, hash_json
from runner.system.process import ONCE
from runner.system.versions import VERSIONS
from runner.training.inference import predictions

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from runner.data.task import Dataset

log = logging.getLogger(__name__)

LOGITS = "teacher_logits"
"""The key of the teacher's logits in a batch and in a row."""


@dataclass
class CachedLogits:
    """The teacher's logits over a set of features."""

    heads: list[torch.Tensor]
    """One flat float16 tensor per head: logits without padding, feature after feature. Of several teachers: all heads
    of the first, then of the next."""
    counts: torch.Tensor
    """int32 [features]: number of logits of each feature."""
    made_under: dict[str, str] = field(default_factory=circumstances)
    """See `runner.system.circumstances`; empty if not known, or if several teachers' logits were joined."""
    parts: tuple[CachedLogits, ...] = ()
    """The logits of each teacher, where those of several were joined."""

    def __post_init__(self) -> None:
        self._ends = np.cumsum(self.counts.numpy(), dtype=np.int64)

    def of(self, feature: int) -> tuple[torch.Tensor, ...]:
        """Logits of one feature: one flat tensor per head."""
        stop = int(self._ends[feature])
        start = stop - int(self.counts[feature])
        return tuple(head[start:stop] for head in self.heads)

    @property
    def spans(self) -> list[Span]:
        """All of it, as a computation without interruption."""
        return [{"step": 0, "under": self.made_under}] if self.made_under else []

    def checksum(self) -> str:
        """CRC-32 of all numbers."""
        value = 0
        for tensor in (self.counts, *self.heads):
            value = zlib.crc32(tensor.numpy().tobytes(), value)
        return f"{value:08x}"


def joined(teachers: Sequence[CachedLogits]) -> CachedLogits:
    """Several teachers' logits over the same features as those of one with all their heads."""
    if len(teachers) == 1:
        return teachers[0]
    first = teachers[0]
    assert all(torch.equal(first.counts, other.counts) for other in teachers)
    return CachedLogits([head for each in teachers for head in each.heads], first.counts, {}, tuple(teachers))


class WithTeacherLogits(torch.utils.data.Dataset):
    """Training features with the teacher's logits."""

    def __init__(self, features: datasets.Dataset, logits: CachedLogits) -> None:
        self.features, self.logits = features, logits

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """The rows of a batch, read together."""
        rows = self.features.__getitems__(indices)
        return [{**row, LOGITS: self.logits.of(i)} for i, row in zip(indices, rows, strict=True)]


def pack(rows: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, ...]:
    """Logits of a batch: one flat tensor per head, row after row."""
    return tuple(torch.cat(parts) for parts in zip(*(row[LOGITS] for row in rows), strict=True))


def unpack(pack: Sequence[torch.Tensor], like: torch.Tensor, real: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Inverse of `pack`: each head's logits at the positions of a padded batch, zeros elsewhere.

    Args:
        like: a head's logits, with the shape and device of the result.
        real: bool, of that shape: which positions are not padding; None if all.
    """
    heads = [flat.to(like.device, torch.float32) for flat in pack]
    if real is None:
        return tuple(head.view(like.shape) for head in heads)
    empty = torch.zeros(like.shape, device=like.device)
    return tuple(empty.masked_scatter(real, head) for head in heads)


def key(checkpoint: models.Checkpoint, task: Dataset, features: datasets.Dataset, precision: Precision) -> str:
    """Hash of everything that determines a teacher's logits; the features' fingerprint covers texts and tokenizer."""
    made_of = [VERSIONS["teacher"], checkpoint.fingerprint, task.architecture, type(task).__name__]
    made_of += [features._fingerprint, precision.value]
    return hash_json(made_of, SHORT)


def teacher_logits(
    checkpoint: models.Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    task: Dataset,
    features: datasets.Dataset,
    precision: Precision,
    cache: Path,
) -> CachedLogits:
    """The teacher's logits over the features: from `cache`, or computed now; of several processes that ask at once, one
    computes them and the others wait.

    Raises:
        UserError: the disk is full, or a logit is too large for float16.
    """

    def read(file: Path) -> CachedLogits | None:
        logits = _read(file, len(features))
        if logits is not None:
            log.info("the teacher's logits are cached in %s", file, extra=ONCE)
        return logits

    def make(file: Path) -> CachedLogits:
        most = human_bytes(max_bytes(task, features, checkpoint))
        log.info("the teacher runs once over %d features; its logits take at most %s in %s", len(features), most, cache)
        logits = _compute(models.load(task.architecture, checkpoint), tokenizer, task, features, precision)
        _write(logits, file)
        return logits

    file = cache / f"{key(checkpoint, task, features, precision)}.safetensors"
    return files.make_once(file, read, make, "runs the same teacher")


def _compute(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Dataset,
    features: datasets.Dataset,
    precision: Precision,
) -> CachedLogits:
    features_logits: list[tuple[torch.Tensor, ...]] = [()] * len(features)
    for rows, prediction in predictions(model, tokenizer, task, features, "Running the teacher", precision):
        heads = [head.half().cpu() for head in prediction.logits]
        real = None if prediction.real is None else prediction.real.cpu()
        for i, row in enumerate(rows.tolist()):
            features_logits[row] = tuple(head[i] if real is None else head[i][real[i]] for head in heads)
    counts = torch.tensor([len(heads[0]) for heads in features_logits], dtype=torch.int32)
    packed = [torch.cat(parts) for parts in zip(*features_logits, strict=True)]
    if not all(bool(head.isfinite().all()) for head in packed):
        raise UserError(
            "a logit of the teacher is not finite in float16 (its largest number is 65504): set distill.cache=false "
            "to run the teacher next to the student, in the precision of the training"
        )
    return CachedLogits(packed, counts)


def max_bytes(task: Dataset, features: datasets.Dataset, checkpoint: models.Checkpoint) -> int:
    """Bytes that a teacher's logits take at most, at two each."""
    return 2 * task.logits_of(features, checkpoint.config.num_labels or 1)


def _write(logits: CachedLogits, file: Path) -> None:
    tensors = {"counts": logits.counts, **{f"head.{i}": head for i, head in enumerate(logits.heads)}}
    about = {"heads": str(len(logits.heads)), "crc32": logits.checksum(), "under": json.dumps(logits.made_under)}
    files.atomic_write(file, lambda partial: save_file(tensors, partial, about))


def _read(file: Path, features: int) -> CachedLogits | None:
    """The logits in a file; None if it is missing or damaged."""
    if not os.path.lexists(file):
        return None
    problem = "it is not a safetensors file"
    try:
        with safe_open(file, framework="pt") as stored:
            about = stored.metadata() or {}
            heads = [stored.get_tensor(f"head.{i}") for i in range(int(about["heads"]))]
            logits = CachedLogits(heads, stored.get_tensor("counts"), json.loads(about.get("under", "{}")))
        whole = len(logits.counts) == features and logits.checksum() == about["crc32"]
        # The checksum covers bytes, not the types that the file claims for them.
        if whole and all(head.dtype is torch.float16 for head in heads) and logits.counts.dtype is torch.int32:
            return logits
        problem = "its contents are not those that were written"
    except (OSError, SafetensorError, KeyError, ValueError):
        pass
    log.warning("%s is damaged (%s): the teacher is run again", file, problem)
    return None
