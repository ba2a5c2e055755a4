"""A model's predictions and scores, by batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pruning import Prediction
from pruning.runtime import FastModel
from runner.data.scores import Scores
from runner.data.task import Dataset
from runner.system.device import Precision, computing, device
from runner.system.progress import Progress

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536, "mps": 8192}
"""Tokens in a batch at most, by device."""


def score(
    model: PreTrainedModel | FastModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Dataset,
    examples: datasets.Dataset,
    cache: Path | None,
    title: str,
) -> Scores:
    """Metrics (fractions) and predictions of a model on the examples, computed in float32, or as a FastModel does."""
    features = task.features(examples, tokenizer, cache, labels=False)
    return task.score(examples, features, logits(model, tokenizer, task, features, title))


def logits(
    model: PreTrainedModel | FastModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Dataset,
    features: datasets.Dataset,
    title: str,
) -> list[np.ndarray]:
    """Logits of all features, computed in float32.

    Returns:
        One array per head, [features, choices] or [features, tokens, choices], in the order of the features; padding is
        the lowest float.
    """
    import numpy as np

    heads: list[np.ndarray] = []
    for rows, prediction in predictions(model, tokenizer, task, features, title, Precision.float32):
        if not heads:  # the longest come first
            lowest = np.finfo(np.float32).min
            heads = [np.full((len(features), *head.shape[1:]), lowest, np.float32) for head in prediction.logits]
        for head, values in zip(heads, prediction.logits, strict=True):
            head[rows, : values.shape[1]] = values.float().cpu().numpy()
    return heads


def predictions(
    model: PreTrainedModel | FastModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Dataset,
    features: datasets.Dataset,
    title: str,
    precision: Precision,
) -> Iterator[tuple[np.ndarray, Prediction]]:
    """Predictions of a model by batches of features of similar length, the longest first.

    Yields:
        The rows of a batch, and its prediction.
    """
    import numpy as np

    where = _placed(model)
    names = [name for name in tokenizer.model_input_names if name in features.column_names]
    inputs = features.select_columns(names)
    lengths = np.asarray(features["length"])
    order = np.argsort(-lengths, kind="stable")
    with Progress(title, len(order)) as progress:
        at = 0
        while at < len(order):
            rows = order[at : at + max(1, BATCH_TOKENS[where.type] // int(lengths[order[at]]))]
            batch = tokenizer.pad(inputs[rows], padding=True, return_tensors="pt").to(where)
            with torch.inference_mode(), computing(precision):
                prediction = task.prediction(model(**batch), batch)
            yield rows, prediction
            at += len(rows)
            progress.update(len(rows))


def _placed(model: PreTrainedModel | FastModel) -> torch.device:
    """Put a model on the device, without dropout; the runtime of a FastModel is on the CPU."""
    if isinstance(model, FastModel):
        return torch.device("cpu")
    where = device()
    model.to(where)  # type: ignore[arg-type]  # transformers' decorator hides the signature
    model.eval()
    return where
