"""The teacher is run once: its logits over the training features, kept in a file that every epoch, seed, pattern and
process shares.

Kept are the real logits only, one feature after the other, in float16: 58 MB for SQuAD's 88,000 features
and two heads. The file is memory-mapped; what several processes read lies in memory once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from runner import models
from runner.evaluate import predictions
from runner.system import files
from runner.system.device import Precision
from runner.system.disk import human_bytes
from runner.system.errors import UserError, writing
from runner.system.versions import VERSIONS

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from runner.data.task import Dataset

log = logging.getLogger(__name__)

LOGITS = "teacher_logits"
"""The key of a batch, and of a row, that holds the teacher's logits."""


@dataclass
class CachedLogits:
    """The teacher's logits over a set of features."""

    heads: list[torch.Tensor]
    """One float16 tensor per head: the real logits, feature after feature."""
    counts: torch.Tensor
    """int32 [features]: how many logits each feature has."""

    def __post_init__(self) -> None:
        self._ends = np.cumsum(self.counts.numpy(), dtype=np.int64)

    def of(self, feature: int) -> tuple[torch.Tensor, ...]:
        """A feature's logits: one flat tensor per head."""
        stop = int(self._ends[feature])
        start = stop - int(self.counts[feature])
        return tuple(head[start:stop] for head in self.heads)

    def checksum(self) -> str:
        """CRC-32 of all numbers."""
        value = 0
        for tensor in (self.counts, *self.heads):
            value = zlib.crc32(tensor.numpy().tobytes(), value)
        return f"{value:08x}"


class WithTeacherLogits(torch.utils.data.Dataset):
    """Training features with the teacher's logits beside them."""

    def __init__(self, features: datasets.Dataset, logits: CachedLogits) -> None:
        self.features, self.logits = features, logits

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """The rows of a batch, read at once."""
        rows = self.features.__getitems__(indices)
        return [{**row, LOGITS: self.logits.of(i)} for i, row in zip(indices, rows, strict=True)]


def pack(rows: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, ...]:
    """A batch's logits: for each head one tensor with those of the rows one after the other."""
    return tuple(torch.cat(parts) for parts in zip(*(row[LOGITS] for row in rows), strict=True))


def unpack(pack: Sequence[torch.Tensor], like: torch.Tensor, real: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Put each head's joined logits back where a padded batch has its own.

    Args:
        like: a head's logits, whose shape and device are wanted.
        real: bool, in that shape: which of them are real; None if all are.
    """
    heads = [flat.to(like.device, torch.float32) for flat in pack]
    if real is None:
        return tuple(head.view(like.shape) for head in heads)
    empty = torch.zeros(like.shape, device=like.device)
    return tuple(empty.masked_scatter(real, head) for head in heads)


def key(checkpoint: models.Checkpoint, task: Dataset, features: datasets.Dataset, precision: Precision) -> str:
    """Hash of all that determines a teacher's logits. The features' fingerprint holds texts and tokenizer."""
    made_of = [VERSIONS["teacher"], checkpoint.fingerprint, task.architecture, type(task).__name__]
    made_of += [features._fingerprint, precision.value]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


def teacher_logits(
    checkpoint: models.Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    task: Dataset,
    features: datasets.Dataset,
    precision: Precision,
    cache: Path,
) -> CachedLogits:
    """The teacher's logits over the features: read from `cache`, or computed now and kept there.

    Several processes may ask at once: one computes, the others wait.

    Raises:
        UserError: the disk is full, or a logit is too large for float16.
    """
    name = key(checkpoint, task, features, precision)
    file = cache / f"{name}.safetensors"
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_suffix(".lock"))
        if files.lock_is_held(lock):
            log.info("waiting for another process that runs the same teacher")
        with lock:
            found = _read(file, len(features))
            if found is None:
                most = human_bytes(max_bytes(task, features, checkpoint))
                log.info("the teacher runs once over %d features; its logits take at most %s in %s",
                         len(features), most, cache)  # fmt: skip
                model = models.load(task.architecture, checkpoint)
                found = _compute(model, tokenizer, task, features, precision)
                _write(found, file)
            else:
                log.info("the teacher's logits are found in %s", file)
        return found


def _compute(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Dataset,
    features: datasets.Dataset,
    precision: Precision,
) -> CachedLogits:
    found: list[tuple[torch.Tensor, ...]] = [()] * len(features)
    for rows, prediction in predictions(model, tokenizer, task, features, "Running the teacher", precision):
        heads = [head.half().cpu() for head in prediction.logits]
        real = None if prediction.real is None else prediction.real.cpu()
        for i, row in enumerate(rows.tolist()):
            found[row] = tuple(head[i] if real is None else head[i][real[i]] for head in heads)
    counts = torch.tensor([len(heads[0]) for heads in found], dtype=torch.int32)
    joined_heads = [torch.cat(parts) for parts in zip(*found, strict=True)]
    if not all(bool(head.isfinite().all()) for head in joined_heads):
        raise UserError(
            "a logit of the teacher is not finite in float16 (its largest number is 65504): set distill.cache=false "
            "to run the teacher beside the student, in the precision of the training"
        )
    return CachedLogits(joined_heads, counts)


def max_bytes(task: Dataset, features: datasets.Dataset, checkpoint: models.Checkpoint) -> int:
    """What a teacher's logits take at most, in two bytes each."""
    return 2 * task.logits_of(features, checkpoint.config.num_labels or 1)


def _write(logits: CachedLogits, file: Path) -> None:
    """Whole or not at all."""
    tensors = {"counts": logits.counts, **{f"head.{i}": head for i, head in enumerate(logits.heads)}}
    partial = files.temporary_path(file)
    try:
        save_file(tensors, partial, {"heads": str(len(logits.heads)), "crc32": logits.checksum()})
        files.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _read(file: Path, features: int) -> CachedLogits | None:
    """The logits in a file, or None if there is none or a damaged one."""
    if not os.path.lexists(file):
        return None
    problem = "it is not a safetensors file"
    try:
        with safe_open(file, framework="pt") as stored:
            about = stored.metadata() or {}
            heads = [stored.get_tensor(f"head.{i}") for i in range(int(about["heads"]))]
            found = CachedLogits(heads, stored.get_tensor("counts"))
        whole = len(found.counts) == features and found.checksum() == about["crc32"]
        # The checksum is of the bytes, whatever type the file says they have.
        if whole and all(head.dtype is torch.float16 for head in heads) and found.counts.dtype is torch.int32:
            return found
        problem = "its contents are not those that were written"
    except (OSError, SafetensorError, KeyError, ValueError):
        pass
    log.warning("%s is damaged (%s): the teacher is run again", file, problem)
    return None
